# pyright: reportPrivateImportUsage=false
"""The names of `tuf` and `securesystemslib` that this package uses; the one place that imports them."""

from __future__ import annotations

from typing import Any

from edgec.errors.extras import needs_extra

with needs_extra("signed metadata", "agent"):
    import securesystemslib.signer as _signer
    import tuf.api.metadata as _metadata
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import Error as SecureSystemsError
    from tuf.api import exceptions
    from tuf.api.serialization import DeserializationError
    from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

# Public names that their packages re-export without saying so, which pyright takes for private ones.
CryptoSigner: Any = _signer.CryptoSigner
Key: Any = _signer.Key
SSlibKey: Any = _signer.SSlibKey
DelegatedRole: Any = _metadata.DelegatedRole
Delegations: Any = _metadata.Delegations
Metadata: Any = _metadata.Metadata
MetaFile: Any = _metadata.MetaFile
Role: Any = _metadata.Role
Root: Any = _metadata.Root
Snapshot: Any = _metadata.Snapshot
TargetFile: Any = _metadata.TargetFile
Targets: Any = _metadata.Targets
Timestamp: Any = _metadata.Timestamp

__all__ = [
    "CryptoSigner",
    "DelegatedRole",
    "Delegations",
    "DeserializationError",
    "Envelope",
    "FetcherInterface",
    "Key",
    "MetaFile",
    "Metadata",
    "Role",
    "Root",
    "SSlibKey",
    "SecureSystemsError",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
    "Updater",
    "UpdaterConfig",
    "exceptions",
]
