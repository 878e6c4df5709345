"""Run artifacts.

    from edgec.runtime import load

    with load("digits.edgec") as session:
        outputs = session.run({"image": image})

Importing this package imports no engine; `load` imports the one that an artifact asks for.
"""

from edgec.runtime._buffers import BoundCall
from edgec.runtime._pool import Pool
from edgec.runtime._self_test import OutputTest, SelfTestResult
from edgec.runtime._session import Session, load

__all__ = ["BoundCall", "OutputTest", "Pool", "SelfTestResult", "Session", "load"]
