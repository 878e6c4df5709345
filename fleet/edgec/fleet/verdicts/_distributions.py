"""Whether confidence, classes and outputs of a release are distributed as those of what runs beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import nsmallest
from operator import attrgetter

import numpy as np

from edgec.fleet.verdicts._evidence import FAIL, INCONCLUSIVE, PASS, DeviceEvidence, Finding, Limits
from edgec.fleet.verdicts._statistics import Estimate, Floats, Shares, distance, shares_of
from edgec.protocol._window import LEAST_CLASSES
from edgec.sketch import Histogram, population_stability

# Of fewer values, the index is mostly noise: of 1000 and 20 bins, its 99th percentile is 0.037.
LEAST_VALUES = 1000
_OTHER_CLASSES = -1
# There is a table with a row for each device, and there may be tens of thousands of classes.
_MOST_CLASSES = 4096
References = Mapping[str, Mapping[str, tuple[float, ...]]]
Arm = Sequence[DeviceEvidence]


def judge_distributions(
    candidate: Arm,
    control: Arm,
    references: References,
    limits: Limits,
    alpha: float,
    by_device: bool,
    *,
    template: Finding,
) -> Iterable[Finding]:
    """Compare confidence, outputs and classes; what either side does not tell is left out.

    Histograms with the same edges are compared with each other. Outputs of another release have edges at
    quantiles of its own calibration data: then each side is held against its own, and what counts is how much
    further the candidate has moved.

    Args:
        candidate: Devices that were heard of.
        control: Likewise.
        references: Shares per bin by digest and output.
        limits: `distance` and `shift` are looked at.
        alpha: Of each bound; the outputs share it.
        by_device: Whether devices are the units.
        template: With class of hardware and what it is held against.
    """
    slack = 1.0 if by_device else 2.0
    fit = replace(limits, distance=limits.distance * slack, shift=limits.shift * slack)
    template = replace(template, units="devices" if by_device else "inferences")
    pair = [[d.confidence for d in arm if d.confidence is not None] for arm in (candidate, control)]
    yield from _compare("confidence", pair[0], pair[1], fit, alpha, by_device, template)
    names = sorted({name for d in candidate for name in d.outputs} & {n for d in control for n in d.outputs})
    for name in names:
        mine, theirs = ([d.outputs[name] for d in arm if name in d.outputs] for arm in (candidate, control))
        told = replace(template, metric=f"output:{name}")
        if _same_edges([*mine, *theirs]):
            yield from _compare(f"output:{name}", mine, theirs, fit, alpha / len(names), by_device, told)
        else:
            known = [_references(arm, references, name) for arm in (candidate, control)]
            yield from _moved(name, mine, theirs, known, fit, alpha / len(names), by_device, told)
    yield from _classes(candidate, control, fit, alpha, by_device, template)


def _compare(
    metric: str,
    mine: Sequence[Histogram],
    theirs: Sequence[Histogram],
    limits: Limits,
    alpha: float,
    by_device: bool,
    template: Finding,
) -> Iterable[Finding]:
    if not mine or not theirs or not _same_edges([*mine, *theirs]):
        return
    told = replace(template, metric=metric)
    sides = _both(_matrix(mine), _matrix(theirs), by_device)
    if sides is None:
        yield _few(told, _total(mine), _total(theirs))
        return
    one, other = sides
    found = distance(one, other, None, alpha)
    merged = _merged(mine)
    shares = _merged(theirs).counts / other.n
    # Expected by chance alone, with as many values as are independent of each other: facts of the sketches.
    bias = (len(shares) - 1) * (one.inflation / one.n + other.inflation / other.n)
    index = population_stability(merged, shares.tolist()) - bias
    yield _judged(told, found, index, limits, one, other)


def _judged(
    told: Finding, found: Estimate, index: float, limits: Limits, one: Shares, other: Shares
) -> Finding:
    bad = found.low > limits.distance and index > limits.shift
    fine = found.figure <= limits.distance or index <= limits.shift
    what = told.metric.removeprefix("output:")
    return replace(
        told,
        outcome=FAIL if bad else PASS if fine else INCONCLUSIVE,
        figure=found.figure,
        limit=limits.distance,
        low=found.low,
        high=found.high,
        n=one.clusters or one.n,
        n_control=other.clusters or other.n,
        detail=f"{what}: distance of the distributions {found.figure:.3f}, stability index {index:.3f}",
    )


def _moved(
    name: str,
    mine: Sequence[Histogram],
    theirs: Sequence[Histogram],
    known: Sequence[tuple[float, ...] | None],
    limits: Limits,
    alpha: float,
    by_device: bool,
    told: Finding,
) -> Iterable[Finding]:
    """Compare how far each side has moved from its own calibration data."""
    if not (_same_edges(mine) and _same_edges(theirs)) or known[0] is None or known[1] is None:
        return
    if len(known[0]) != len(mine[0].counts) or len(known[1]) != len(theirs[0].counts):
        return
    sides = _both(_matrix(mine), _matrix(theirs), by_device)
    if sides is None:
        yield _few(told, _total(mine), _total(theirs))
        return
    one, other = sides
    ends = [np.cumsum(np.asarray(shares, float))[:-1] for shares in known]
    a, b = distance(one, None, ends[0], alpha), distance(other, None, ends[1], alpha)
    found = Estimate(figure=a.figure - b.figure, low=a.low - b.high, high=a.high - b.low)
    bias = (len(known[0]) - 1) * one.inflation / one.n
    index = population_stability(_merged(mine), known[0]) - bias
    judged = _judged(told, found, index, limits, one, other)
    detail = f"{name}: {a.figure:.3f} from its calibration data, {b.figure:.3f} without it; index {index:.3f}"
    yield replace(judged, against="reference", detail=detail)


def _classes(
    candidate: Arm, control: Arm, limits: Limits, alpha: float, by_device: bool, template: Finding
) -> Iterable[Finding]:
    """Compare the share of every class that either side names, of the most frequent where there are many.

    Windows that have to be small name the most frequent classes only, so that a class may be missing on one
    side and not on the other. What a window leaves out is at most as frequent as the rarest class that it
    names, and at least `LEAST_CLASSES` are named: a difference counts beyond what can be hidden like that,
    and others beyond what the other side would have if it named as few.
    """
    names = _most_frequent(d.classes for arm in (candidate, control) for d in arm)
    known = frozenset(names)
    candidate, control = ([_cut(d, known) for d in arm if d.classes] for arm in (candidate, control))
    pair = [[d.classes for d in arm] for arm in (candidate, control)]
    if not all(pair) or not names:
        return
    told = replace(template, metric="classes")
    places = {name: i for i, name in enumerate([*names, _OTHER_CLASSES])}
    tables = [np.zeros((len(arm), len(places))) for arm in pair]
    for table, arm in zip(tables, pair, strict=True):
        for row, classes in zip(table, arm, strict=True):
            for name, count in classes.items():
                row[places[name]] += count
    sides = _both(tables[0], tables[1], by_device, cumulative=False)
    if sides is None:
        yield _few(told, int(tables[0].sum()), int(tables[1].sum()))
        return
    mine, theirs = sides
    one, other = (replace(side, values=side.values[:-1], errors=side.errors[:-1]) for side in sides)
    hidden, found = max(map(_hidden, tables)), distance(one, other, None, alpha)
    beyond = Estimate(
        figure=max(found.figure - hidden, 0.0), low=max(found.low - hidden, 0.0), high=found.high
    )
    worst = names[int(np.abs(one.values - other.values).argmax())]
    detail = f"classes: the share of class {worst} differs by {found.figure:.3f}"
    if hidden:
        detail += f", and {hidden:.3f} of any class may be hidden among those that were not told"
    more = _unknown(mine, theirs, candidate, alpha), _unknown(theirs, mine, control, alpha)
    unknown = max(more, key=attrgetter("low"))
    if unknown.low > beyond.low:
        beyond = unknown
        detail = f"classes: the share of other classes differs by {unknown.figure:.3f}"
    yield replace(_judged(told, beyond, limits.shift * 2, limits, one, other), detail=detail)


def _most_frequent(told: Iterable[Mapping[int, int]]) -> list[int]:
    """Return the classes that have names, at most so many, in order."""
    calls: Counter[int] = Counter()
    for classes in told:
        calls.update(classes)
    del calls[_OTHER_CLASSES]
    return sorted(nsmallest(_MOST_CLASSES, calls, key=lambda name: (-calls[name], name)))


def _cut(device: DeviceEvidence, names: Collection[int]) -> DeviceEvidence:
    """Return what a device told without other names, as where the fleet has no place for them."""
    calls = sum(n for name, n in device.classes.items() if name != _OTHER_CLASSES and name not in names)
    if not calls:
        return device
    classes = {name: count for name, count in device.classes.items() if name in names}
    classes[_OTHER_CLASSES] = device.classes.get(_OTHER_CLASSES, 0) + calls
    return replace(device, classes=classes, named={**device.named, 0: device.named.get(0, 0) + calls})


def _unknown(one: Shares, other: Shares, arm: Arm, alpha: float) -> Estimate:
    """Return by how much one side has more of classes without a name than naming few of them explains.

    A device may have named many, and yet few in each of its windows, others each time.

    Args:
        one: Of that side; the last share is that of classes without a name.
        other: Of the other side.
        arm: Devices of that side.
        alpha: Of each bound.
    """
    frequent = np.concatenate([[0.0], np.cumsum(np.sort(other.values[:-1])[::-1])])
    calls = sum(sum(d.classes.values()) for d in arm)
    left_out = sum((1 - frequent[min(n, len(frequent) - 1)]) * k for d in arm for n, k in d.named.items())
    explained = float(left_out) / calls
    share = distance(replace(one, values=one.values[-1:], errors=one.errors[-1:]), None, np.zeros(1), alpha)
    return Estimate(figure=share.figure - explained, low=share.low - explained, high=share.high - explained)


def _hidden(table: Floats) -> float:
    """Return the largest share that any one class can have among those that were not named."""
    named, others = table[:, :-1].sum(axis=1), table[:, -1]
    return float(np.minimum(others, named / LEAST_CLASSES).sum() / table.sum())


def _references(arm: Arm, references: References, name: str) -> tuple[float, ...] | None:
    known = {references.get(d.digest, {}).get(name) for d in arm}
    return known.pop() if len(known) == 1 else None


def _both(
    mine: Floats, theirs: Floats, by_device: bool, *, cumulative: bool = True
) -> tuple[Shares, Shares] | None:
    sides = [table[table.sum(axis=1) > 0] for table in (mine, theirs)]
    if min(float(table.sum()) for table in sides) < LEAST_VALUES:
        return None
    units = by_device and min(len(table) for table in sides) >= 2
    one, other = (shares_of(table, cumulative=cumulative, by_device=units) for table in sides)
    return one, other


def _few(told: Finding, mine: int, theirs: int) -> Finding:
    what = told.metric.removeprefix("output:")
    detail = f"{what}: {mine} and {theirs} values are known, and {LEAST_VALUES} of each are needed"
    return replace(told, outcome=INCONCLUSIVE, n=mine, n_control=theirs, units="inferences", detail=detail)


def _same_edges(histograms: Sequence[Histogram]) -> bool:
    return all(np.array_equal(h.edges, histograms[0].edges) for h in histograms[1:])


def _matrix(histograms: Sequence[Histogram]) -> Floats:
    return np.array([h.counts for h in histograms], float)


def _merged(histograms: Sequence[Histogram]) -> Histogram:
    merged = Histogram(histograms[0].edges)
    for histogram in histograms:
        merged.merge(histogram)
    return merged


def _total(histograms: Sequence[Histogram]) -> int:
    return sum(h.count for h in histograms)
