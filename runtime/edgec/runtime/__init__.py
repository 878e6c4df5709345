"""Run artifacts.

    from edgec.runtime import load

    with load("digits.edgec") as session:
        outputs = session.run({"image": image})

Importing this package imports no engine; `load` imports the one that an artifact asks for.
"""

from typing import TYPE_CHECKING

from edgec.runtime._self_test import OutputTest, SelfTestResult
from edgec.runtime._session import Session, load

if TYPE_CHECKING:
    from edgec.runtime._batcher import Batcher
    from edgec.runtime._buffers import BoundCall
    from edgec.runtime._host import Host, HostedModel
    from edgec.runtime._pool import Pool
    from edgec.runtime._shadow import Shadow, ShadowReport

__all__ = [
    "Batcher",
    "BoundCall",
    "Host",
    "HostedModel",
    "OutputTest",
    "Pool",
    "SelfTestResult",
    "Session",
    "Shadow",
    "ShadowReport",
    "load",
]

# What few applications use is imported when it is asked for.
_LATER = {
    "Batcher": "_batcher",
    "BoundCall": "_buffers",
    "Host": "_host",
    "HostedModel": "_host",
    "Pool": "_pool",
    "Shadow": "_shadow",
    "ShadowReport": "_shadow",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
