"""What a server is told when it is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgec.runtime._pool import check_threads

MIB = 2**20
DEVICES = ("artifact", "auto", "cpu", "cuda", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server listens, what it allows, and where it stops.

    Attributes:
        host: Address to listen at.
        port: Port to listen at; 0 for any that is free.
        unix_socket: Path of a socket to listen at instead; only this user may connect.
        tls_cert: PEM file of the certificate and its chain; None for plain HTTP.
        tls_key: PEM file of its private key.
        client_ca: PEM file of the authorities whose certificates clients may show; None for asking for none.
            A certificate by another authority ends the connection; whether one is needed says what stands in
            front of the application, which finds its common name as ``edgec.peer`` in the scope.
        api_keys: Keys of which a request must carry one; none for everybody. Health needs no key.
        max_body_bytes: Largest body of a request, before and after decompression.
        max_json_bytes: Largest JSON of a request; as Python objects it takes about ten times as much memory.
        queue: Requests for one model that wait for their turn; one more is refused with 503.
        max_batch: Most rows that requests which come while their model runs are joined to, for models that
            a measurement shows to gain by it; 1 to join none.
        batch_delay_ms: How long a request may wait for others to join while its model is idle.
        priorities: Of models, by name, where they share the machine: the inferences of a higher one go first,
            and no more run at once than keep the cores busy; 0 for the others. Where there are none, models
            have no order.
        threads: Threads of one inference; None for the engine's own choice.
        device: Where ONNX Runtime runs artifacts: ``artifact`` for what they were compiled for, ``cpu``,
            ``cuda``, ``tensorrt``, or ``auto`` for CUDA where it starts; chains run where their models say.
        isolate: Whether each model runs in a process of its own; see `edgec.runtime.Isolation`.
        allow_repository_calls: Whether clients may list, load and unload models.
        observe: Whether ``/metrics`` shows what observers know of the models, too.
        receive_timeout_s: Longest time that a request may take to arrive.
        drain_timeout_s: Longest time that requests in flight get when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    unix_socket: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    api_keys: tuple[bytes, ...] = field(default=(), repr=False)
    max_body_bytes: int = 64 * MIB
    max_json_bytes: int = 16 * MIB
    queue: int = 128
    max_batch: int = 8
    batch_delay_ms: float = 0.0
    priorities: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None
    device: str = "artifact"
    isolate: bool = False
    allow_repository_calls: bool = False
    observe: bool = False
    receive_timeout_s: float = 60.0
    drain_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Raise ValueError where something is unknown."""
        if self.device not in DEVICES:
            raise ValueError(f"expected a device out of {', '.join(DEVICES)}, got {self.device!r:.80}")
        if self.threads is not None:
            check_threads(self.threads)
