"""Every error that edgec raises on purpose.

* EdgecError
  x ExtraError                    (also an ImportError)
    + MissingExtraError           (also a ModuleNotFoundError)
    + BrokenExtraError
  x OutputError
  x TargetError
    + UnknownTargetError
  x ArtifactError
    + ManifestError
    + DigestMismatchError
    + IncompatibleArtifactError
  x PipelineError
  x DataError
    + CalibrationError
  x SourceError
  x InferenceError
    + BackendUnavailableError
    + InputError
    + PlacementError
    + SelfTestError
    + OverloadedError
    + DeadlineError
    + DeviceMemoryError
    + UnknownModelError
    + IsolationError
    + FallbackError
  x ServingError
    + RequestError
  x ProtocolError
    + LinkError
  x TrustError
  x DeltaError
  x TransferError
  x AgentError
  x FleetError
  x CompileError
    + ModelError
    + UnsupportedModelError
    + PassError
    + ConversionError
      + NoGainError
    + MissingEnvironmentError
    + ParityError
    + BudgetError

Catch ``EdgecError`` at the edge of a program, and the narrowest class anywhere else. A wrong
argument is a ``ValueError`` or a ``TypeError``, as in the standard library. A message says what
was expected, what came and what to do next; what a program may act on is an attribute.
"""


class EdgecError(Exception):
    """Base of every error below."""


class ExtraError(EdgecError, ImportError):
    """A package that an extra brings cannot be used; see `edgec.errors.extras`.

    Attributes:
        extra: The extra that brings it: ``openvino``.
    """

    extra: str


class MissingExtraError(ExtraError, ModuleNotFoundError):
    """A package is used whose extra is not installed."""

    def __init__(self, what: str, module: str | None, extra: str) -> None:
        where = " with Python 3.11 or later" if extra in ("compiler", "fleet", "postgres") else ""
        super().__init__(
            f"{what} needs {module!r}, which is not installed: run  pip install 'edgec[{extra}]'{where}"
        )
        self.name = module
        self.extra = extra


class BrokenExtraError(ExtraError):
    """A package of an extra is installed and does not load: memory, a library of the system, its files."""

    def __init__(self, what: str, module: str | None, extra: str, why: str) -> None:
        package = f"a package of 'edgec[{extra}]'" if module is None else repr(module)
        super().__init__(f"{what} needs {package}, which is installed and does not load: {why}")
        self.name = module
        self.extra = extra


class OutputError(EdgecError):
    """A result could not be written; what was at its path before is untouched."""


class TargetError(EdgecError):
    """A target description is wrong or missing."""


class UnknownTargetError(TargetError):
    """No target has this name.

    Attributes:
        name: The name asked for.
        known: The names there are, sorted.
        unread: What is wrong with installed packages whose targets cannot be read: it may be one of those.
    """

    def __init__(self, name: str, known: list[str], unread: tuple[str, ...] = ()) -> None:
        super().__init__(
            "; ".join(
                (
                    f"unknown target {name!r}",
                    f"known targets: {', '.join(known)}",
                    "or the path of a .toml file of your own",
                    *(f"targets of a package could not be read: {problem}" for problem in unread),
                )
            )
        )
        self.name = name
        self.known = known
        self.unread = unread


class ArtifactError(EdgecError):
    """An artifact cannot be used as it is."""


class ManifestError(ArtifactError):
    """A manifest is malformed."""


class DigestMismatchError(ArtifactError):
    """A member's content differs from what the manifest promises.

    Attributes:
        member: Name of the member.
    """

    def __init__(self, message: str, member: str) -> None:
        super().__init__(message)
        self.member = member


class IncompatibleArtifactError(ArtifactError):
    """A sound artifact, made for another target or a newer edgec."""


class PipelineError(EdgecError):
    """A pre- or post-processing pipeline is malformed, or does not fit the model or the sample."""


class DataError(EdgecError):
    """A data set cannot be read, or does not fit the model or the metric."""


class CalibrationError(DataError):
    """Calibration data is missing, or unfit to calibrate with."""


