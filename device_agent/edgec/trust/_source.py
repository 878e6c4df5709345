"""Where metadata comes from: a web server, a directory, or one message. The same bytes, the same checks."""

from __future__ import annotations

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

from edgec.errors import TrustError

_CHUNK = 65536


class MetadataSource(Protocol):
    """Where files of a repository come from."""

    def fetch(self, file: str, max_bytes: int) -> bytes | None:
        """Return the bytes of a file, at most one more than `max_bytes`; None if there is no such file.

        Args:
            file: Its name in the repository: ``image/timestamp.json``.
            max_bytes: What is longer is refused by the caller, so that nobody has to read on.

        Raises:
            TrustError: It could not be fetched: ``unreachable``, ``too_slow``.
        """
        ...


class HttpSource:
    """A repository on a web server.

    Args:
        base_url: ``https://updates.example/edgec/``.
        context: For TLS: which certificates are believed, which one is shown.
        headers: Sent with every request, but not after a redirection: ``{"Authorization": "Bearer ..."}``.
        timeout_s: For a whole file; a server that sends a byte now and then does not extend it.
        monotonic: Seconds that only grow.
    """

    def __init__(
        self,
        base_url: str,
        *,
        context: ssl.SSLContext | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if not re.match(r"https?://[^/]", base_url):
            raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r:.80}")
        self._base = base_url.rstrip("/") + "/"
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._context = context

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        # Made when it is needed: most orders bring their metadata with them.
        return urllib.request.build_opener(
            # Proxies come from the environment otherwise.
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=self._context),
        )

    def fetch(self, file: str, max_bytes: int) -> bytes | None:
        """Return the bytes of a file; see `MetadataSource`."""
        request = urllib.request.Request(self._base + file)
        for name, value in self._headers.items():
            # A redirection may lead to another server, which must not learn a token.
            request.add_unredirected_header(name, value)
        end = self._monotonic() + self._timeout_s
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return self._read(response, file, max_bytes, end)
        except urllib.error.HTTPError as e:
            e.close()
            if e.code in (403, 404, 410):
                return None
            raise TrustError(f"{self._base}{file} answered {e.code}; try again later", "unreachable") from e
        except TimeoutError as e:
            raise self._too_slow(file) from e
        except (OSError, http.client.HTTPException) as e:
            if isinstance(getattr(e, "reason", None), TimeoutError):
                raise self._too_slow(file) from e
            raise TrustError(f"{self._base}{file} cannot be fetched: {e}", "unreachable") from e

    def _read(self, response: http.client.HTTPResponse, file: str, max_bytes: int, end: float) -> bytes:
        data = bytearray()
        # `read` would wait for all it was asked for, however slowly it comes.
        while len(data) <= max_bytes and (chunk := response.read1(min(_CHUNK, max_bytes + 1 - len(data)))):
            data += chunk
            if self._monotonic() > end:
                raise self._too_slow(file)
        return bytes(data)

    def _too_slow(self, file: str) -> TrustError:
        return TrustError(f"{self._base}{file} did not arrive within {self._timeout_s:g} s", "too_slow")


class DirectorySource:
    """A copy of a repository on a disk: a USB stick, a mounted share."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def fetch(self, file: str, max_bytes: int) -> bytes | None:
        """Return the bytes of a file; see `MetadataSource`."""
        try:
            with (self._directory / file).open("rb") as data:
                return data.read(max_bytes + 1)
        except FileNotFoundError as e:
            if not self._directory.is_dir():
                raise TrustError(f"{self._directory} is no directory", "unreachable") from e
            return None
        except OSError as e:
            raise TrustError(f"{self._directory / file} cannot be read: {e.strerror}", "unreachable") from e


class BundleSource:
    """Metadata that came in one message: file names and bytes."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def fetch(self, file: str, max_bytes: int) -> bytes | None:
        """Return the bytes of a file; see `MetadataSource`."""
        return self._files.get(file)


class KnownSource:
    """What is known already.

    Args:
        files: That were verified before, by repository and the name that tuf's client gives them.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def fetch(self, file: str, max_bytes: int) -> bytes | None:
        """Return a file that was verified before; newer roots are not among them."""
        folder, _, name = file.rpartition("/")
        kind, role = folder.partition("/")[0], re.sub(r"^[0-9]+\.", "", name)
        return self._files.get(f"{kind}/{role}")


class AskedOnce:
    """A source that is asked for each file once, so that what was looked at is not fetched again."""

    def __init__(self, source: MetadataSource) -> None:
        self._source: MetadataSource | None = source
        self._answers: dict[str, bytes | None] = {}

    def fetch(self, file: str, max_bytes: int) -> bytes | None:
        """Return the bytes of a file; see `MetadataSource`."""
        if self._source is None:
            raise TrustError(f"{file} cannot be fetched: its source is not asked any more", "unreachable")
        if file not in self._answers:
            self._answers[file] = self._source.fetch(file, max_bytes)
        return self._answers[file]

    def close(self) -> None:
        """Ask no more, and forget what was answered."""
        self._source = None
        self._answers.clear()


Source = str | Path | Mapping[str, bytes] | MetadataSource


def open_source(source: Source) -> MetadataSource:
    """Return what a source means: a URL, a directory, the files of a message, or a source of one's own."""
    if isinstance(source, str):
        return HttpSource(source)
    if isinstance(source, Path):
        return DirectorySource(source)
    if isinstance(source, Mapping):
        return BundleSource(source)
    return source
