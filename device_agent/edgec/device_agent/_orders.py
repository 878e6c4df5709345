"""Commands: verified, done once, answered, and written down."""

from __future__ import annotations

import json
import logging
import queue
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgec.artifact import atomic_write
from edgec.device_agent._seams import OrderRefusedError
from edgec.errors import AgentError, EdgecError, OutputError, ProtocolError, TrustError
from edgec.protocol import Command, CommandReply, Handled

if TYPE_CHECKING:
    from edgec.device_agent._seams import Clock
    from edgec.trust import DeviceTrust, SignedCommand

_log = logging.getLogger(__name__)
_MOST_REPLIES = 64
_MAX_RESULT = 64 * 1024
_MAX_KEPT_RESULT = 4 * 1024
_MAX_FILE = 8 * 2**20
# Replies to what nobody signed, per minute: a broker that is not ours must not make us busy.
_MOST_REFUSALS = 10
_REFUSALS_S = 60.0
Do = Callable[["SignedCommand"], Mapping[str, Any]]


class Orders:
    """Takes commands in. `hear` and `turn` are called from one thread; commands run in others.

    Args:
        trust: Of the device.
        boot_id: Of this start.
        path: Where replies are kept, so that a command that comes again is answered, and not done, again.
        clock: Of the agent.
        spawn: Runs a function in a thread.
        reply: Sends a reply; the fleet asks again where it does not arrive.
        audit: Notes what became of a command: its name, id, state, reason and detail.
    """

    def __init__(
        self,
        *,
        trust: DeviceTrust,
        boot_id: str,
        path: Path,
        clock: Clock,
        spawn: Callable[[Callable[[], None]], None],
        reply: Callable[[CommandReply], None],
        audit: Callable[[CommandReply], None],
    ) -> None:
        self._trust, self._boot_id, self._path, self._clock = trust, boot_id, path, clock
        self._spawn, self._reply, self._audit = spawn, reply, audit
        self._at_once: dict[str, Do] = {}
        self._later: dict[str, Do] = {}
        self._ended: queue.SimpleQueue[tuple[Command, CommandReply]] = queue.SimpleQueue()
        self._refusals: list[float] = []
        self._handled = _read(path)

    def offer(self, name: str, do: Do, *, at_once: bool = False) -> None:
        """Let a command be given.

        Args:
            name: Of the command.
            do: Carries it out.
            at_once: In the agent's own thread, not in one of its own.

        Raises:
            AgentError: There is one of that name.
        """
        if name in self._at_once or name in self._later:
            raise AgentError(f"two operations are called {name!r}")
        (self._at_once if at_once else self._later)[name] = do

    def start(self) -> None:
        """Say of commands that the end of the agent before this one cut off that they were."""
        for expires_at, reply in list(self._handled.replies.values()):
            if not reply.final:
                command = Command(
                    id=reply.id, name=reply.name, issued_at=0.0, expires_at=expires_at, envelope=""
                )
                self._end(
                    command, self._answer(command, "failed", "interrupted", "the agent ended meanwhile")
                )

    def hear(self, command: Command) -> None:
        """Take a command in, which may have come before."""
        before = self._handled.reply_to(command)
        if before is not None:
            self._reply(before)
            return
        try:
            signed = self._trust.verify_command(command.envelope.encode())
            if (signed.id, signed.name) != (command.id, command.name):
                raise TrustError("the command is not the one that its envelope signs for", "mismatch")
        except TrustError as e:
            self._refuse(command, e)
            return
        do = self._at_once.get(signed.name) or self._later.get(signed.name)
        if do is None:
            known = ", ".join(sorted({*self._at_once, *self._later}))
            detail = f"this agent knows no command {signed.name!r}; it knows {known}"
            self._end(command, self._answer(command, "refused", "unknown_command", detail))
            return
        accepted = self._answer(command, "accepted")
        if not self._record(command, accepted):
            self._end(command, self._answer(command, "failed", "storage", "it cannot be written down here"))
            return
        self._reply(accepted)
        if signed.name in self._at_once:
            self._carry_out(command, signed, do)
            self.turn()
        else:
            chosen = do
            self._spawn(lambda: self._carry_out(command, signed, chosen))

    def turn(self) -> None:
        """Answer commands that have ended."""
        while not self._ended.empty():
            self._end(*self._ended.get_nowait())

    def _carry_out(self, command: Command, signed: SignedCommand, do: Do) -> None:
        reply = self._answer(command, "failed", "agent_bug", f"{command.name} broke; see the agent's log")
        try:
            result = json.dumps(dict(do(signed)), ensure_ascii=False, separators=(",", ":"))
            if len(result.encode()) > _MAX_RESULT:
                reply = self._answer(
                    command, "failed", "too_large", f"the result has {len(result)} characters"
                )
            else:
                reply = self._answer(command, "done", result=result)
        except OrderRefusedError as e:
            reply = self._answer(command, "refused", e.reason, str(e))
        except (EdgecError, OSError) as e:
            word = getattr(e, "reason", None)
            reply = self._answer(command, "failed", word if isinstance(word, str) else "failed", str(e))
        finally:
            self._ended.put((command, reply))

    def _end(self, command: Command, reply: CommandReply) -> None:
        self._record(command, reply)
        self._audit(reply)
        self._reply(reply)

    def _refuse(self, command: Command, e: TrustError) -> None:
        """Answer what is not obeyed; nothing of it is kept, as anyone may have sent it."""
        now = self._clock.monotonic()
        self._refusals = [at for at in self._refusals if now - at < _REFUSALS_S]
        if len(self._refusals) >= _MOST_REFUSALS:
            _log.warning("command %s is not answered, for there are too many like it: %s", command.id, e)
            return
        self._refusals.append(now)
        state = "expired" if e.reason == "expired" else "refused"
        reply = self._answer(command, state, e.reason, str(e))
        self._audit(reply)
        self._reply(reply)

    def _answer(
        self, command: Command, state: str, reason: str | None = None, detail: str = "", *, result: str = ""
    ) -> CommandReply:
        return CommandReply(
            id=command.id,
            name=command.name,
            state=state,
            boot_id=self._boot_id,
            sent_at=max(self._clock.wall(), 0.0),
            reason=reason,
            detail=detail[:4000],
            result=result,
        )

    def _record(self, command: Command, reply: CommandReply) -> bool:
        """Keep a reply; return whether it is durable."""
        kept = reply
        if len(reply.result) > _MAX_KEPT_RESULT:
            kept = self._answer(command, reply.state, reply.reason, "done before; its result is not kept")
        self._handled = self._handled.record(
            command, kept, now=max(self._clock.wall(), 0.0), most=_MOST_REPLIES
        )
        plain = [[at, reply.to_bytes().decode()] for at, reply in self._handled.replies.values()]
        try:
            with atomic_write(self._path) as file:
                file.write(json.dumps({"v": 1, "replies": plain}).encode())
        except (OutputError, OSError) as e:
            _log.warning("replies to commands are not kept: %s", e)
            return False
        return True


def _read(path: Path) -> Handled:
    try:
        with path.open("rb") as file:
            plain = json.loads(file.read(_MAX_FILE))
        replies = [(float(at), CommandReply.from_bytes(text.encode())) for at, text in plain["replies"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ProtocolError):
        # There is none yet, or it is damaged: the trust's own log still refuses what came before.
        return Handled()
    return Handled(replies={reply.id: (at, reply) for at, reply in replies})
