"""Compile every model at hand for several targets, and say of each what ships and why, or what stops it.

    EDGEC_TEST_MODELS=DIR python -m benchmarks.zoo [CASE ...] [--targets TARGET ...] [--measure-s 1]

Each build runs in a process of its own and replaces its row in `benchmarks/results/zoo.json`, so that it can
be run again in pieces, and in several processes at a time where no latency is measured;
`benchmarks/results/zoo.md` is the same as a table, and `--table` writes it anew without a build. MiniLM is
left out until `benchmarks/export_minilm.py` has been run.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.cases import MINILM, ROOT, Case, case_names, make_case

from edgec.artifact import atomic_write
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.check import check_model
from edgec.compiler.figures import machine_info, tool_versions
from edgec.compiler.onnxruntime import ReferenceProgram
from edgec.compiler.report import ArtifactInfo
from edgec.errors import EdgecError
from edgec.runtime import load
from edgec.targets import resolve_target

TARGETS = ("cpu-x86_64", "intel-cpu", "jetson", "rpi5", "npu-tflite", "ethos-u55-128", "ethos-u85-256")
RESULTS = ROOT / "benchmarks" / "results"

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all by default")
    parser.add_argument("--targets", nargs="+", metavar="TARGET", choices=TARGETS, default=TARGETS)
    parser.add_argument("--measure-s", type=float, default=1.0, help="seconds per candidate")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="for one build")
    parser.add_argument("--output", type=Path, default=RESULTS / "zoo.json")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.table:
        write_table(asked.output, json.loads(asked.output.read_text()))
        return
    if asked.one is not None:
        print(json.dumps(case_row(asked.one, asked.targets[0], asked.measure_s)))
        return
    for name in asked.cases or case_names():
        if name == "minilm" and not (MINILM / "minilm.onnx").exists():
            print("minilm: left out: run benchmarks/export_minilm.py first", flush=True)
            continue
        for target in asked.targets:
            store(asked.output, name, run_build(name, target, asked.measure_s, asked.timeout_s))


def run_build(name: str, target: str, measure_s: float, timeout_s: float) -> Row:
    """Run a build in a process of its own; a crash or a hang is a row too."""
    command = [sys.executable, "-m", "benchmarks.zoo", "--one", name, "--targets", target]
    print(f"== {name} for {target}", flush=True)
    try:
        done = subprocess.run(
            [*command, "--measure-s", str(measure_s)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            timeout=timeout_s,
            check=False,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return failed(name, target, f"not finished within {timeout_s:g} s")
    if done.returncode:
        return failed(name, target, f"ended with exit code {done.returncode}")
    made: Row = json.loads(done.stdout.splitlines()[-1])
    return made


def failed(name: str, target: str, reason: str) -> Row:
    """Return the row of a build that gave no artifact."""
    return {"model": name, "target": target, "built": False, "reason": reason}


def case_row(name: str, target: str, measure_s: float) -> Row:
    """Compile a case for a target from nothing, and describe what came of it."""
    with tempfile.TemporaryDirectory(prefix="edgec-zoo-") as scratch:
        case = make_case(name, Path(scratch, "data"))
        made = row(case, target, Path(scratch, target), measure_s)
    made["load_1m"] = machine_info().get("load_1m")
    made["data"] = case.data
    show(made)
    return made


def row(case: Case, target: str, output: Path, measure_s: float) -> Row:
    """Compile a case for a target, and describe the artifact or what stops it."""
    start = time.monotonic()
    try:
        result = compile_model(
            case.model,
            [target],
            output,
            pipeline=case.pipeline,
            calibration=case.calibration,
            evaluation=case.evaluation,
            metric=case.metric,
            options=CompileOptions(shapes=case.shapes, measure_s=measure_s, name="model"),
        )
    except EdgecError as e:
        return failed(case.name, target, str(e)) | {
            "compile_s": round(time.monotonic() - start, 1),
            "check": stopped_by(case, target),
        }
    [info] = result.report["artifacts"]
    return described(case, target, info) | {
        "compile_s": round(time.monotonic() - start, 1),
        "agreement": agreement(case, result.artifacts[0]),
    }


def stopped_by(case: Case, target: str) -> list[dict[str, str]]:
    """Return what ``edgec check`` says stops a model: node, operator and reason of each refusal."""
    try:
        report = check_model(case.model, resolve_target(target).target, shapes=case.shapes)
    except EdgecError as e:
        return [{"node": "", "op": "", "reason": str(e)}]
    return [{"node": e.node, "op": e.op, "reason": e.reason} for e in report.refused]


def described(case: Case, target: str, info: ArtifactInfo) -> Row:
    """Return the figures of an artifact."""
    candidates = info["candidates"]
    winner = next(c for c in candidates if c["status"] == "winner")
    parity, accuracy, latency = info["parity"], info.get("accuracy"), info.get("latency_ms")
    decisions = [d for d in info["decisions"] if " ships: " in d]
    return {
        "model": case.name,
        "target": target,
        "built": True,
        "precision": info["precision"],
        "candidate": winner["name"],
        "parity": parity is not None and parity["passed"],
        "parity_max_abs_error": parity["max_abs_error"] if parity is not None else None,
        "parity_tolerance": parity.get("tolerance") if parity is not None else None,
        "source_snr_db": winner.get("source_snr_db"),
        "metric": case.metric,
        "accuracy": accuracy["artifact"] if accuracy else None,
        "accuracy_fp32": accuracy.get("source") if accuracy else None,
        "size_bytes": info["size_bytes"],
        "latency_p50_ms": latency["p50"] if latency else None,
        "speedup_over_fp32": winner.get("speedup"),
        "latency_source": info.get("measured_on"),
        "placement": placement(info),
        "reason": decisions[0] if decisions else winner.get("reason", ""),
        "candidates": [
            {
                "name": c["name"],
                "status": c["status"],
                "reason": c.get("reason"),
                "latency_p50_ms": (found := c.get("latency_ms")) and found["p50"],
                "size_bytes": c.get("size_bytes"),
                "source_snr_db": c.get("source_snr_db"),
                "accuracy": (score := c.get("accuracy")) and score["artifact"],
            }
            for c in candidates
        ],
        "warnings": list(info.get("warnings", [])),
    }


def placement(info: ArtifactInfo) -> str | None:
    """Return what Vela estimates, and where it puts operators; None where it was not asked."""
    for said in info.get("not_run", []):
        _, found, rest = said.partition("Vela estimates ")
        if found:
            return rest.rsplit(", estimated by", 1)[0]
    return None


def agreement(case: Case, artifact: Path) -> dict[str, Any] | None:
    """Return how often artifact and source give the same first class, where a case asks for it."""
    if case.agreement is None:
        return None
    with np.load(case.agreement) as data:
        [(name, samples)] = data.items()
    from edgec.compiler.model import load_model

    source = load_model(case.model, case.shapes)
    with ReferenceProgram(source.proto, optimize=True) as reference, load(artifact) as session:
        same = sum(
            first_class(reference.run({name: sample[None]})) == first_class(session.run({name: sample[None]}))
            for sample in samples
        )
    return {"samples": len(samples), "same_first_class": round(same / len(samples), 4)}


def first_class(outputs: Any) -> int:
    """Return the index of the highest score of the only output."""
    [scores] = outputs.values()
    return int(np.argmax(scores))


def store(path: Path, name: str, made: Row) -> None:
    """Replace a row in the results, and write the table anew."""
    with locked(path):
        kept = json.loads(path.read_text())["rows"] if path.exists() else {}
        by_target = {r["target"]: r for r in kept.get(name, [])} | {made["target"]: made}
        kept[name] = [by_target[t] for t in TARGETS if t in by_target]
        content = {
            "benchmark": "zoo",
            "machine": machine_info(),
            "tools": tool_versions(),
            "note": "latencies with one thread; load_1m of each row is the machine's when its build ended",
            "rows": {n: kept[n] for n in case_names() if n in kept},
        }
        with atomic_write(path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
        write_table(path, content)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs that write the same results waiting."""
    with Path(tempfile.gettempdir(), f"edgec-{path.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_table(path: Path, content: dict[str, Any]) -> None:
    """Write the results as a table beside them."""
    with atomic_write(path.with_suffix(".md")) as file:
        file.write(markdown(content).encode())


def markdown(content: dict[str, Any]) -> str:
    """Return the results as a table."""
    machine = content["machine"]
    rows = [r for group in content["rows"].values() for r in group]
    built = sum(r["built"] for r in rows)
    lines = [
        f"# Every model at hand, on {len({r['target'] for r in rows})} targets",
        "",
        "Written by `benchmarks/zoo.py`; all figures, and every candidate, are in `zoo.json`. "
        f"{machine['cpu']}, {machine['cores']} cores, one thread per inference. {built} of {len(rows)} "
        "builds gave an artifact; of the others the row says what stops them.",
        "",
        "| model | target | ships | parity | quality | size | latency (source) | over fp32 | compile | why |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells(r))} |" for r in rows),
        "",
        "Quality: the metric of the artifact (of the source in fp32), share of samples with the source's "
        "first class, and SNR of the worst output against the source. The load of the machine, and what the "
        f"data was, are in `zoo.json`. {content['note'][0].upper()}{content['note'][1:]}.",
        "",
    ]
    return "\n".join(lines)


