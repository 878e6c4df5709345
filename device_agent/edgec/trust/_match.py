"""Whether image repository and director agree, and whether this device may run what they agree on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgec.artifact._fields import Fields
from edgec.errors import ManifestError, TrustError
from edgec.trust._assignment import PATH, AssignedTarget, Assignment, ImageTarget, image_target
from edgec.trust._metadata import PREFIX, Extra, key_digest, name
from edgec.trust._refresh import Refreshed, translated
from edgec.trust._state import Floor, Floors
from edgec.trust._terms import Terms, terms_of

MAX_MODELS = 64


def match(
    director: Refreshed, image: Refreshed, *, device_id: str, hardware: Collection[str], floors: Floors
) -> tuple[Assignment, dict[str, Floor]]:
    """Return what the device shall run, and the rollback floors of its models.

    Args:
        director: The director's metadata for this device, verified.
        image: The image repository's metadata, verified.
        device_id: Id of the device.
        hardware: Names of the targets that it can run.
        floors: What was seen before.

    Raises:
        TrustError: They do not agree, or the device may not run it; everything that is wrong is said, and
            `reason` is that of the first.
    """
    entries = director.targets.targets
    if len(entries) > MAX_MODELS:
        raise TrustError(f"{len(entries)} models are assigned; at most {MAX_MODELS} can be", "too_large")
    problems: list[TrustError] = []
    found: dict[str, AssignedTarget] = {}
    releases = dict(floors.releases)
    for path, entry in sorted(entries.items()):
        try:
            model, terms = _told(path, entry)
            if model in found:
                raise TrustError(f"model {model} is assigned twice", "malformed")
            target = _agreed(image, path, entry, model)
            releases[model] = _raised_floor(image, model, releases.get(model, Floor()))
            _check_allowed(target, hardware, releases[model].value)
            found[model] = AssignedTarget(
                model=model,
                path=path,
                length=target.length,
                sha256=target.sha256,
                custom=target,
                terms=terms,
            )
        except TrustError as e:  # noqa: PERF203
            problems.append(e)
    if problems:
        raise TrustError("; ".join(map(str, problems)), problems[0].reason) from problems[0]
    assignment = Assignment(
        device=device_id,
        epoch=Extra(director.targets).epoch,
        targets=tuple(target for _, target in sorted(found.items())),
        expires=min(director.expires(), image.expires(), *_role_expiries(image, found)),
    )
    return assignment, releases


def _role_expiries(image: Refreshed, models: Collection[str]) -> list[float]:
    # The first is there so that `min` has a second number where nothing is assigned.
    return [image.expires(), *(image.role(PREFIX + model).expires.timestamp() for model in models)]


def _told(path: str, entry: Any) -> tuple[str, Terms]:
    """Return for which model an entry is, and on which terms."""
    try:
        PATH(path, "the path of an assigned target")
        custom = Fields(entry.unrecognized_fields.get("custom"), f"assigned {path:.80}, custom")
        return custom.need("model", name), terms_of(custom)
    except ManifestError as e:
        raise TrustError(str(e), "malformed") from e


def _agreed(image: Refreshed, path: str, entry: Any, model: str) -> ImageTarget:
    with translated("image"):
        published = image.updater.get_targetinfo(path)
    if published is None:
        raise TrustError(
            f"the director assigns {path}, which the image repository does not have: it is not installed",
            "unknown_target",
        )
    sha256 = published.hashes.get("sha256")
    if sha256 is None or (published.length, published.hashes) != (entry.length, entry.hashes):
        raise TrustError(
            f"{path}: director and image repository differ in length or digest; it is not installed",
            "mismatch",
        )
    target = image_target(published)
    if target.model != model or path.partition("/")[0] != model:
        raise TrustError(f"{path} is of model {target.model}, and was assigned as {model}", "mismatch")
    return target


def _raised_floor(image: Refreshed, model: str, floor: Floor) -> Floor:
    keys = key_digest(image.root.roles["targets"].keyids)
    for target in image.role(PREFIX + model).targets.values():
        custom = target.unrecognized_fields.get("custom")
        value = custom.get("rollback_floor", 0) if isinstance(custom, dict) else 0
        if isinstance(value, int):
            floor = floor.raised(value, keys)
    return floor


def _check_allowed(target: ImageTarget, hardware: Collection[str], floor: int) -> None:
    if target.release < floor:
        raise TrustError(
            f"{target.path} is release {target.release} of {target.model}, and releases below {floor} "
            "must not be installed any more",
            "rollback_floor",
        )
    if not set(target.hardware) & set(hardware):
        raise TrustError(
            f"{target.path} runs on {', '.join(target.hardware)}, and this device is "
            f"{', '.join(sorted(hardware)) or 'of no known hardware'}",
            "hardware",
        )
