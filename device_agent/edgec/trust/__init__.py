"""Which artifact may run on which device: metadata signed by publishers, checked by devices.

A publisher keeps an `ImageRepository` (which artifacts there are, signed offline) and a
`DirectorRepository` (which device runs which, signed online) on a directory that any web server can
serve. A device holds a `DeviceTrust`, and believes what both agree on. The form is The Update
Framework's, split as Uptane does; the extra ``agent`` brings the library.
"""

from typing import TYPE_CHECKING

from edgec.trust._assignment import (
    AssignedTarget,
    Assignment,
    ChunkMap,
    Delta,
    DeviceBundle,
    ImageTarget,
    bundle_files,
)
from edgec.trust._commands import SignedCommand, sign_command
from edgec.trust._device import DeviceTrust
from edgec.trust._source import DirectorySource, HttpSource, MetadataSource, Source
from edgec.trust._terms import Terms

if TYPE_CHECKING:
    from edgec.trust._ceremony import rotate
    from edgec.trust._director import MAX_BUNDLE_BYTES, DirectorRepository, open_repositories
    from edgec.trust._image import DeltaFile, ImageRepository
    from edgec.trust._issuing import Issued, SignedWish, Wish, issue
    from edgec.trust._keys import (
        OFFLINE_ROLES,
        ROLES,
        KeyRing,
        Passphrase,
        PublicKey,
        generate_key,
        no_passphrase,
    )
    from edgec.trust._lifetimes import read_lifetimes, write_lifetimes
    from edgec.trust._provenance import verify_provenance
    from edgec.trust._publishing import assign_also, chosen_target, previous_target, publish_artifact
    from edgec.trust._repository import Lifetimes, Signatures
    from edgec.trust._status import Due, RepositoryStatus, RoleStatus, repository_status, role_statuses

__all__ = [
    "MAX_BUNDLE_BYTES",
    "OFFLINE_ROLES",
    "ROLES",
    "AssignedTarget",
    "Assignment",
    "ChunkMap",
    "Delta",
    "DeltaFile",
    "DeviceBundle",
    "DeviceTrust",
    "DirectorRepository",
    "DirectorySource",
    "Due",
    "HttpSource",
    "ImageRepository",
    "ImageTarget",
    "Issued",
    "KeyRing",
    "Lifetimes",
    "MetadataSource",
    "Passphrase",
    "PublicKey",
    "RepositoryStatus",
    "RoleStatus",
    "Signatures",
    "SignedCommand",
    "SignedWish",
    "Source",
    "Terms",
    "Wish",
    "assign_also",
    "bundle_files",
    "chosen_target",
    "generate_key",
    "issue",
    "no_passphrase",
    "open_repositories",
    "previous_target",
    "publish_artifact",
    "read_lifetimes",
    "repository_status",
    "role_statuses",
    "rotate",
    "sign_command",
    "verify_provenance",
    "write_lifetimes",
]

# The publisher's side, imported when asked for: a device has no use for it, and little memory.
_LATER = {
    "MAX_BUNDLE_BYTES": "_director",
    "OFFLINE_ROLES": "_keys",
    "ROLES": "_keys",
    "DeltaFile": "_image",
    "DirectorRepository": "_director",
    "Due": "_status",
    "ImageRepository": "_image",
    "Issued": "_issuing",
    "KeyRing": "_keys",
    "Lifetimes": "_repository",
    "Passphrase": "_keys",
    "PublicKey": "_keys",
    "RepositoryStatus": "_status",
    "RoleStatus": "_status",
    "Signatures": "_repository",
    "SignedWish": "_issuing",
    "Wish": "_issuing",
    "assign_also": "_publishing",
    "chosen_target": "_publishing",
    "generate_key": "_keys",
    "issue": "_issuing",
    "no_passphrase": "_keys",
    "open_repositories": "_director",
    "previous_target": "_publishing",
    "publish_artifact": "_publishing",
    "read_lifetimes": "_lifetimes",
    "repository_status": "_status",
    "role_statuses": "_status",
    "rotate": "_ceremony",
    "verify_provenance": "_provenance",
    "write_lifetimes": "_lifetimes",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
