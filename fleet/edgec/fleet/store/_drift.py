"""How far inputs and outputs have moved from calibration data, by artifact, class of hardware and hour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select

from edgec.fleet.store._database import Database, upsert
from edgec.fleet.store._hours import HOUR_S, HourOf
from edgec.fleet.store._schema import artifacts, drift, fleet_hours
from edgec.fleet.store._telemetry import DIGEST_CHARS

References = dict[tuple[str, str], dict[str, float]]
INPUT, OUTPUT = "input", "output"
# Figures are of so many hours at the most. Those of inputs, which follow the light, and people, are of as
# many as there are, and of fewer they say little.
DAY_H = 24


@dataclass(frozen=True, kw_only=True)
class DriftRow:
    """One figure.

    Attributes:
        model: Name of the model.
        digest: Begin of the artifact's.
        hardware: Class of hardware.
        output: Name of the output; of an input, that and the statistic: ``image/mean``.
        hour: Since 1970; the last one that it is about.
        hours: That it took to have enough values, this one included; of inputs, since when they are known,
            24 at the most.
        n: Values.
        psi: Population stability index against the artifact's reference, less its bias; 0 for no drift.
        ks: Largest difference of the distribution functions at the reference's quantiles, 0 to 1.
        kind: ``input`` or ``output``, what it is of.
    """

    model: str
    digest: str
    hardware: str
    output: str
    hour: int
    hours: int
    n: int
    psi: float
    ks: float
    kind: str = OUTPUT


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What one artifact did on a class of hardware, and what it is held against.

    Attributes:
        model: Name of the model.
        digest: Begin of the artifact's.
        hardware: Class of hardware.
        references: Quantiles on calibration data, by kind and name as rows have them.
        hours: By hour since 1970.
    """

    model: str
    digest: str
    hardware: str
    references: References
    hours: dict[int, HourOf]


class Drift:
    """All figures of drift."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def observed(self, first_hour: int, last_hour: int) -> list[Observed]:
        """Return what artifacts with a reference did in some hours, however many devices, a row per hour."""
        with self._database.read() as connection:
            references = _references(connection)
            query = select(fleet_hours).where(fleet_hours.c.hour.between(first_hour, last_hour))
            query = query.where(fleet_hours.c.sampled > 0)
            found: dict[tuple[str, str, str], dict[int, HourOf]] = {}
            for row in connection.execute(query).mappings():
                part = HourOf.read_row(dict(row)) if (row["model"], row["digest"]) in references else None
                if part is not None:
                    hours = found.setdefault((row["model"], row["digest"], row["hardware"]), {})
                    hours[row["hour"]] = part
        return [
            Observed(model=m, digest=d, hardware=h, references=references[m, d], hours=hours)
            for (m, d, h), hours in sorted(found.items())
        ]

    def write(self, rows: Sequence[DriftRow]) -> None:
        """Write figures down, in place of those of the same hour."""
        with self._database.write() as connection:
            upsert(connection, drift, [dict(vars(row)) for row in rows])

    def newest(self, since: float) -> list[DriftRow]:
        """Return the newest figures of everything that was measured since."""
        key = (drift.c.model, drift.c.digest, drift.c.hardware, drift.c.kind, drift.c.output)
        last = select(*key, func.max(drift.c.hour).label("hour")).where(drift.c.hour >= int(since // HOUR_S))
        last_of = last.group_by(*key).subquery()
        on = [column == last_of.c[column.name] for column in (*key, drift.c.hour)]
        condition: Any = on[0]
        for one in on[1:]:
            condition &= one
        with self._database.read() as connection:
            rows = connection.execute(select(drift).join(last_of, condition).order_by(*key)).all()
        return [DriftRow(**row._asdict()) for row in rows]

    def history(self, model: str, *, since: float, until: float) -> list[DriftRow]:
        """Return the figures of a model over some hours, in order."""
        query = select(drift).where(
            drift.c.model == model, drift.c.hour.between(int(since // HOUR_S), int(until // HOUR_S))
        )
        query = query.order_by(drift.c.hour, drift.c.digest, drift.c.hardware, drift.c.kind, drift.c.output)
        with self._database.read() as connection:
            return [DriftRow(**row._asdict()) for row in connection.execute(query)]

    def prune(self, now: float, *, keep_s: float = 400 * 86400) -> int:
        """Remove what is older; return how many rows."""
        with self._database.write() as connection:
            old = delete(drift).where(drift.c.hour < int((now - keep_s) // HOUR_S))
            return connection.execute(old).rowcount


def _references(connection: Connection) -> dict[tuple[str, str], References]:
    names = ("model", "sha256", "reference", "input_reference")
    found = {}
    for row in connection.execute(select(*(artifacts.c[name] for name in names))):
        references: References = {(OUTPUT, name): quantiles for name, quantiles in row.reference.items()}
        for name, statistics in row.input_reference.items():
            references |= {(INPUT, f"{name}/{s}"): quantiles for s, quantiles in statistics.items()}
        if references:
            found[row.model, row.sha256[:DIGEST_CHARS]] = references
    return found
