"""Interpreters on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgec.errors import ConversionError

# Debian packages ensurepip apart, so that an interpreter may be there and unable to make environments.
_PROBE = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
_PROBE_S = 30.0


def find_python(versions: Sequence[str], what: str) -> Path:
    """Return an interpreter of one of these versions that can make virtual environments, first ones first.

    Looks at the one that runs this, on the path, and among those that pyenv and uv installed for this user.

    Raises:
        ConversionError: There is none; what was looked for is said.
    """
    unfit: list[str] = []
    for version in versions:
        for candidate in dict.fromkeys(_candidates(version)):
            if _works(candidate, version):
                return candidate
            unfit.append(str(candidate))
    seen = f" ({', '.join(unfit)} cannot make environments: is ensurepip missing?)" if unfit else ""
    raise ConversionError(
        f"{what} needs Python {' or '.join(versions)}, and there is no such interpreter here{seen}: install "
        f"one, for example with  pyenv install {versions[0]}  or  apt install python{versions[0]}-venv"
    )


def _candidates(version: str) -> Iterator[Path]:
    if "{}.{}".format(*sys.version_info[:2]) == version:
        # Of an environment, the interpreter that it was made from: environments may go.
        yield Path(sys.base_prefix) / "bin" / f"python{version}"
    name = f"python{version}"
    if found := shutil.which(name):
        yield Path(found)
    for root, pattern in (
        (".pyenv/versions", f"{version}.*/bin/{name}"),
        (".local/share/uv/python", f"cpython-{version}.*/bin/{name}"),
    ):
        yield from sorted((Path.home() / root).glob(pattern), reverse=True)


def _works(python: Path, version: str) -> bool:
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", _PROBE], capture_output=True, timeout=_PROBE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.decode().strip() == version
