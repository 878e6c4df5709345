"""A TFLite file as C source, which a firmware for microcontrollers is linked with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgec.artifact import Artifact, atomic_write
from edgec.compiler.tflite.arena import estimate_arena
from edgec.errors import ConversionError

_PER_LINE = 16

_HEADER = """\
// {title}
//
// The tensor arena is an estimate: the plan that LiteRT for Microcontrollers makes of the activations
// ({activations} bytes, with buffers of the kernels), and the interpreter's structures with the sizes of a
// 64-bit host ({persistent} bytes). What the device really needs, MicroInterpreter::arena_used_bytes() says.
#ifndef {guard}
#define {guard}

#include <stddef.h>

#define {upper}_ARENA_BYTES {arena}

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {symbol}[];
extern const size_t {symbol}_len;

#ifdef __cplusplus
}}
#endif

#endif  // {guard}
"""

_SOURCE = """\
// {title}
#include "{header}"

#ifdef __cplusplus
#define {upper}_ALIGNAS alignas(16)
#else
#define {upper}_ALIGNAS _Alignas(16)
#endif

{upper}_ALIGNAS const unsigned char {symbol}[] = {{
{rows}
}};
const size_t {symbol}_len = {length};
"""


@dataclass(frozen=True, kw_only=True)
class CArray:
    """A model as C.

    Attributes:
        header: The text of the ``.h``: the array, its length, the estimated tensor arena.
        source: The text of the ``.cc``; it is C11 as well as C++11.
        symbol: Name of the array; ``<symbol>_len`` is its length.
        arena_bytes: Estimated; in the header as ``<SYMBOL>_ARENA_BYTES``.
    """

    header: str
    source: str
    symbol: str
    arena_bytes: int


def make_c_array(data: bytes, stem: str, title: str) -> CArray:
    """Return a TFLite file as C.

    Args:
        data: The file.
        stem: Of the names of both files; the array's name is made of it.
        title: One line for the comment at the top.
    """
    symbol = _identifier(stem)
    estimate = estimate_arena(data)
    words = {
        "title": " ".join(title.split()).replace("\\", "/"),
        "symbol": symbol,
        "upper": symbol.upper(),
        "guard": f"{symbol.upper()}_H_",
        "header": f"{stem}.h",
    }
    header = _HEADER.format(
        **words,
        activations=estimate.activations_bytes,
        persistent=estimate.persistent_bytes,
        arena=estimate.total_bytes,
    )
    source = _SOURCE.format(**words, rows=_rows(data), length=len(data))
    return CArray(header=header, source=source, symbol=symbol, arena_bytes=estimate.total_bytes)


def emit_c_array(artifact: Path) -> tuple[Path, Path]:
    """Write the TFLite file of an artifact as C beside it; return the paths of ``.h`` and ``.cc``.

    It is the file that the device runs: where Vela has compiled it, Vela's.

    Raises:
        ConversionError: The artifact is for another engine.
        ArtifactError: It cannot be read.
    """
    with Artifact.open(artifact) as opened:
        manifest = opened.manifest
        file = next((f for f in manifest.engine.files if f.endswith(".tflite")), None)
        if file is None:
            raise ConversionError(
                f"{artifact} is for {manifest.engine.name}, and a C array is made of a TFLite file: compile "
                "for a target of LiteRT, such as ethos-u55-128 or npu-tflite (edgec targets)"
            )
        data = opened.read(file)
    title = f"{file} of {artifact.name}, {manifest.engine.precision}; written by edgec"
    made = make_c_array(data, artifact.stem, title)
    paths = artifact.with_suffix(".h"), artifact.with_suffix(".cc")
    for path, text in zip(paths, (made.header, made.source), strict=True):
        with atomic_write(path) as target:
            target.write(text.encode())
    return paths


def _identifier(stem: str) -> str:
    word = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return f"model_{word}" if not word[:1].isalpha() else word


def _rows(data: bytes) -> str:
    lines = (data[i : i + _PER_LINE] for i in range(0, len(data), _PER_LINE))
    return "\n".join("  " + " ".join(f"0x{b:02x}," for b in line) for line in lines)
