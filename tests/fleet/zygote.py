"""Starts ``edgec`` as often as it is told, each in a process that has imported all it needs already.

Read from standard input, one JSON a line: ``{"start": [arguments]}``, answered with ``{"pid": 1}`` before
what the command itself prints; ``{"wait": pid}``, answered with ``{"code": 0}``, negative for a signal.
"""

from __future__ import annotations

import json
import os
import sys

import edgec.fleet.server  # noqa: F401
from edgec.cli import main_group


def run(arguments: list[str]) -> None:
    """Be the command."""
    sys.stdin.close()
    try:
        main_group.main(args=arguments, prog_name="edgec")
    except SystemExit as e:
        sys.stdout.flush()
        os._exit(e.code if isinstance(e.code, int) else 1)


def tell(**facts: int) -> None:
    """Answer."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    while line := sys.stdin.readline():
        told = json.loads(line)
        if "start" in told:
            told_of, tell_of = os.pipe()
            child = os.fork()
            if child == 0:
                os.read(told_of, 1)
                run(told["start"])
            tell(pid=child)
            os.write(tell_of, b"x")
            os.close(told_of)
            os.close(tell_of)
        else:
            tell(code=os.waitstatus_to_exitcode(os.waitpid(told["wait"], 0)[1]))
