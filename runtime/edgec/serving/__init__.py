"""Serve artifacts over HTTP: the Open Inference Protocol v2 with binary tensors.

    from edgec.serving import Server, ServerOptions

    with Server(["digits.edgec"], ServerOptions(port=0)) as server:
        print(server.url)

``edgec serve digits.edgec`` does the same. It needs the extra ``serve``.
"""

from edgec.serving._access import read_keys
from edgec.serving._models import ServedModel
from edgec.serving._options import ServerOptions
from edgec.serving._repository import Loader
from edgec.serving._server import Server

__all__ = ["Loader", "ServedModel", "Server", "ServerOptions", "read_keys"]
