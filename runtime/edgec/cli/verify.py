"""``edgec verify``: is an artifact whole, and does it compute here what it should?"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgec.cli import _options
from edgec.cli._text import columns, printable, size

if TYPE_CHECKING:
    from edgec.artifact import Artifact
    from edgec.runtime import OutputTest, SelfTestResult, Session


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--digests-only", is_flag=True, help="Do not run the golden vectors; needs no engine.")
@_options.engine_cache
@_options.delegate
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def command(
    artifact: Path, digests_only: bool, cache_dir: Path | None, delegate: Path | None, as_json: bool
) -> None:
    """Check the digest of every member, then run the golden vectors on the engine at hand.

    Exits with 1 if the file is damaged, the engine is not here, or an output is outside of its
    tolerance. Of a chain, every artifact is checked, and that the stages fit each other.

    \b
    edgec verify build/digits-cpu-x86_64.edgec
    edgec verify build/digits-cpu-x86_64.edgec --digests-only --json
    """
    from edgec.cli._chains import is_chain, verify_chain

    if is_chain(artifact):
        chain = verify_chain(artifact, digests_only, cache_dir, delegate)
        _say(chain, list(chain["stages"].items()), digests_only, as_json)
        return
    shape = verify_artifact(artifact, digests_only, cache_dir, delegate)
    _say(shape, [("", shape)], digests_only, as_json)


def _say(
    shape: dict[str, Any], artifacts: list[tuple[str, dict[str, Any]]], digests_only: bool, as_json: bool
) -> None:
    if as_json:
        click.echo(json.dumps(shape, indent=2))
    else:
        for stage, facts in artifacts:
            rows = [*_digests_told(facts), *_self_test_told(facts["self_test"], digests_only)]
            click.echo("\n".join(columns([("stage", stage), *rows] if stage else rows, "")))
        if shape.get("fits"):
            click.echo("the stages of the chain fit each other")
    for _, facts in artifacts:
        if not facts["passed"]:
            _refuse(facts["path"], facts["self_test"] or {})


def verify_artifact(
    path: Path, digests_only: bool, cache_dir: Path | None, delegate: Path | None
) -> dict[str, Any]:
    """Check the digests of an artifact, and run its golden vectors.

    Returns:
        What ``edgec verify --json`` prints.

    Raises:
        EdgecError: It is damaged, or does not load.
    """
    from edgec.artifact import Artifact

    with Artifact.open(path) as opened:
        opened.verify()
        facts = _facts(opened)
    runs = bool(facts["golden_vectors"]) and not digests_only
    self_test = _run_self_test(path, cache_dir, delegate) if runs else None
    return {**facts, "self_test": self_test, "passed": self_test is None or self_test["passed"]}


def _facts(artifact: Artifact) -> dict[str, Any]:
    return {
        "path": str(artifact.path),
        "size_bytes": artifact.size_bytes,
        "content_digest": artifact.content_digest,
        "members": len(artifact.names()),
        "golden_vectors": len(artifact.golden()),
    }


def _run_self_test(path: Path, cache_dir: Path | None, delegate: Path | None) -> dict[str, Any]:
    from edgec.errors import BackendUnavailableError
    from edgec.runtime import load

    try:
        # All vectors follow.
        with load(path, cache_dir=cache_dir, delegate=delegate, self_test=False) as session:
            return _self_test(session, session.self_test())
    except BackendUnavailableError as e:
        raise BackendUnavailableError(
            f"{e}; the digests are right, but nothing was run (--digests-only asks for no more)"
        ) from e


def _self_test(session: Session, result: SelfTestResult) -> dict[str, Any]:
    return {
        "passed": result.passed,
        "engine": session.engine,
        "engine_version": session.engine_version,
        "state": session.state,
        "precision": session.precision,
        "placement": dict(session.placement),
        "outputs": [_output(test) for test in result.outputs],
    }


def _output(test: OutputTest) -> dict[str, Any]:
    return {
        "vector": test.vector,
        "output": test.output,
        # JSON has no infinity, which stands for another dtype or shape.
        "max_abs_error": test.max_abs_error if isfinite(test.max_abs_error) else None,
        "tolerance": test.tolerance,
        "rms_error": test.rms_error if isfinite(test.rms_error) else None,
        "rms_tolerance": test.rms_tolerance,
        "passed": test.passed,
    }


def _digests_told(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        ("file", facts["path"]),
        ("content", facts["content_digest"]),
        ("digests", f"all {facts['members']} members right, {size(facts['size_bytes'])}"),
    ]


def _self_test_told(self_test: dict[str, Any] | None, digests_only: bool) -> list[tuple[str, ...]]:
    if self_test is None:
        return [
            ("golden", "not run" if digests_only else "the artifact has no golden vectors: nothing was run")
        ]
    devices = ", ".join(f"{count} nodes on {device}" for device, count in self_test["placement"].items())
    fallback = ", the declared fallback" if self_test["state"] == "fallback" else ""
    return [
        ("engine", f"{self_test['engine']} {self_test['engine_version']}{fallback}"),
        ("ran in", f"{self_test['precision']}; {devices}" if devices else self_test["precision"]),
        *[("golden", _worst(name, tests)) for name, tests in _by_output(self_test["outputs"]).items()],
    ]


def _by_output(tests: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_output: dict[str, list[dict[str, Any]]] = {}
    for test in tests:
        by_output.setdefault(test["output"], []).append(test)
    return by_output


def _worst(name: str, tests: list[dict[str, Any]]) -> str:
    failed = [test for test in tests if not test["passed"]]
    errors = [test["max_abs_error"] for test in failed or tests]
    error = "another dtype, shape, or not finite" if None in errors else f"max abs error {max(errors):.3g}"
    verdict = f"{len(failed)} of {len(tests)} vectors outside" if failed else f"{len(tests)} vectors within"
    rms, allowed = tests[0]["rms_error"], tests[0]["rms_tolerance"]
    if rms is not None and allowed is not None:
        error = f"{error}, root mean square {rms:.3g} of {allowed:.3g}"
    return f"{name}: {verdict} the tolerance of {tests[0]['tolerance']:.3g}, {error}"


def _refuse(path: str, self_test: dict[str, Any]) -> None:
    from edgec.errors import SelfTestError

    names = [name for name, tests in _by_output(self_test["outputs"]).items() if not all(_passed(tests))]
    raise SelfTestError(
        f"{path}: on {self_test['engine']} {self_test['engine_version']}, {printable(', '.join(names))} "
        "differs from the golden vectors by more than the tolerance: "
        "this device computes something else; do not use the artifact on it"
    )


def _passed(tests: list[dict[str, Any]]) -> list[bool]:
    return [test["passed"] for test in tests]
