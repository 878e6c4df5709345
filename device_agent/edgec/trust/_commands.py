"""Remote commands: signed by the director, for one device or group, valid for a while, obeyed once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgec.artifact._fields import Fields, mapping, matching, natural
from edgec.errors import ManifestError, TrustError
from edgec.trust._metadata import checked_name, instant, name
from edgec.trust._provenance import open_envelope
from edgec.trust._state import read_document, write_document
from edgec.trust._tuf import Envelope

PAYLOAD_TYPE = "application/vnd.edgec.command+json"
MAX_COMMAND_BYTES = 64 * 1024
MAX_VALIDITY_S = 7 * 86400
# Ids of commands that are remembered; what is older than all of them is refused.
REMEMBERED = 512

_ID = matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "1 to 64 letters, digits, '_', '.', '-'")


@dataclass(frozen=True, kw_only=True)
class SignedCommand:
    """A command whose signature was verified.

    Attributes:
        id: Chosen by the sender, used once.
        name: What to do: ``logs``.
        args: Of the command.
        device: Id of the device that it is for; "" if it is for a group.
        group: The group that it is for; "" if it is for a device.
        issued_at: Seconds since 1970.
        expires_at: Seconds since 1970; not obeyed afterwards.
    """

    id: str
    name: str
    args: Mapping[str, Any]
    device: str
    group: str
    issued_at: int
    expires_at: int


def sign_command(
    signers: Sequence[Any],
    command: str,
    args: Mapping[str, Any] | None = None,
    *,
    device: str = "",
    group: str = "",
    issued_at: float,
    valid_s: float = 300,
    command_id: str | None = None,
) -> bytes:
    """Return a signed command for one device or one group.

    Args:
        signers: Of the director: ``keys.signers([key.keyid for key in keys.of_role("director")])``.
        command: What to do: ``logs``.
        args: Of the command, as JSON can hold them.
        device: Id of a device; or
        group: name of a group.
        issued_at: Now, in seconds since 1970.
        valid_s: How long it may be obeyed; at most a week.
        command_id: A new random one if None.

    Returns:
        A DSSE envelope, as JSON.

    Raises:
        TrustError: There is no signer, or a field is wrong.
    """
    if not signers:
        raise TrustError("no private key of role 'director' is at hand to sign a command with", "key")
    if bool(device) == bool(group):
        raise TrustError("a command is for one device or for one group: give exactly one of both", "device")
    receiver = {"device": device} if device else {"group": group}
    checked_name(device or group, "the receiver of a command")
    document = {
        "v": 1,
        "id": command_id or uuid.uuid4().hex,
        "name": checked_name(command, "the name of a command"),
        "args": dict(args or {}),
        **receiver,
        "issued_at": int(issued_at),
        "expires_at": int(issued_at + valid_s),
    }
    payload = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    _parsed(payload)
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    for signer in signers:
        envelope.sign(signer)
    return json.dumps(envelope.to_dict(), separators=(",", ":")).encode()


def open_command(envelope: bytes, keys: Sequence[Any], threshold: int) -> SignedCommand:
    """Verify who signed a command; receiver, time and repetition are the caller's to check.

    Raises:
        TrustError: It is too large, malformed or not signed by `threshold` of `keys`.
    """
    if len(envelope) > MAX_COMMAND_BYTES:
        raise TrustError(f"a command has at most {MAX_COMMAND_BYTES} bytes, not {len(envelope)}", "too_large")
    return _parsed(open_envelope(envelope, PAYLOAD_TYPE, keys, "the command", threshold))


class CommandLog:
    """Which commands were received: bounded, durable, and never forgetful in a device's favour.

    At most `REMEMBERED` ids are kept. One that is forgotten raises a mark, and commands issued at or
    before it are refused: what might be a repetition is none of a device's business.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        """Read it; where it is damaged, all commands issued up to now are refused."""
        self._path = path
        self._seen: dict[str, int] = {}
        self._mark = 0
        document = read_document(path)
        if document is None and path.exists():
            self._mark = int(now())
        elif document is not None:
            self._mark = int(document["mark"])
            self._seen = {str(key): int(value) for key, value in document["seen"].items()}

    def receive(self, command: SignedCommand, now_s: float) -> None:
        """Check time and repetition, and note the command; durable when this returns.

        Raises:
            TrustError: It has expired (``expired``) or may have been received before (``replay``).
            OutputError: It cannot be noted.
        """
        if now_s >= command.expires_at:
            raise TrustError(
                f"the command {command.id} was valid until {instant(command.expires_at).isoformat()}, "
                f"and it is {instant(now_s).isoformat()}: send a new one",
                "expired",
            )
        if command.id in self._seen or command.issued_at <= self._mark:
            raise TrustError(f"command {command.id} was received before, or is older than those", "replay")
        seen, mark = {**self._seen, command.id: command.issued_at}, self._mark
        while len(seen) > REMEMBERED:
            oldest = min(seen, key=lambda key: seen[key])
            mark = max(mark, seen.pop(oldest))
        write_document(self._path, {"mark": mark, "seen": seen})
        self._seen, self._mark = seen, mark


def _parsed(payload: bytes) -> SignedCommand:
    try:
        fields = Fields(json.loads(payload), "the command")
        if fields.need("v", natural) != 1:
            raise TrustError("the command is of a newer protocol: update edgec on this device", "malformed")
        command = SignedCommand(
            id=fields.need("id", _ID),
            name=fields.need("name", name),
            args=fields.need("args", mapping),
            device=fields.may("device", name, ""),
            group=fields.may("group", name, ""),
            issued_at=fields.need("issued_at", natural),
            expires_at=fields.need("expires_at", natural),
        )
    except (ManifestError, ValueError, RecursionError) as e:
        raise TrustError(f"the command is malformed: {e}", "malformed") from e
    if bool(command.device) == bool(command.group):
        raise TrustError("the command names not exactly one receiver", "malformed")
    if not 0 < command.expires_at - command.issued_at <= MAX_VALIDITY_S:
        raise TrustError(f"a command is valid for up to {MAX_VALIDITY_S} s after it was issued", "malformed")
    return command
