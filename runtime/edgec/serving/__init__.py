"""Serve artifacts over HTTP: the Open Inference Protocol v2 with binary tensors.

    from edgec.serving import Server, ServerOptions

    with Server(["digits.edgec"], ServerOptions(port=0)) as server:
        print(server.url)

``edgec serve digits.edgec`` does the same. It needs the extra ``serve``.
"""

from edgec.serving._access import read_keys
from edgec.serving._app import App, Send
from edgec.serving._assembly import Assembly, assemble
from edgec.serving._body import Receive
from edgec.serving._contract import DEADLINE, read_terms
from edgec.serving._lanes import BusyError, ClientGoneError
from edgec.serving._models import ServedModel
from edgec.serving._options import DEVICES, ServerOptions
from edgec.serving._repository import PREDICT, Loader, Repository, Slot
from edgec.serving._server import Front, Server

__all__ = [
    "DEADLINE",
    "DEVICES",
    "PREDICT",
    "App",
    "Assembly",
    "BusyError",
    "ClientGoneError",
    "Front",
    "Loader",
    "Receive",
    "Repository",
    "Send",
    "ServedModel",
    "Server",
    "ServerOptions",
    "Slot",
    "assemble",
    "read_keys",
    "read_terms",
]
