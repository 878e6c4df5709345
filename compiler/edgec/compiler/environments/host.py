"""Runs one worker under an environment's own Python, where no edgec is: ``python -I host.py``.

Only the standard library is imported here. Standard input has a request in JSON: ``worker`` (path of a
module with ``handle(request) -> answer``), ``request`` and ``answer`` (path of the file for it). What the
worker prints goes where this process' standard output and error go.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from typing import Any

_LARGEST = 1 << 20


def main() -> None:
    """Serve one request; the answer has ``result``, or ``error`` with its type and its message."""
    text = sys.stdin.buffer.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise SystemExit("the request is too large")
    order = json.loads(text)
    answer = _answer(order["worker"], order["request"])
    aside = order["answer"] + ".partial"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.replace(aside, order["answer"])


def _answer(worker: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": runpy.run_path(worker)["handle"](request)}
    except Exception as e:  # noqa: BLE001 - whatever a framework raises, the parent must hear of it
        traceback.print_exc()
        return {"error": {"type": type(e).__name__, "message": str(e)[:4000]}}


if __name__ == "__main__":
    main()