def cells(r: Row) -> list[str]:
    """Return the cells of a row of the table."""
    time_s = f"{r['compile_s']:g} s" if "compile_s" in r else ""
    if not r["built"]:
        return [r["model"], r["target"], "nothing", "", "", "", "", "", time_s, in_cell(why_not(r))]
    quality = []
    if r["accuracy"] is not None:
        quality.append(f"{r['metric']} {r['accuracy']:.4g} ({r['accuracy_fp32']:.4g})")
    if r["agreement"] is not None:
        quality.append(f"{r['agreement']['same_first_class']:.1%} same of {r['agreement']['samples']}")
    snr = r["source_snr_db"]
    quality.append(f"{snr:.1f} dB" if snr is not None else "identical")
    latency = "not measured (ranked by the target's rule)"
    if r["latency_p50_ms"] is not None:
        latency = f"{r['latency_p50_ms']:.3g} ms (here)"
    elif r.get("placement"):
        latency = f"Vela estimates {r['placement']}"
    speedup = r["speedup_over_fp32"]
    return [
        r["model"],
        r["target"],
        r["candidate"],
        "pass" if r["parity"] else "fail",
        ", ".join(quality),
        f"{r['size_bytes'] / 1e6:.3g} MB",
        latency,
        f"{speedup:.2f}x" if speedup is not None else "",
        time_s,
        in_cell(r["reason"]),
    ]


def why_not(r: Row) -> str:
    """Return what stops a build: what ``check`` refuses, or else what compile said."""
    refused = r.get("check") or []
    if not refused:
        return str(r["reason"])
    first = refused[0]
    more = f" and {len(refused) - 1} more" if len(refused) > 1 else ""
    return f"`edgec check`: {first['op']} {first['node']}{more}: {first['reason']}"


def in_cell(text: str) -> str:
    """Return text on one line, short enough for a table."""
    flat = " ".join(text.replace("|", "\\|").split())
    return flat if len(flat) <= 300 else f"{flat[:297]}..."


def show(r: Row) -> None:
    print(" | ".join(cells(r)), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
