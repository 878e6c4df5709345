"""The work of updates that is done on disk alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgec.device_agent._actions import Context, PostponedError, WorkFailedError
from edgec.device_agent._events import Work
from edgec.device_agent._slots import Slots
from edgec.device_agent._state import Installed
from edgec.errors import AgentError

if TYPE_CHECKING:
    from pathlib import Path


_IN_USE_S = 15.0


def _stay(model: str, artifact: Path | None) -> None:
    """Tell no one."""


@contextmanager
def _damage() -> Iterator[None]:
    """Say that it is the disk that has changed, for which no artifact is to blame."""
    try:
        yield
    except AgentError as e:
        raise WorkFailedError("slot_damaged", str(e), passing=True) from e


class SlotWork:
    """Reserve, stage, switch, commit, clean, roll back and remove: the part of `Actions` that is on disk.

    Args:
        models: Directory of all models.
        follow: Called after what serves has changed, with the model and the path of the artifact, None for
            nothing; returns when the sessions of this process have followed. What it raises is a failure of
            the switch.
    """

    def __init__(self, models: Path, follow: Callable[[str, Path | None], None] = _stay) -> None:
        self._models = models
        self._follow = follow

    def slots(self, model: str) -> Slots:
        """Return the slots of a model."""
        return Slots(self._models, model)

    def candidate(self, work: Work) -> Installed:
        """Return the candidate as it lies, or will lie, in its slot."""
        wanted = work.wanted
        if wanted is None:
            raise WorkFailedError("nothing_wanted", f"{work.name} of {work.model} has no candidate")
        return Installed(digest=wanted.digest, length=wanted.length, slot=work.slot, target=wanted.target)

    def located(self, work: Work) -> Path:
        """Return where the candidate's bytes are or go: its slot where it is staged, else the download."""
        slots, candidate = self.slots(work.model), self.candidate(work)
        if slots.installed(candidate.slot) == candidate:
            return slots.artifact(candidate.slot)
        return slots.incoming(candidate.digest)

    def here(self, work: Work) -> bool:
        """Return whether the candidate is in its slot, whole, so that nothing needs to be fetched."""
        return self.slots(work.model).whole(self.candidate(work))

    def held(self, model: str) -> frozenset[str]:
        """Return the digests of files that applications have open, beside those that the update knows of."""
        return frozenset()

    def reserve(self, work: Work, context: Context) -> None:
        """Make sure of the space for the download."""
        context.check()
        if not self.here(work):
            candidate = self.candidate(work)
            keep = (*work.keep, *self.held(work.model))
            self.slots(work.model).reserve(candidate.digest, candidate.length, keep)

    def stage(self, work: Work, context: Context) -> None:
        """Put the candidate into its slot; one to be used again must be there already."""
        if work.reuse and not self.here(work):
            raise WorkFailedError("slot_damaged", f"slot {work.slot} of {work.model} has changed on disk")
        there = self.slots(work.model).installed(work.slot)
        held = self.held(work.model)
        # Where nothing serves, no slot comes free by an update, and the device would wait for as long as the
        # application lives. What it has open stays its own: files are replaced by a rename.
        serves = work.active is not None
        if serves and there is not None and there.digest in held and there != self.candidate(work):
            detail = f"an application still runs {there.digest:.12}, which lies where the update goes"
            raise PostponedError("in_use", detail, retry_s=_IN_USE_S)
        with context.deciding(), _damage():
            self.slots(work.model).stage(self.candidate(work))

    def switch(self, work: Work, context: Context) -> None:
        """Make the candidate's slot current."""
        self._serve(work, context, self.candidate(work), proven=False)

    def commit(self, work: Work, context: Context) -> None:
        """Tell readers that what serves is proven."""
        if work.active is not None:
            with context.deciding():
                self.slots(work.model).prove(work.active)

    def roll_back(self, work: Work, context: Context) -> None:
        """Make the fallback current again."""
        self._serve(work, context, work.fallback, proven=True)

    def clean(self, work: Work, context: Context) -> None:
        """Remove what is in no slot that counts, and describe again what serves."""
        slots = self.slots(work.model)
        with context.deciding():
            slots.clean((*work.keep, *self.held(work.model)))
            if work.active is not None and slots.current() == work.active.slot:
                slots.prove(work.active)

    def remove(self, work: Work, context: Context) -> None:
        """Take the model out of service, and its artifacts off the disk."""
        self._serve(work, context, None, proven=False)
        with context.deciding():
            self.slots(work.model).clean(())

    def _serve(self, work: Work, context: Context, installed: Installed | None, *, proven: bool) -> None:
        slots = self.slots(work.model)
        with context.deciding(), _damage():
            if installed is None:
                slots.close()
            else:
                slots.switch(installed, proven=proven)
        self._follow(work.model, None if installed is None else slots.artifact(installed.slot))
