"""The models of a server, by name and version: loaded, unloaded, replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from edgec.artifact import Manifest, TensorSpec, source_digest
from edgec.errors import EdgecError, RequestError, ServingError
from edgec.runtime._isolation import CRASH_LOOP
from edgec.serving._lanes import Lane
from edgec.serving._metrics import ModelMetrics
from edgec.serving._models import Prediction, ServedModel, measure
from edgec.serving._scheduling import ScheduledModel, Scheduling, session_of
from edgec.serving._wire import Plan

if TYPE_CHECKING:
    from edgec.runtime import Observer

Loader: TypeAlias = "Callable[[Path], ServedModel]"
PREDICT = ".predict"


@dataclass(eq=False)
class Entry:
    """A model as it is served under one name and version.

    Attributes:
        name: In the address.
        version: In the address.
        platform: What runs it: ``edgec_onnxruntime``.
        model: What runs an inference.
        inputs: What it takes.
        outputs: What it gives.
        lane: Whose turn it is; the faces of one model share it.
        metrics: What is counted.
        digest: Of the artifact's content: ``sha256:5e8f...``; empty for what is no artifact.
        source_digest: Of the model file that it was compiled from; empty where that is not known.
        inline_bytes: Requests up to this size run on the event loop; 0 for none.
        users: Requests that hold it now.
        plans: Of headers seen lately.
    """

    name: str
    version: str
    platform: str
    model: ServedModel | Prediction
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    lane: Lane
    metrics: ModelMetrics
    digest: str = ""
    source_digest: str = ""
    inline_bytes: int = 0
    users: int = 0
    plans: dict[bytes, Plan] = field(default_factory=dict)


@dataclass(eq=False)
class Loaded:
    """An artifact in memory.

    Attributes:
        model: What was loaded.
        entries: Its faces: the bare tensors, and the whole pipeline where it has one.
        run_s: Median time of one inference, in seconds.
        input_bytes: Size of the inputs that took it.
    """

    model: ServedModel
    entries: list[Entry]
    run_s: float
    input_bytes: int


@dataclass(eq=False)
class Slot:
    """A place for one artifact.

    Attributes:
        path: Of the artifact.
        name: Of the model.
        version: Of the model that was loaded last.
        loaded: None where it is not.
        reason: Why it is not, or why it could not be loaded again.
    """

    path: Path
    name: str
    version: str
    loaded: Loaded | None = None
    reason: str = ""

    @property
    def is_crashing(self) -> bool:
        """Whether the process of a model that runs in one of its own fails again and again."""
        session = None if self.loaded is None else session_of(self.loaded.model)
        return session is not None and session.state == CRASH_LOOP

    def holds(self, entry: Entry) -> bool:
        """Return whether an entry is of the artifact that is loaded here."""
        return self.loaded is not None and entry in self.loaded.entries


class Repository:
    """The models of a server. For one event loop; `open` may run in a thread.

    Args:
        paths: Of the artifacts; nothing else is ever loaded.
        loader: Loads an artifact.
        executor: Whose threads run the models.
        width: Inferences of one model that run at once.
        queue: Requests for one model that wait.
        observe: Whether sessions are observed.
        scheduling: Which calls run together, and in which order.
        may_be_empty: Whether there may be no artifacts.

    Raises:
        ServingError: An artifact cannot be loaded, or two have the same name and version; all of it is said.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        loader: Loader,
        executor: Executor,
        *,
        width: int,
        queue: int,
        observe: bool = False,
        scheduling: Scheduling | None = None,
        may_be_empty: bool = False,
    ) -> None:
        self._loader = loader
        self._executor = executor
        self._width = width
        self._queue = queue
        self._observe = observe
        self._scheduling = scheduling or Scheduling()
        self.slots: list[Slot] = []
        self._index: dict[str, list[Entry]] = {}
        problems = []
        for path in paths:
            try:
                loaded = self.open(path)
            except EdgecError as e:
                problems.append(problem_of(path, e))
                continue
            problems += self._clashes(path, loaded)
            entry = loaded.entries[0]
            self.slots.append(Slot(path, entry.name, entry.version, loaded))
        if problems or not (self.slots or may_be_empty):
            self.close()
            raise ServingError("; ".join(problems) or "no artifact to serve")
        self._rebuild()

    def open(self, path: Path, label: str = "") -> Loaded:
        """Load and measure an artifact; nobody is served by it yet. It takes as long as it takes.

        Args:
            path: Of the artifact.
            label: What its metrics are told apart by from those of the same model and version.

        Raises:
            EdgecError: It cannot be loaded or run.
        """
        model = self._loader(path)
        try:
            run_s, input_bytes = measure(model)
            model = self._scheduling.apply(model, run_s)
            if self._observe and (session := session_of(model)) is not None:
                session.observe()
        except BaseException:
            model.close()
            raise
        return Loaded(model, self._entries(model, run_s, label), run_s, input_bytes)

    def find(self, name: str, version: str | None, digest: str = "", source_digest: str = "") -> Entry:
        """Return a model; without a version, the latest of its versions.

        Several artifacts may hold one version, for several devices: the one of a digest that is asked for is
        taken, where it is among them.

        Raises:
            RequestError: There is none, status 404.
        """
        entries = self._index.get(name, ())
        found = [entry for entry in entries if version is None or entry.version == version]
        if not found:
            if not entries:
                raise RequestError(f"unknown model {name[:80]!r}", status=404)
            known = ", ".join(dict.fromkeys(entry.version for entry in entries))
            raise RequestError(f"model {name!r} has no version {version!r:.80}, it has {known}", status=404)
        if digest or source_digest:
            for entry in found:
                if digest in ("", entry.digest) and source_digest in ("", entry.source_digest):
                    return entry
        return found[0]

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model, the latest first."""
        return list(dict.fromkeys(entry.version for entry in self._index.get(name, ())))

    def entries(self) -> Iterator[Entry]:
        """Yield every model that is served."""
        for entries in self._index.values():
            yield from entries

    def observers(self) -> list[Observer]:
        """Return what observes the models that are loaded."""
        models = [slot.loaded.model for slot in self.slots if slot.loaded is not None]
        sessions = [session for model in models if (session := session_of(model)) is not None]
        return [session.observer for session in sessions if session.observer is not None]

    def named(self, name: str) -> list[Slot]:
        """Return the slots of a model.

        Raises:
            RequestError: There are none, status 404.
        """
        slots = [slot for slot in self.slots if slot.name == name]
        if not slots:
            raise RequestError(f"no artifact of this server has the name {name[:80]!r}", status=404)
        return slots

    def put(self, slot: Slot, loaded: Loaded | None) -> Loaded | None:
        """Serve another artifact from a slot from now on, or none, and return the one before.

        Raises:
            RequestError: Its name is another than before, or its version is taken; nothing has changed.
        """
        if loaded is not None:
            entry = loaded.entries[0]
            if entry.name != slot.name:
                raise RequestError(f"{slot.path} now holds the model {entry.name!r}, not {slot.name!r}")
            if any(s is not slot and (s.name, s.version) == (entry.name, entry.version) for s in self.slots):
                raise RequestError(f"version {entry.version} of {entry.name!r} is served by another artifact")
            slot.version = entry.version
        before, slot.loaded = slot.loaded, loaded
        self._rebuild()
        return before

    def add(self, path: Path, loaded: Loaded) -> Slot:
        """Serve one more artifact, even where another holds the same version of its model."""
        entry = loaded.entries[0]
        slot = Slot(path, entry.name, entry.version, loaded)
        self.slots.append(slot)
        self._rebuild()
        return slot

    def remove(self, slot: Slot) -> Loaded | None:
        """Serve a slot no longer, and return what was there, for the caller to close."""
        self.slots.remove(slot)
        self._rebuild()
        before, slot.loaded = slot.loaded, None
        return before

    def close(self) -> None:
        """Free all models."""
        for slot in self.slots:
            if slot.loaded is not None:
                slot.loaded.model.close()
                slot.loaded = None
        self._rebuild()

    def _entries(self, model: ServedModel, run_s: float, label: str) -> list[Entry]:
        manifest = model.manifest
        metrics = ModelMetrics(manifest.model, manifest.model_version, label)
        width = self._width
        if isinstance(model, ScheduledModel):
            metrics.batching = model.batching
            if model.batching.batcher is not None:  # while one joined call runs, the next one gathers
                width = max(width, 2 * self._scheduling.max_batch)
        lane = Lane(self._executor, width, self._queue, metrics, run_s)
        engine = getattr(model, "engine", "") or getattr(getattr(manifest, "engine", None), "name", "model")
        platform = f"edgec_{engine}"
        name, version = manifest.model, manifest.model_version
        tensors = getattr(model, "is_tensors", True)
        first = model if tensors else Prediction(model)
        entries = [Entry(name, version, platform, first, first.inputs, first.outputs, lane, metrics)]
        if manifest.pipeline is not None or not tensors:
            face, name = Prediction(model), name + PREDICT
            metrics = ModelMetrics(name, version, label)
            entries.append(Entry(name, version, platform, face, face.inputs, face.outputs, lane, metrics))
        session = session_of(model)
        for entry in entries:
            entry.digest = session.content_digest if session is not None else ""
            entry.source_digest = source_digest(manifest) if isinstance(manifest, Manifest) else ""
        return entries

    def _clashes(self, path: Path, loaded: Loaded) -> list[str]:
        """Return what stands against serving an artifact; its model is closed where anything does."""
        entry = loaded.entries[0]
        taken = [s for s in self.slots if (s.name, s.version) == (entry.name, entry.version)]
        if taken:
            loaded.model.close()
        return [
            f"{path} and {s.path} both hold version {s.version} of the model {s.name!r}: "
            "compile one with another --model-version"
            for s in taken
        ]

    def _rebuild(self) -> None:
        index: dict[str, list[Entry]] = {}
        for slot in self.slots:
            for entry in slot.loaded.entries if slot.loaded else ():
                index.setdefault(entry.name, []).append(entry)
        for entries in index.values():
            entries.sort(key=lambda entry: _order(entry.version), reverse=True)
        self._index = index


def problem_of(path: Path, error: EdgecError) -> str:
    """Return what is wrong with a file; most errors name it themselves."""
    said = str(error)
    return said if str(path) in said else f"{path}: {said}"


def _order(version: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts versions as people do: 2 before 10, 1.9 before 1.10."""
    parts = re.findall(r"\d+|\D+", version)
    return [(1, int(p), "") if p.isdecimal() and len(p) < 20 else (0, 0, p) for p in parts]
