"""Environments of their own for converter stacks that do not fit beside edgec.

TensorFlow, PyTorch and onnx2tf pin what edgec needs in other versions, and weigh hundreds of megabytes. Each
lives in a virtual environment that `edgec doctor --install` makes, and works through a process: a request
and an answer in JSON, arrays in ``.npz`` files, never a pickle.
"""

from edgec.compiler.environments._process import Answer, call_worker
from edgec.compiler.environments._store import EnvironmentState, EnvironmentStore, default_home
from edgec.compiler.environments._table import ENVIRONMENTS, Environment, get_environment

__all__ = [
    "ENVIRONMENTS",
    "Answer",
    "Environment",
    "EnvironmentState",
    "EnvironmentStore",
    "call_worker",
    "default_home",
    "get_environment",
]