class SourceError(EdgecError):
    """A source of a stream cannot be opened, or failed while it was read.

    Attributes:
        transient: Whether it may work again later, as a camera or a network does.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class InferenceError(EdgecError):
    """A session could not be opened or run."""


class BackendUnavailableError(InferenceError):
    """The backend exists but cannot work here: its library or its device is missing."""


class InputError(InferenceError):
    """An input's name, dtype or shape differs from what the model declares; nothing was run."""


class PlacementError(InferenceError):
    """The engine would run the model elsewhere, or in another precision, than the artifact promises."""


class SelfTestError(InferenceError):
    """The golden vectors of the artifact give other outputs here."""


class OverloadedError(InferenceError):
    """A bounded queue is full; nothing was run, and the same call may succeed later."""


class DeadlineError(InferenceError):
    """A call waited until its deadline had passed; it was not run."""


class DeviceMemoryError(InferenceError):
    """The device has not the memory that a call needs; smaller ones still run."""


class UnknownModelError(InferenceError):
    """No model of this name or version is known here."""


class IsolationError(InferenceError):
    """The process that runs a model ended, or was ended; the next one is being started.

    Attributes:
        reason: For programs, a word: ``crash``, ``timeout``, ``memory``; ``restarting`` or ``crash-loop``
            where the call was not run.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class FallbackError(InferenceError):
    """A server that was to answer in place of this device did not.

    Attributes:
        reason: For programs, a word: ``late``, ``unreachable``, ``refused``, ``malformed``, ``open``,
            ``busy``, ``privacy``.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class ServingError(EdgecError):
    """A server cannot be started as it was asked to."""


class RequestError(ServingError):
    """A request over the network cannot be answered as it is; the server goes on.

    Attributes:
        status: HTTP status of the answer, from 400 to 499, or 503.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ProtocolError(EdgecError):
    """A message between device and fleet is malformed, too large, or of a newer protocol."""


class LinkError(ProtocolError):
    """The broker cannot be reached, or refuses this client."""


class TrustError(EdgecError):
    """Signed metadata or a signed command is not to be trusted; nothing was taken over from it.

    Attributes:
        reason: For programs, a word: ``expired``, ``signature``, ``rollback``, ``hardware`` ...
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class DeltaError(EdgecError):
    """A patch is damaged, or does not lead from the file at hand to the file wanted."""


class TransferError(EdgecError):
    """A file could not be fetched.

    Attributes:
        reason: For programs, a word: ``not_found``, ``too_slow``, ``length``, ``digest``, ``cancelled`` ...
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class AgentError(EdgecError):
    """The device agent cannot do what was asked for, or cannot start."""


class FleetError(EdgecError):
    """The fleet server cannot do what it was asked to.

    Attributes:
        reason: For programs, a word: ``not_found``, ``conflict``, ``refused``, ``database``, ``audit`` ...
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class CompileError(EdgecError):
    """A model could not be compiled."""


class ModelError(CompileError):
    """The source model cannot be read, or is not valid ONNX."""


class UnsupportedModelError(CompileError):
    """The model uses something the target cannot run."""


class PassError(CompileError):
    """A pass failed, or broke the graph."""


class ConversionError(CompileError):
    """A converter refused the model or crashed on it."""


class NoGainError(ConversionError):
    """The model has nothing that gains by a precision: the result would be that of another one."""


class MissingEnvironmentError(CompileError):
    """A converter stack is needed that lives in an environment of its own, which is not there or unfit.

    Attributes:
        environment: Its name: ``tf2onnx``.
    """

    def __init__(self, environment: str, purpose: str, problem: str, size_mb: int) -> None:
        super().__init__(
            f"the environment {environment!r}, which {purpose}, is needed, and {problem}: run  "
            f"edgec doctor --install {environment}  (about {size_mb} MB)"
        )
        self.environment = environment


class ParityError(CompileError):
    """The artifact does not compute what its source computes.

    Attributes:
        tensor: The first tensor that diverges, in topological order; None where no inner one could be read.
    """

    def __init__(self, message: str, tensor: str | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor


class BudgetError(CompileError):
    """No candidate meets the budgets."""
