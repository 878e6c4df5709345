"""The signed repositories and the artifacts in them, as devices read them: public, believed by signature."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path, PurePosixPath

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

_METADATA = ("image", "director")
_PARTS = (*_METADATA, "targets")
# Metadata is replaced while it is read; it is small enough to be read at once.
_MOST_METADATA = 16 * 2**20


class RepositoryFiles(StaticFiles):
    """Files of metadata and of artifacts but those that begin with a dot; with ranges and ETags."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory, check_dir=False)

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Find a file that devices may read."""
        parts = PurePosixPath(path.replace(os.sep, "/")).parts
        if len(parts) < 2 or parts[0] not in _PARTS or any(part.startswith(".") for part in parts):
            return "", None
        return super().lookup_path(path)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return a file; metadata whole, and as one file is, whatever replaces it meanwhile."""
        asked = Headers(scope=scope)
        reply: Response
        if self._is_metadata(full_path) and stat_result.st_size <= _MOST_METADATA:
            try:
                data = Path(full_path).read_bytes()
            except OSError as e:
                raise HTTPException(404) from e
            headers = {"ETag": f'"{sha256(data).hexdigest()}"', "Cache-Control": "no-cache"}
            reply = Response(data, status_code, headers, "application/json")
        else:
            # Its name has its digest in it.
            headers = {"Cache-Control": "public, max-age=31536000, immutable"}
            reply = FileResponse(
                full_path, status_code, headers, "application/octet-stream", stat_result=stat_result
            )
        return NotModifiedResponse(reply.headers) if self.is_not_modified(reply.headers, asked) else reply

    def _is_metadata(self, path: str | os.PathLike[str]) -> bool:
        return Path(path).relative_to(Path(str(self.directory)).resolve()).parts[0] in _METADATA
