"""The work of updates on a real device: `Actions` over trust, transfers, slots, gates and applications."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.device_agent._actions import Context, PostponedError, WorkFailedError
from edgec.device_agent._conditions import check_conditions
from edgec.device_agent._config import UpdateSettings
from edgec.device_agent._engines import check_engine
from edgec.device_agent._events import Work
from edgec.device_agent._findings import FAIL
from edgec.device_agent._line import Cancel, Limits
from edgec.device_agent._slot_work import SlotWork
from edgec.device_agent._ways import Files, fetch_by_any_way
from edgec.errors import ArtifactError, EdgecError, TransferError, TrustError

if TYPE_CHECKING:
    from edgec.device_agent._findings import Verdict
    from edgec.device_agent._seams import Applications, Clock, Trial
    from edgec.device_agent._sources import Source
    from edgec.device_agent._state import Installed, Report
    from edgec.device_agent._windows import WindowTap
    from edgec.trust import AssignedTarget, DeviceTrust
    from edgec.trust import Source as MetadataSource

# Nothing is wrong with the artifact: the metadata must be signed anew, or the network come back.
_TRUST_PASSES = frozenset(("expired", "unreachable", "too_slow", "storage", "not_found"))
# The place has something else than it should: an old stick, a server that lies. The next one may be better.
_OF_THE_SOURCE = frozenset(("rollback", "epoch", "signature", "repository", "malformed", "too_large"))
# No source has it, will give it, or has what was signed: asking again in a while is no use.
_GONE = frozenset(("refused", "not_found", "digest", "length", "range", "redirects"))
_LOOK_S = 1.0
# Of an order that was signed so recently, the sources would hardly know more.
_FRESH_S = 60.0
_BLOCK = 2**20
_MOST_CONTENTS = 64


class AgentActions(SlotWork):
    """See `Actions`.

    Args:
        models: Directory of all models.
        settings: Of updates.
        clock: Of the agent.
        trust: Of the device.
        target: Returns what is assigned for a model, as far as the agent has it in mind.
        files: Returns the sources of a file by its place in the repository, the best first.
        chunks: Returns the broker as a source of a file; None for an agent without one.
        metadata: Returns where newer metadata may be, the best first.
        applications: Who uses the models.
        tap: Returns what was observed of a model.
        report: Puts a report where it is not lost.
        shadowed: Hears what the candidate of a model, by its digest, answered beside what serves.
        cache_dir: Where engines keep what they compile.
        trial: Tries a model before it may serve; None for `check_health`.
    """

    def __init__(
        self,
        models: Path,
        *,
        settings: UpdateSettings,
        clock: Clock,
        trust: DeviceTrust,
        target: Callable[[str], AssignedTarget | None],
        files: Files,
        chunks: Callable[[str], Source | None] | None,
        metadata: Callable[[], Sequence[MetadataSource]],
        applications: Sequence[Applications],
        tap: Callable[[str], WindowTap],
        report: Callable[[str, Report], None],
        shadowed: Callable[[str, str, Sequence[Verdict]], None] = lambda model, digest, verdicts: None,
        cache_dir: Path | None = None,
        trial: Trial | None = None,
    ) -> None:
        super().__init__(models, self._follow_all)
        self._settings = settings
        self._clock = clock
        self._trust = trust
        self._target = target
        self._files = files
        self._chunks = chunks
        self._metadata = metadata
        self._applications = applications
        self._tap = tap
        self._put_report = report
        self._shadowed = shadowed
        self._cache_dir = cache_dir
        self._trial = trial
        self._contents: dict[str, str] = {}

    def held(self, model: str) -> frozenset[str]:
        """Return the digests of files that applications have open."""
        return frozenset(digest for application in self._applications for digest in application.held(model))

    # -- before anything changes

    def admit(self, work: Work, context: Context) -> None:
        """Check that it is still assigned, the engine is here, and now is the time."""
        context.check()
        target = self._assigned(work)
        check_engine(target.custom.engine)
        check_conditions(self._settings, self._clock.wall())

    def fetch(self, work: Work, context: Context) -> None:
        """Fetch the artifact: by a patch to what serves where there is one, else whole."""
        from edgec.device_agent._fetch_update import fetch_update

        if self.here(work):
            return
        target, slots = self._assigned(work), self.slots(work.model)
        current = None if work.active is None else slots.artifact(work.active.slot)
        # The transfer takes its space at once, and would not find it twice.
        slots.release()
        path = slots.incoming(target.sha256)

        def fetch(files: Files, limits: Limits) -> None:
            cancel = _ContextCancel(context)
            fetch_update(
                target.custom,
                current,
                files,
                path,
                limits=limits,
                cancel=cancel,
                progress=context.progress,
            )

        try:
            fetch_by_any_way(
                fetch,
                target.location,
                files=self._files,
                chunks=self._chunks,
                limits=self._limits,
                check=context.check,
            )
        except TransferError as e:
            context.check()
            raise WorkFailedError(e.reason, str(e), passing=e.reason not in _GONE) from e

    def verify(self, work: Work, context: Context) -> None:
        """Compare length and digest with what was signed; read the manifest, and compare that too."""
        from edgec.artifact import Artifact

        path, target = self.located(work), self._assigned(work)
        if not _is_whole(path, target.length, target.sha256, context):
            path.unlink(missing_ok=True)
            detail = f"what was fetched is not the {target.path} that was signed for"
            raise WorkFailedError("digest", detail, passing=True)
        try:
            with Artifact.open(path) as artifact:
                manifest, content = artifact.manifest, artifact.content_digest
        except ArtifactError as e:
            raise WorkFailedError("artifact", str(e)) from e
        problems = [
            f"its {what} is {found}, and {said} was signed for"
            for what, found, said in (
                ("content digest", content, target.custom.content_digest),
                ("model", manifest.model, target.custom.model),
                ("version", manifest.model_version, target.custom.version),
            )
            if found != said
        ]
        if problems:
            raise WorkFailedError("manifest", f"{target.path}: {'; '.join(problems)}")
        self._remember(target.sha256, content)

    def confirm(self, work: Work, context: Context) -> None:
        """Look for newer metadata where that can be had, and check what is known in any case.

        What was signed and heard a moment ago, since the start, is not looked for again: a thousand devices
        that are told at once would otherwise ask for what they were just told.
        """
        target = self._assigned(work)
        for source in () if self._trust.is_fresh(_FRESH_S) else self._metadata():
            context.check()
            try:
                self._trust.recheck(target, source)
            except TrustError as e:
                if e.reason not in _TRUST_PASSES | _OF_THE_SOURCE:
                    raise
            else:
                return
        try:
            self._trust.recheck(target)
        except TrustError as e:
            if e.reason in _TRUST_PASSES:
                raise PostponedError(e.reason, str(e)) from e
            raise

    # -- judging

    def self_test(self, work: Work, context: Context) -> None:
        """Try the artifact in a process of its own, beside what serves."""
        from edgec.device_agent._health import HealthBudgets, check_health

        context.check()
        slots, settings = self.slots(work.model), self._settings
        trial = check_health if self._trial is None else self._trial
        report = trial(
            slots.artifact(work.slot),
            previous=None if work.active is None else slots.artifact(work.active.slot),
            budgets=HealthBudgets(
                latency_p95_ms=settings.latency_p95_ms or None, memory_mib=settings.memory_mib or None
            ),
            timeout_s=settings.health_timeout_s,
            cache_dir=self._cache_dir,
        )
        context.check()
        if not report.passed:
            first = report.findings[0].word
            detail = "; ".join(f"{f.word}: {f.message}" for f in report.findings)
            # An engine that is missing says nothing about the artifact.
            raise WorkFailedError(first, detail, passing=first == "engine")

    def shadow(self, work: Work, context: Context) -> None:
        """Let it see live inputs, wherever the model is used; too few of them stop nobody."""
        seconds = 0.0 if work.wanted is None else work.wanted.shadow_s
        digest = "" if work.wanted is None else work.wanted.digest
        candidate = self.slots(work.model).artifact(work.slot)
        verdicts: list[Verdict] = []
        try:
            for application in self._applications:
                verdict = application.shadow(work.model, candidate, seconds, lambda: not context.cancelled)
                context.check()
                if verdict is None:
                    continue
                verdicts.append(verdict)
                if verdict.outcome == FAIL:
                    words = "; ".join(f"{f.word}: {f.message}" for f in verdict.findings)
                    raise WorkFailedError(verdict.findings[0].word, words)
        finally:
            self._shadowed(work.model, digest, verdicts)

    def switch(self, work: Work, context: Context) -> None:
        """Make it current, and let all follow; what it does is counted from here on."""
        digest = self._content(work, self.candidate(work))
        if digest is not None:
            self._tap(work.model).forget(digest)
        super().switch(work, context)

    def watch(self, work: Work, context: Context) -> None:
        """Judge it by its calls, until its time is over or it has proven itself."""
        from edgec.device_agent._judging import ProbationCriteria, judge_probation

        wanted, tap = work.wanted, self._tap(work.model)
        if wanted is None:
            return
        mine = None if work.active is None else self._content(work, work.active)
        before = None if work.fallback is None else self._content(work, work.fallback)
        criteria = ProbationCriteria()
        end = self._clock.monotonic() + wanted.probation_s
        while True:
            left = end - self._clock.monotonic()
            if left > 0:
                context.wait(min(_LOOK_S, max(left, 0.01)))
            over = self._clock.monotonic() >= end
            seen = tap.seen()
            after = None if mine is None else seen.get(mine)
            if after is not None:
                verdict = judge_probation(
                    after, None if before is None else seen.get(before), criteria=criteria
                )
                if verdict.outcome == FAIL:
                    words = "; ".join(f"{f.word}: {f.message}" for f in verdict.findings)
                    raise WorkFailedError(verdict.findings[0].word, words)
                # Only calls that were looked into tell of NaN.
                if wanted.probation_calls and after.sampled >= wanted.probation_calls:
                    return
            if over:
                return

    def report(self, model: str, report: Report) -> None:
        """Put a report away."""
        self._put_report(model, report)

    # -- pieces

    def _assigned(self, work: Work) -> AssignedTarget:
        """Return the signed entry of the candidate."""
        digest = None if work.wanted is None else work.wanted.digest
        target = self._target(work.model)
        if target is None or target.sha256 != digest:
            try:
                target = self._trust.known().target(work.model)
            except TrustError as e:
                if e.reason in _TRUST_PASSES:
                    raise PostponedError(e.reason, str(e)) from e
                raise
        if target is None or target.sha256 != digest:
            detail = f"{work.model} {str(digest)[:12]} is not what is assigned any more"
            raise WorkFailedError("revoked", detail)
        return target

    def _follow_all(self, model: str, artifact: Path | None) -> None:
        for application in self._applications:
            application.follow(model, artifact)

    def _limits(self, **more: Any) -> Limits:
        rate = self._settings.max_bytes_per_s
        if rate:
            more |= {"bytes_per_s": rate, "least_bytes_per_s": min(256.0, rate / 2)}
        return Limits(**more)

    def _content(self, work: Work, installed: Installed) -> str | None:
        """Return the digest of an artifact's content, by which windows know it."""
        from edgec.artifact import Artifact

        # A file's digest pins that of its content.
        known = self._contents.get(installed.digest)
        if known is not None:
            return known
        try:
            with Artifact.open(self.slots(work.model).artifact(installed.slot)) as artifact:
                content = artifact.content_digest
        except (EdgecError, OSError):
            return None
        self._remember(installed.digest, content)
        return content

    def _remember(self, digest: str, content: str) -> None:
        if len(self._contents) >= _MOST_CONTENTS:
            self._contents.clear()
        self._contents[digest] = content


class _ContextCancel(Cancel):
    """A piece of work's end as a transfer asks for it."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context

    def is_set(self) -> bool:
        return self._context.cancelled


def _is_whole(path: Path, length: int, sha256: str, context: Context) -> bool:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) != length:
                return False
            file.seek(0)
            while block := file.read(_BLOCK):
                context.check()
                digest.update(block)
    except FileNotFoundError:
        return False
    return digest.hexdigest() == sha256
