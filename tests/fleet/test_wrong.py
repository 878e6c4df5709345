"""What is wrong in a request is said in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic", reason="the views need the extra 'fleet'")
pytest.importorskip("sqlalchemy", reason="labels need the extra 'fleet'")

from pydantic import ValidationError

from edgec.errors import FleetError
from edgec.fleet._wrong import WORDS, problem_of
from edgec.fleet.store._labels import checked_labels
from edgec.fleet.views import LabelsWanted, RolloutWanted

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


def patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        yield from value.get("patternProperties", {})
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from patterns(part)


def test_every_pattern_of_the_api_has_words() -> None:
    assert set(patterns(json.loads(DOCUMENT.read_text("utf-8")))) == set(WORDS)


def test_a_name_that_cannot_be_is_told_what_may_be() -> None:
    with pytest.raises(ValidationError) as caught:
        RolloutWanted(model="a model", quorum=2)
    told = {str(error["loc"][0]): problem_of(error) for error in caught.value.errors()}
    assert told["model"].startswith("expected up to 64 letters (a-z, A-Z), digits, '.', '_', '+' and '-'")
    assert "less than or equal to 1" in told["quorum"]
    with pytest.raises(ValidationError) as caught:
        LabelsWanted(labels={"a b": "c", "site": ""})
    assert [problem_of(error)[:14] for error in caught.value.errors()] == ["expected up to", "expected 1 to "]


def test_labels_that_cannot_be_are_told_what_may_be() -> None:
    with pytest.raises(FleetError, match=r"'a b=c'; a key is up to 64 letters .* a value 1 to 256"):
        checked_labels({"a b": "c"})
    with pytest.raises(FleetError, match=r"'id'.* 'hardware' and 'id' are taken"):
        checked_labels({"id": "c"})
