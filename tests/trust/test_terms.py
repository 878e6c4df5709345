"""On which terms an artifact is taken up: signed by the director, kept, and read with suspicion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.trust.simulator import DEVICE, Publisher, path_of, rechained, refused

from edgec.errors import TrustError
from edgec.trust import SignedWish, Terms, Wish, issue

OWN = f"director/{DEVICE}"


def test_terms_reach_the_device_and_stay_with_the_artifact(publisher: Publisher, tmp_path: Path) -> None:
    device, director = publisher.device(tmp_path / "device"), publisher.director
    terms = Terms(shadow_s=0, probation_s=60, probation_calls=5)
    first = director.assign(DEVICE, {"tiny": path_of("2")}, terms={"tiny": terms})
    assert device.update(publisher.repo).targets[0].terms == terms
    # Said again, or not at all, it is the same; another word is another epoch.
    assert director.assign(DEVICE, {"tiny": path_of("2")}).epoch == first.epoch
    assert director.assign(DEVICE, {"tiny": path_of("2")}, terms={"tiny": terms}).epoch == first.epoch
    other = director.assign(DEVICE, {"tiny": path_of("2")}, terms={"tiny": Terms(prepare=True)})
    assert other.epoch == first.epoch + 1
    assert device.update(publisher.repo).targets[0].terms == Terms(prepare=True)
    # Another artifact has terms of its own.
    director.assign(DEVICE, {"tiny": path_of("1")})
    assert device.update(publisher.repo).targets[0].terms == Terms()


def test_an_order_to_retry_is_a_new_epoch_and_outlives_the_next_assignment(publisher: Publisher) -> None:
    director = publisher.director
    epoch = director.assigned(DEVICE)[0]
    again = director.assign(DEVICE, {"tiny": path_of("1")}, retry=["tiny"])
    assert (again.epoch, director.terms(DEVICE)["tiny"].retry) == (epoch + 1, epoch + 1)
    # A device that was away for the order hears of it with the next one.
    director.assign(DEVICE, {"tiny": path_of("1")}, terms={"tiny": Terms(probation_s=5)})
    assert director.terms(DEVICE)["tiny"] == Terms(probation_s=5, retry=epoch + 1)
    once_more = director.assign(DEVICE, {"tiny": path_of("1")}, retry=["tiny"])
    assert director.terms(DEVICE)["tiny"].retry == once_more.epoch == epoch + 3


def test_terms_go_with_what_is_issued_for_a_fleet(publisher: Publisher, tmp_path: Path) -> None:
    terms = {"tiny": Terms(retry=9, shadow_s=30)}
    wish = Wish(device=DEVICE, epoch=9, models={"tiny": path_of("2")}, terms=terms)
    found = issue(publisher.director, [wish]).made[DEVICE]
    assert isinstance(found, SignedWish)
    device = publisher.device(tmp_path / "device")
    assert device.update(found.bundle.metadata).targets[0].terms == terms["tiny"]


@pytest.mark.parametrize("values", [{"shadow_s": -1}, {"probation_s": 31 * 86400}, {"probation_calls": -5}])
def test_terms_out_of_bounds_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(TrustError, match="must be from 0 to"):
        Terms(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "terms",
    [7, {"shadow_s": 10**9}, {"shadow_s": True}, {"retry": -1}, {"prepare": 1}, {"probation_s": "60"}],
)
def test_terms_of_a_director_that_is_broken_are_not_believed(
    publisher: Publisher, tmp_path: Path, terms: Any
) -> None:
    device = publisher.device(tmp_path / "device")
    before = device.update(publisher.repo)

    def broken(signed: Any) -> None:
        (target,) = signed.targets.values()
        target.unrecognized_fields["custom"]["terms"] = terms

    signers = {role: publisher.signers("director") for role in ("targets", "snapshot", "timestamp")}
    refused(device, rechained(publisher.files(), OWN, signers, {"targets": broken}), "malformed")
    assert device.epoch == before.epoch
