"""Provenance of an artifact: an in-toto statement with SLSA's predicate, in a DSSE envelope.

Forms: https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1. It is signed and verified
when an artifact is published; devices rely on the repository's metadata, which pins it by digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from edgec.errors import TrustError
from edgec.trust._tuf import Envelope, SecureSystemsError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"


def make_provenance(
    name: str, sha256: str, facts: Mapping[str, Any], provenance: Mapping[str, Any], signers: Sequence[Any]
) -> bytes:
    """Return a signed statement of how an artifact came about.

    Args:
        name: File name of the artifact.
        sha256: Its digest, in hex.
        facts: What was asked for: model, version, target.
        provenance: What the artifact's manifest says of its making.
        signers: Each signs.

    Raises:
        TrustError: There is no signer (``reason`` ``key``).
    """
    if not signers:
        raise TrustError("no private key of role 'targets' is at hand to sign the provenance with", "key")
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:edgec:compile:1",
                "externalParameters": dict(facts),
                "internalParameters": {"manifest": dict(provenance)},
                "resolvedDependencies": [],
            },
            "runDetails": {"builder": {"id": "urn:edgec:publisher", "version": {"edgec": version("edgec")}}},
        },
    }
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    for signer in signers:
        envelope.sign(signer)
    return json.dumps(envelope.to_dict(), sort_keys=True).encode()


def verify_provenance(data: bytes, sha256: str, keys: Sequence[Any]) -> dict[str, Any]:
    """Check that one of `keys` has signed a statement about the artifact of digest `sha256`.

    Returns:
        The statement.

    Raises:
        TrustError: It is malformed, unsigned, or about something else.
    """
    payload = open_envelope(data, PAYLOAD_TYPE, keys, "the provenance")
    try:
        statement = json.loads(payload)
        digests = [subject["digest"]["sha256"] for subject in statement["subject"]]
        forms = (statement["_type"], statement["predicateType"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise TrustError(f"the provenance is no in-toto statement: {e}", "malformed") from e
    if forms != (STATEMENT, PREDICATE) or digests != [sha256]:
        raise TrustError("the provenance is about another file, or of another form", "digest")
    return dict(statement)


def open_envelope(
    data: bytes, payload_type: str, keys: Sequence[Any], what: str, threshold: int = 1
) -> bytes:
    """Return the payload of a DSSE envelope that `threshold` of `keys` have signed.

    Raises:
        TrustError: It is malformed, of another payload type, or not signed so.
    """
    try:
        envelope = Envelope.from_dict(json.loads(data))
    # What `from_dict` finds wrong in a document from outside comes as any of these.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SecureSystemsError) as e:
        raise TrustError(f"{what} is no signed envelope: {type(e).__name__}", "malformed") from e
    if envelope.payload_type != payload_type:
        raise TrustError(f"{what} must have payload type {payload_type}", "malformed")
    try:
        envelope.verify(list(keys), threshold)
    except (SecureSystemsError, ValueError) as e:
        raise TrustError(f"{what} is not signed by {threshold} of the keys that may: {e}", "signature") from e
    return bytes(envelope.payload)
