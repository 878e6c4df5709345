"""Which devices are meant: ``site=lab, ring!=prod, camera``, over labels, hardware and id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, or_, select, true

from edgec.errors import FleetError
from edgec.fleet._wrong import LABEL_VALUE, NAME
from edgec.fleet.store._schema import devices, labels

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
_VALUE = r"[A-Za-z0-9_.:@/ -]{1,256}"
_TERM = re.compile(rf"(!?)({_NAME})(?:(!?=)({_VALUE}(?:\|{_VALUE})*))?")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One condition: a label is there, or has one of some values; or the contrary."""

    key: str
    values: tuple[str, ...] = ()
    negated: bool = False


def parse_query(query: str) -> tuple[Term, ...]:
    """Return the conditions of a query, all of which must hold; none of an empty one.

    Between commas: ``key`` (the label is there), ``!key``, ``key=a|b``, ``key!=a``. ``hardware`` and ``id``
    are what the device is, not labels.

    Raises:
        FleetError: It is no query (``reason`` ``query``); the message says where.
    """
    terms = []
    for part in filter(None, (p.strip() for p in query.split(","))):
        match = _TERM.fullmatch(part)
        if match is None or (match[1] and match[3]):
            raise FleetError(f"expected key, !key, key=a|b or key!=a, got {part!r}", "query")
        values = tuple(v.strip() for v in match[4].split("|")) if match[4] else ()
        terms.append(Term(key=match[2], values=values, negated=bool(match[1]) or match[3] == "!="))
    return tuple(terms)


def matches(terms: tuple[Term, ...], device: str, hardware: str, own: Mapping[str, str]) -> bool:
    """Return whether all conditions hold for a device."""
    known = {**own, "hardware": hardware, "id": device}
    return all((t.key in known and (not t.values or known[t.key] in t.values)) != t.negated for t in terms)


def where(terms: tuple[Term, ...]) -> ColumnElement[bool]:
    """Return the same for the table of devices."""
    return and_(true(), *(_condition(term) for term in terms))


def checked_labels(own: Mapping[str, str]) -> dict[str, str]:
    """Return labels that can be asked for.

    Raises:
        FleetError: A key or value cannot be (``reason`` ``query``).
    """
    wrong = [f"{k}={v}" for k, v in own.items() if not (re.fullmatch(_NAME, k) and re.fullmatch(_VALUE, v))]
    wrong += [k for k in own if k in ("hardware", "id")]
    if wrong:
        raise FleetError(
            f"these cannot be labels: {', '.join(map(repr, wrong))}; a key is {NAME}, a value "
            f"{LABEL_VALUE}; the keys 'hardware' and 'id' are taken",
            "query",
        )
    return dict(own)


def _condition(term: Term) -> ColumnElement[bool]:
    columns = {"hardware": devices.c.hardware, "id": devices.c.id}
    if term.key in columns:
        found: ColumnElement[bool] = columns[term.key].in_(term.values) if term.values else true()
    else:
        same = and_(labels.c.device == devices.c.id, labels.c.key == term.key)
        if term.values:
            same = and_(same, or_(*(labels.c.value == value for value in term.values)))
        found = exists(select(labels.c.key).where(same))
    return ~found if term.negated else found
