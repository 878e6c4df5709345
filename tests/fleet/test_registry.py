"""Releases: what is taken in, what is refused, and why a device does not have the newest one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the registry needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the registry needs the extra 'fleet'")
pytest.importorskip("tuf", reason="the registry needs the extra 'fleet'")

from sqlalchemy import select
from tests.trust.simulator import KEYS

from edgec.artifact import Artifact, Budgets, Manifest, TensorSpec, pack
from edgec.errors import ArtifactError, FleetError
from edgec.fleet._proof import failures, warnings_of
from edgec.fleet.registry import Registry
from edgec.fleet.rollouts import Plan, Stage
from edgec.fleet.store import Store
from edgec.fleet.store._schema import artifacts
from edgec.fleet.why import why
from edgec.protocol import ModelReport, Presence, Reported
from edgec.runtime.testing import onnxruntime_spec
from edgec.trust import ImageRepository, KeyRing, generate_key, open_repositories

NOW = 1767225600.0
pytestmark = pytest.mark.slow
GOOD: dict[str, Any] = {"parity": {"passed": True, "max_abs_error": 0.0}, "latency_ms": {"p50": 2.0}}


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name, role in KEYS:
        generate_key(folder, name, role)
    return folder


@pytest.fixture
def image(tmp_path: Path, keys: Path) -> ImageRepository:
    made, director = open_repositories(tmp_path / "repo", KeyRing((keys,)), clock=lambda: NOW)
    made.initialise()
    director.initialise()
    made.release()
    director.release()
    return made


@pytest.fixture
def registry(store: Store, image: ImageRepository) -> Registry:
    return Registry(store, image)


def artifact(
    folder: Path, version: str, *, target: str = "cpu", report: dict[str, Any] | None = GOOD, **more: Any
) -> io.BytesIO:
    manifest = Manifest(
        model="m",
        model_version=version,
        target=target,
        engine=onnxruntime_spec(weights=False),
        inputs=(TensorSpec("x", "float32", (1, 4)),),
        outputs=(TensorSpec("y", "float32", (1, 3)),),
        reference={"y": {"0.5": 0.0}},
        input_reference={"x": {"mean": {"0.5": 0.25}}},
        **more,
    )
    path = folder / "made.edgec"
    pack(path, manifest, {"model.onnx": f"{version} {target} {more}".encode()}, report=report)
    return io.BytesIO(path.read_bytes())


def upload(registry: Registry, file: io.BytesIO, **more: Any) -> Any:
    return registry.upload(file, now=NOW, actor="ann", **more)


def test_the_report_of_a_whole_build_is_read_at_its_artifact(registry: Registry, tmp_path: Path) -> None:
    build = {"edgec": "0.1.0", "artifacts": [{"target": "cpu", **GOOD}]}
    assert upload(registry, artifact(tmp_path, "1", report=build)).report == build
    failed = {"target": "cpu", "parity": {"passed": False}}
    with pytest.raises(FleetError, match="parity failed"):
        upload(registry, artifact(tmp_path, "2", report={"artifacts": [failed]}))
    with pytest.raises(FleetError, match="parity was not run"):
        upload(registry, artifact(tmp_path, "2", report={"artifacts": [{"target": "other", **GOOD}, 7]}))


def test_a_release_has_artifacts_for_several_targets(
    registry: Registry, tmp_path: Path, store: Store
) -> None:
    cpu = upload(registry, artifact(tmp_path, "1"), hardware_names=["cpu", "cpu-old"])
    npu = upload(registry, artifact(tmp_path, "1", target="npu"))
    assert (cpu.number, npu.number) == (1, 1)
    assert cpu.report == GOOD
    assert registry.by_hardware("m", "1") == {"cpu": cpu.sha256, "cpu-old": cpu.sha256, "npu": npu.sha256}
    assert registry.path(cpu.sha256).read_bytes() == artifact(tmp_path, "1").getvalue()
    second = upload(registry, artifact(tmp_path, "2"))
    assert registry.releases() == [("m", "2", 2), ("m", "1", 1)]
    assert registry.image.targets()[second.path].sha256 == second.sha256
    assert upload(registry, artifact(tmp_path, "2")) == second
    assert [e.action for e in store.audit.entries()] == ["artifact.upload"] * 3
    with store.database.read() as connection:
        kept = connection.execute(select(artifacts.c.reference, artifacts.c.input_reference)).all()
    assert [tuple(row) for row in kept] == [({"y": {"0.5": 0.0}}, {"x": {"mean": {"0.5": 0.25}}})] * 3
    assert list((registry.image.directory / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"report": None}, "it has no report"),
        ({"report": {}}, "parity was not run"),
        ({"report": {"parity": {"passed": False}}}, "parity failed"),
        ({"report": {**GOOD, "accuracy": {"verdict": "fail"}}}, "accuracy: fail"),
        ({"report": {**GOOD, "over_budget": "size 3 MB"}}, "did not pass: over budget: size 3 MB;"),
        ({"budgets": Budgets(latency_ms=1.0)}, "over budget: latency_ms is 2, above the budget of 1"),
        ({"budgets": Budgets(size_bytes=10)}, "above the budget of 10"),
    ],
)
def test_what_did_not_pass_is_refused_unless_a_person_says_why(
    registry: Registry, tmp_path: Path, more: dict[str, Any], problem: str
) -> None:
    with pytest.raises(FleetError, match=problem) as caught:
        upload(registry, artifact(tmp_path, "1", **more), override=" ")
    assert caught.value.reason == "refused"
    assert registry.releases() == []
    assert registry.image.targets() == {}
    taken = upload(registry, artifact(tmp_path, "1", **more), override="tried by hand")
    assert taken.override == "tried by hand"
    # The same file again was judged already.
    assert upload(registry, artifact(tmp_path, "1", **more)) == taken


def test_what_its_owner_chose_not_to_prove_is_taken_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="compiling needs the extra 'compile'")
    from tests.compiler.networks import cnn

    from edgec.compiler import CompileOptions, compile_model

    monkeypatch.setattr("edgec.compiler.accuracy.ENOUGH_AGREEMENT", 1.1)
    (tmp_path / "cnn.onnx").write_bytes(cnn().SerializeToString())
    images = np.random.default_rng(6).standard_normal((5, 1, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "few.npz", image=images, labels=np.zeros(5, int))

    def warnings(version: str, **more: Any) -> list[str]:
        options = CompileOptions(measure_s=0.05, workers=0, precision="fp32", version=version, **more)
        made = compile_model(
            tmp_path / "cnn.onnx",
            ["cpu-x86_64"],
            tmp_path / version,
            evaluation=tmp_path / "few.npz",
            metric="top1",
            options=options,
        )
        with Artifact.open(made.artifacts[0]) as opened:
            assert failures(opened.manifest, opened.report, opened.size_bytes) == []
            return warnings_of(opened.report, "cpu-x86_64")

    assert warnings("1", max_drop=None) == ["no accuracy gate: it was compiled with --max-drop none"]
    assert warnings("2", accept_inconclusive=True) == [
        "accuracy inconclusive: it was accepted by --accept-inconclusive"
    ]
    monkeypatch.undo()
    assert warnings("3", accept_inconclusive=True) == [], "it passed, whatever would have been accepted"


def test_a_version_never_changes(registry: Registry, tmp_path: Path) -> None:
    upload(registry, artifact(tmp_path, "1"))
    with pytest.raises(FleetError, match="compile it with a new version"):
        upload(registry, artifact(tmp_path, "1", provenance={"tool": "another"}))


def test_a_refused_upload_changes_nothing_and_the_same_file_mends_what_is_signed(
    registry: Registry, tmp_path: Path, store: Store
) -> None:
    def signed() -> tuple[dict[str, Any], bytes]:
        timestamp = (registry.image.directory / "image" / "timestamp.json").read_bytes()
        return registry.image.targets(), timestamp

    file = artifact(tmp_path, "1")
    made = upload(registry, file, hardware_names=["rare", "cpu", "rare"])
    before = signed()
    for wanted in (["rpi5"], ["cpu"], ["cpu", "rare", "rpi5"]):
        with pytest.raises(FleetError, match="in the fleet already, for cpu, rare, and") as caught:
            upload(registry, io.BytesIO(file.getvalue()), hardware_names=wanted)
        assert caught.value.reason == "conflict"
    with pytest.raises(FleetError, match="expected names of hardware") as caught:
        upload(registry, artifact(tmp_path, "2"), hardware_names=["raspberry pi", ""])
    assert caught.value.reason == "invalid"
    for again in ([], ["cpu", "rare"]):
        assert upload(registry, io.BytesIO(file.getvalue()), hardware_names=again) == made
    assert signed() == before, "the same file changes nothing either"

    artifact(tmp_path, "1")
    registry.image.publish(tmp_path / "made.edgec", hardware=["cpu"])
    registry.image.release()
    assert registry.image.targets()[made.path].hardware == ("cpu",)
    assert upload(registry, io.BytesIO(file.getvalue())) == made
    assert set(registry.image.targets()[made.path].hardware) == {"cpu", "rare"}
    before = signed()
    for damage in (Path.unlink, lambda path: path.write_bytes(b"half")):
        damage(registry.path(made.sha256))
        assert upload(registry, io.BytesIO(file.getvalue())) == made
        assert registry.path(made.sha256).read_bytes() == file.getvalue()
    assert signed() == before, "a lost file is no news"
    assert [e.action for e in store.audit.entries()] == ["artifact.upload"]


def test_what_is_damaged_or_too_large_leaves_nothing(registry: Registry, tmp_path: Path) -> None:
    data = bytearray(artifact(tmp_path, "1").getvalue())
    data[5000] ^= 1
    with pytest.raises(ArtifactError):
        upload(registry, io.BytesIO(bytes(data)))
    with pytest.raises(ArtifactError, match=r"^the file that was sent: not an edgec artifact"):
        upload(registry, io.BytesIO(b"# a text\n" * 100))
    with pytest.raises(FleetError, match="more than 100 bytes"):
        upload(registry, artifact(tmp_path, "1"), max_bytes=100)
    assert list((registry.image.directory / "incoming").iterdir()) == []
    assert registry.releases() == []
    with pytest.raises(FleetError, match="no artifact"):
        registry.get("f" * 64)
    with pytest.raises(FleetError, match="no release"):
        registry.by_hardware("m", "1")


def hear(store: Store, device: str, seq: int, active: str | None, state: str = "idle", **more: Any) -> None:
    own = ModelReport(state=state, active=active, since=NOW, **more)
    epoch = store.devices.get(device).epoch
    reported = Reported(boot_epoch=1, boot_id="b1", seq=seq, epoch=epoch, models={"m": own}, sent_at=NOW)
    store.devices.heard(device, reported, NOW)


def test_why_says_that_the_newest_version_is_the_one_uploaded_last(
    store: Store, registry: Registry, tmp_path: Path
) -> None:
    store.devices.enrol("d1", "cpu", own={}, now=NOW, actor="ann")
    old = upload(registry, artifact(tmp_path, "1"))
    upload(registry, artifact(tmp_path, "3"))
    upload(registry, artifact(tmp_path, "2"))
    hear(store, "d1", 0, old.sha256)
    plain = "nobody has rolled out version 2, which was uploaded last"
    assert (why(store, "d1", "m").newest, why(store, "d1", "m").detail) == ("2", plain)
    artifacts = registry.by_hardware("m", "3")
    stages = (Stage(percent=100, soak_s=1),)
    plan = Plan(id="r1", name="r", model="m", version="3", artifacts=artifacts, stages=stages)
    store.rollouts.create(plan, now=NOW, actor="ann")
    store.rollouts.order("r1", "start", now=NOW, actor="ann")
    store.rollouts.tick("r1", NOW)
    assert why(store, "d1", "m").detail == f"{plain}; it is being given version 3"


def test_why_says_what_keeps_a_device_from_the_newest_version(
    store: Store, registry: Registry, tmp_path: Path
) -> None:
    def reason() -> str:
        return why(store, "d1", "m").reason

    with pytest.raises(FleetError, match="no device"):
        why(store, "d1", "m")
    store.devices.enrol("d1", "cpu", own={"site": "lab"}, now=NOW, actor="ann")
    assert reason() == "no_release"
    old = upload(registry, artifact(tmp_path, "1"))
    new = upload(registry, artifact(tmp_path, "2"))
    hear(store, "d1", 0, old.sha256)
    found = why(store, "d1", "m")
    assert (found.reason, found.has, found.newest) == ("no_rollout", "1", "2")
    artifacts = registry.by_hardware("m", "2")
    base = Plan(id="r1", name="r", model="m", version="2", artifacts=artifacts, query="site=hall")
    store.rollouts.create(base, now=NOW, actor="ann")
    assert reason() == "not_in_query"
    stages = (Stage(percent=100, soak_s=1),)
    plan = Plan(id="r2", name="r", model="m", version="2", artifacts=artifacts, stages=stages)
    store.rollouts.create(plan, now=NOW + 1, actor="ann")
    assert reason() == "draft"
    for word, expected in [("start", "later_stage"), ("pause", "paused"), ("resume", "later_stage")]:
        store.rollouts.order("r2", word, now=NOW, actor="ann")
        assert reason() == expected
    store.rollouts.tick("r2", NOW)
    assert reason() == "not_noticed"
    will = Presence(online=False, boot_epoch=1, boot_id="b1", connection=1, agent="a", sent_at=NOW)
    store.devices.heard("d1", will, NOW)
    assert reason() == "offline"
    hear(store, "d1", 1, old.sha256, "downloading", candidate=new.sha256)
    assert reason() == "under_way"
    hear(store, "d1", 2, old.sha256, "idle", candidate=new.sha256, reason="disk_full")
    found = why(store, "d1", "m")
    assert (found.reason, found.rollout) == ("failed", "r2")
    assert "disk_full" in found.detail
    hear(store, "d1", 3, new.sha256)
    assert reason() == "has_it"
    hear(store, "d1", 4, old.sha256)
    store.rollouts.quarantine(new.sha256, now=NOW, actor="ann", reason="bad")
    assert reason() == "quarantined"
    store.rollouts.release_quarantine(new.sha256, now=NOW, actor="ann", reason="good")
    store.rollouts.order("r2", "undo", now=NOW, actor="ann")
    store.rollouts.tick("r2", NOW)
    assert reason() == "undone"
    hear(store, "d1", 5, new.sha256)
    assert reason() == "has_it"
    store.devices.revoke("d1", now=NOW, actor="ann")
    assert reason() == "revoked", "it had the newest, and is not believed any more"
