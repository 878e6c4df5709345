"""Targets as plain data, there and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgec.errors import TargetError
from edgec.targets import load_target, target_from_dict, target_names


@pytest.mark.parametrize("name", target_names())
def test_plain_data_gives_the_target_back(name: str) -> None:
    target = load_target(name)
    assert target_from_dict(json.loads(json.dumps(target.to_dict())), "data") == target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "vax"}, "arch: unknown 'vax'"),
        ({"engines": []}, "engines: expected at least one"),
        ({"memory_mib": "much"}, "memory_mib: expected an integer"),
        ({"colour": "red"}, "colour: unknown key"),
    ],
)
def test_wrong_data_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        target_from_dict({**load_target("rpi5").to_dict(), **change}, "data")
