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
    from edgec.runtime._cache import ResultCache
    from edgec.runtime._following import FollowedSession, follow
    from edgec.runtime._host import Host
    from edgec.runtime._hosted import HostedModel
    from edgec.runtime._isolation import Isolation
    from edgec.runtime._observer import ObserveOptions, Observer
    from edgec.runtime._pool import Pool
    from edgec.runtime._shadow import Shadow, ShadowReport
    from edgec.runtime._window import Window
    from edgec.runtime.chains import Chain, ChainStream, load_chain
    from edgec.runtime.fallback import Answer, Fallback

__all__ = [
    "Answer",
    "Batcher",
    "BoundCall",
    "Chain",
    "ChainStream",
    "Fallback",
    "FollowedSession",
    "Host",
    "HostedModel",
    "Isolation",
    "ObserveOptions",
    "Observer",
    "OutputTest",
    "Pool",
    "ResultCache",
    "SelfTestResult",
    "Session",
    "Shadow",
    "ShadowReport",
    "Window",
    "follow",
    "load",
    "load_chain",
]

# What few applications use is imported when it is asked for.
_LATER = {
    "Answer": "fallback",
    "Batcher": "_batcher",
    "BoundCall": "_buffers",
    "Chain": "chains",
    "ChainStream": "chains",
    "Fallback": "fallback",
    "FollowedSession": "_following",
    "Host": "_host",
    "HostedModel": "_hosted",
    "Isolation": "_isolation",
    "ObserveOptions": "_observer",
    "Observer": "_observer",
    "Pool": "_pool",
    "ResultCache": "_cache",
    "Shadow": "_shadow",
    "ShadowReport": "_shadow",
    "Window": "_window",
    "follow": "_following",
    "load_chain": "chains",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
