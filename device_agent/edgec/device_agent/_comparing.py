"""What two models say of the same inputs, before one replaces the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgec.device_agent._findings import Finding, wilson_bounds
from edgec.device_agent._trial_inputs import Feed
from edgec.runtime import Session
from edgec.runtime._shadow import same_to_most


def compare(
    session: Session, previous: Session, feeds: Sequence[Feed], budgets: Mapping[str, Any]
) -> tuple[list[Finding], dict[str, float]]:
    """Return why a model should not follow the previous one, and what was measured.

    Few inputs say little: it must be all but sure (95 %) that they agree on less than the budget says.

    Args:
        session: Of the new model.
        previous: Of the one before, with the same inputs and outputs.
        feeds: Inputs that are usual ones.
        budgets: ``agreement`` and ``scale`` of `HealthBudgets`.
    """
    pairs = [(session.run(feed), previous.run(feed)) for feed in feeds]
    agreed = sum(same_to_most(theirs, mine) for mine, theirs in pairs)
    figures = {"compared": float(len(pairs)), "agreement": agreed / len(pairs) if pairs else 1.0}
    found = []
    if wilson_bounds(agreed, len(pairs))[1] < budgets["agreement"]:
        message = f"it agrees with the previous model on {agreed} of {len(pairs)} usual inputs"
        found.append(
            Finding(
                word="agreement", message=message, figure=figures["agreement"], limit=budgets["agreement"]
            )
        )
    for spec in session.outputs:
        if np.dtype(spec.dtype).kind == "f" and pairs:
            mine, theirs = (_spread([pair[i][spec.name] for pair in pairs]) for i in (0, 1))
            found += _scales(spec.name, mine, theirs, budgets["scale"])
    return [*found, *_labels(session, previous, agreed, len(pairs))], figures


def _spread(values: Sequence[Any]) -> float:
    joined = np.concatenate([value.ravel() for value in values]).astype(np.float64)
    finite = joined[np.isfinite(joined)]
    return float(finite.std()) if finite.size else 0.0


def _scales(name: str, mine: float, theirs: float, limit: float) -> list[Finding]:
    if not mine or not theirs or 1 / limit <= mine / theirs <= limit:
        return []
    ratio = mine / theirs
    message = f"output {name!r} spreads over {ratio:.3g} times as much as that of the previous model"
    return [Finding(word="scale", message=message, figure=ratio, limit=limit if ratio > 1 else 1 / limit)]


def _labels(session: Session, previous: Session, agreed: int, n: int) -> list[Finding]:
    """Return a finding where the same classes have other names: the numbers agree, the words do not."""
    mine, theirs = (s.manifest.pipeline.labels if s.manifest.pipeline else () for s in (session, previous))
    if mine == theirs or sorted(mine) != sorted(theirs) or not n or agreed / n < 0.5:
        return []
    moved = sum(a != b for a, b in zip(mine, theirs, strict=True))
    message = f"{moved} of {len(mine)} labels are at other places, and the outputs agree with the old ones"
    return [Finding(word="labels", message=message, figure=float(moved), limit=0.0)]
