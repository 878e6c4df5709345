"""edgec's TFLite files against those of ai-edge-quantizer and onnx2tf, on the same models in one run.

    EDGEC_TEST_MODELS=DIR python -m benchmarks.tflite [CASE ...] --quantizer PYTHON --old-runtime PYTHON
        [--prototype FILE]

Float32 files are written by edgec and by onnx2tf; int8 files by edgec (`compile` for `npu-tflite`), by
ai-edge-quantizer from either float file, and by onnx2tf (`-oiqt`); MiniLM is quantized dynamically instead.
All get the same calibration samples, are judged on the same others, and are timed in one interleaved run per
model: LiteRT, XNNPACK, one thread. Each full-integer file goes through Vela for `ethos-u55-128`, and each
file is run once by tflite-runtime 2.14.

onnx2tf lives in its own environment: ``edgec doctor --install onnx2tf``. PYTHON is an interpreter that has
ai-edge-quantizer 0.10, or tflite-runtime 2.14 with numpy below 2; without it, what needs it is left out, and
the results say so. Each case runs in a process of its own and replaces its entry in
`benchmarks/results/tflite.json`; `tflite.md` is the same as a table, which `--table` writes anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_litert.interpreter import Interpreter
from benchmarks.cases import MINILM, ROOT
from benchmarks.peers import foreign_errors, judged, source_of
from benchmarks.tflite_cases import Subject, make_subject, subject_names
from numpy.typing import NDArray

from edgec.artifact import Artifact, TensorSpec, atomic_write
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.accuracy import Baseline, compare_unlabelled
from edgec.compiler.environments import EnvironmentStore, call_worker, default_home, get_environment
from edgec.compiler.figures import machine_info, tool_versions
from edgec.compiler.steadying import steadied
from edgec.compiler.tflite import Mode, write_tflite
from edgec.compiler.variants import Variant
from edgec.compiler.vela import run_vela
from edgec.errors import ConversionError, EdgecError
from edgec.runtime.measurement import measure_interleaved
from edgec.targets import load_target

RESULTS = ROOT / "benchmarks" / "results" / "tflite.json"
WORKERS = Path(__file__).with_name("tflite_workers")
NPU = "ethos-u55-128"
CALIBRATION = 100  # samples that every tool is given, at most
JUDGED = 300
STEADYING = 16  # samples that dynamic int8 is made ready with, as in a build
_BOUNDARY = ("QUANTIZE", "DEQUANTIZE")
_SMALL_CHANNELS = 4

Arrays = Mapping[str, NDArray[Any]]
Entry = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all by default")
    parser.add_argument("--quantizer", type=Path, help="a Python that has ai-edge-quantizer")
    parser.add_argument("--old-runtime", type=Path, help="a Python that has tflite-runtime 2.14")
    parser.add_argument("--prototype", type=Path, help="the module that edgec's writer grew from")
    parser.add_argument("--measure-s", type=float, default=1.0, help="seconds per file")
    parser.add_argument("--timeout-s", type=float, default=900.0, help="for one case")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.table:
        write_table(asked.output, json.loads(asked.output.read_text()))
        return
    if asked.one is not None:
        with redirect_stdout(sys.stderr):
            entry = one(
                asked.one, Tools(asked.quantizer, asked.old_runtime, asked.prototype), asked.measure_s
            )
        print(json.dumps(entry))
        return
    for name in asked.cases or subject_names():
        if name == "minilm" and not (MINILM / "minilm.onnx").exists():
            print("minilm: left out: run benchmarks/export_minilm.py first", flush=True)
            continue
        store(asked.output, name, in_process(name, asked))


def in_process(name: str, asked: argparse.Namespace) -> Entry:
    """Run a case in a process of its own; a crash or a hang is an entry too."""
    command = [sys.executable, "-m", "benchmarks.tflite", "--one", name, "--measure-s", str(asked.measure_s)]
    others = {"quantizer": asked.quantizer, "old-runtime": asked.old_runtime, "prototype": asked.prototype}
    for option, path in others.items():
        command += [f"--{option}", str(path)] if path is not None else []
    print(f"== {name}", flush=True)
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, timeout=asked.timeout_s, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished within {asked.timeout_s:g} s"}
    if done.returncode:
        return {"failed": f"ended with exit code {done.returncode}"}
    entry: Entry = json.loads(done.stdout.splitlines()[-1])
    return entry


# -- the tools ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tools:
    """Where the others are.

    Attributes:
        quantizer: Python with ai-edge-quantizer.
        old_runtime: Python with tflite-runtime 2.14.
        prototype: The module that edgec's writer grew from, with its ``fold_pre``, ``ranges`` and ``W``.
    """

    quantizer: Path | None
    old_runtime: Path | None
    prototype: Path | None

    @property
    def onnx2tf(self) -> Path:
        """Python with onnx2tf."""
        return EnvironmentStore(default_home() / "environments").python(get_environment("onnx2tf"))


def worker(python: Path, name: str, request: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Ask another Python.

    Raises:
        ConversionError: It fails, crashes or takes too long.
    """
    answer = call_worker(python, WORKERS / f"{name}.py", request, timeout_s=300.0, what=what)
    if answer.result is None:
        raise ConversionError(f"{answer.error_type}: {answer.message}{answer.last_lines}")
    return answer.result


@dataclass
class Contestant:
    """One file, and what is known of it.

    Attributes:
        entry: Its figures.
        file: Where it is; None where it could not be made.
    """

    entry: Entry
    file: Path | None = None
    run: Callable[[Arrays], Arrays] | None = field(default=None, repr=False)


def one(name: str, tools: Tools, measure_s: float) -> Entry:
    """Make, judge and time every file of a case."""
    with tempfile.TemporaryDirectory(prefix="edgec-tflite-") as scratch:
        work = Path(scratch)
        subject = make_subject(name, work / "data")
        variant, baseline = source_of(subject.case)
        samples = list(islice(variant.samples.inputs(variant.processor, variant.inputs), CALIBRATION))
        contestants: dict[str, Contestant] = {}
        for label, make in makers(subject, variant, samples, tools, work, contestants):
            contestants[label] = made(make)
        for contestant in contestants.values():
            examine(contestant, subject, variant, baseline, samples[0], tools, work)
        latencies = {}
        calls = {n: partial(c.run, samples[0]) for n, c in contestants.items() if c.run is not None}
        load_before = machine_info().get("load_1m")
        if calls:
            latencies = measure_interleaved(calls, duration_s=measure_s * len(calls), min_rounds=20)
        for label, latency in latencies.items():
            contestants[label].entry |= {"p50_ms": latency.p50_ms, "min_ms": latency.min_ms, "n": latency.n}
        return {
            "data": subject.case.data,
            "metric": subject.case.metric,
            "fp32": baseline.score.value if baseline is not None else None,
            "random_weights": subject.random,
            "mode": subject.mode,
            "load_1m": load_before,
            "files": {n: c.entry for n, c in contestants.items()},
        }


def makers(
    subject: Subject,
    variant: Variant,
    samples: Sequence[Arrays],
    tools: Tools,
    work: Path,
    made_before: Mapping[str, Contestant],
) -> Iterator[tuple[str, Callable[[Entry], Path]]]:
    """Yield what makes each file, by its label; later ones need earlier ones."""
    dynamic = subject.mode == "dynamic"
    source = work / "source.onnx"
    onnx.save(variant.model, source)
    yield "edgec float32", lambda _: write(work / "edgec_float32.tflite", variant.model, Mode.FLOAT32)
    if dynamic:
        yield "edgec dynamic", lambda _: dynamic_file(work / "edgec_dynamic.tflite", variant)
    else:
        yield "edgec int8", partial(compiled, subject, work)
        yield "prototype int8", partial(by_prototype, source, samples, tools, work)
    if subject.authors is not None:
        own = subject.authors
        yield "its author's integers", lambda _: own
    floats = partial(convert, source, variant, samples, tools, work / "onnx2tf")
    yield "onnx2tf float32", partial(floats, wanted="float32", integer=False)
    # Of its own, because where its int8 fails, nothing is written.
    integers = partial(convert, source, variant, samples, tools, work / "onnx2tf_int8", integer=True)
    yield (
        f"onnx2tf {subject.mode}",
        partial(integers, wanted="dynamic_range_quant" if dynamic else "integer_quant"),
    )
    for origin in ("edgec", "onnx2tf"):
        before = made_before[f"{origin} float32"].file
        yield (
            f"ai-edge-quantizer {subject.mode} of {origin}'s float",
            partial(quantize, before, origin, variant, samples, tools, work, dynamic=dynamic),
        )


def made(make: Callable[[Entry], Path]) -> Contestant:
    """Make a file, and note what that took, or what stopped it."""
    contestant = Contestant(entry={})
    start = time.monotonic()
    with foreign_errors(contestant.entry):
        contestant.file = make(contestant.entry)
        contestant.entry["prepare_s"] = round(time.monotonic() - start, 1)
        contestant.entry["size_bytes"] = contestant.file.stat().st_size
    return contestant


def write(path: Path, model: onnx.ModelProto, mode: Mode) -> Path:
    path.write_bytes(write_tflite(model, mode=mode, keep_layout=False).data)
    return path


def dynamic_file(path: Path, variant: Variant) -> Path:
    """Write a transformer in dynamic int8 as a build does."""
    ready = steadied(variant.model, variant.spread_inputs(STEADYING))
    written = write_tflite(ready.model, mode=Mode.DYNAMIC, exclude=ready.fragile, keep_layout=False)
    path.write_bytes(written.data)
    return path


def compiled(subject: Subject, work: Path, entry: Entry) -> Path:
    """Return the file that is shipped for any NPU; where the gate refuses it, the same with the gate off."""
    case = subject.case
    build = partial(
        compile_model,
        case.model,
        ["npu-tflite"],
        pipeline=case.pipeline,
        calibration=case.calibration,
        evaluation=case.evaluation,
        metric=case.metric,
    )
    options = CompileOptions(shapes=case.shapes, name="model", fold="off")
    if subject.random:
        options = replace(options, max_drop=None)
    try:
        result = build(work / "gated", options=options)
    except EdgecError as e:
        entry["refused"] = " ".join(str(e).split())[:300]
        result = build(work / "ungated", options=replace(options, max_drop=None))
    with Artifact.open(result.artifacts[0]) as artifact:
        return artifact.extract(work / "edgec_int8", ["model.tflite"])["model.tflite"]


def by_prototype(source: Path, samples: Sequence[Arrays], tools: Tools, work: Path, entry: Entry) -> Path:
    """Return what the prototype of the writer makes of a model."""
    if tools.prototype is None:
        raise ConversionError("left out: no prototype was named")
    path, arrays = work / "prototype.tflite", work / "samples_prototype.npz"
    np.savez(arrays, allow_pickle=False, **{n: np.stack([s[n] for s in samples]) for n in samples[0]})
    request = {
        "module": str(tools.prototype),
        "source": str(source),
        "samples": str(arrays),
        "output": str(path),
    }
    worker(Path(sys.executable), "prototype", request, "the prototype")
    return path


def convert(
    source: Path,
    variant: Variant,
    samples: Sequence[Arrays],
    tools: Tools,
    directory: Path,
    entry: Entry,
    *,
    wanted: str,
    integer: bool,
) -> Path:
    """Return a file by onnx2tf."""
    directory.mkdir()
    moved = [s.name for s in variant.inputs if _moves(s)]
    floats = [s for s in variant.inputs if s.dtype == "float32"]
    arrays: list[list[Any]] = []
    for spec in floats if integer else []:
        array = np.concatenate([sample[spec.name] for sample in samples])
        path = directory / f"{len(arrays)}.npy"
        np.save(path, array.transpose(0, 2, 3, 1) if spec.name in moved else array)
        arrays.append([spec.name, str(path), [0.0], [1.0]])
    request = {
        "source": str(source),
        "output": str(directory),
        "keep": [s.name for s in variant.inputs if s.name not in moved],
        "integer": integer,
        "samples": arrays,
    }
    result = worker(tools.onnx2tf, "convert", request, "onnx2tf")
    entry["tools"] = result["tools"]
    found = [
        Path(f) for f in result["files"] if f.endswith(f"_{wanted}.tflite") and "full_" not in Path(f).name
    ]
    if len(found) != 1:
        names = ", ".join(Path(f).name for f in result["files"])
        raise ConversionError(f"onnx2tf writes no {wanted} file, only {names or 'nothing'}")
    return found[0]


def _moves(spec: TensorSpec) -> bool:
    """Whether onnx2tf may have an input's channels last: where they are not so already."""
    return len(spec.shape) == 4 and int(spec.shape[1] or 0) <= _SMALL_CHANNELS


def quantize(
    source: Path | None,
    origin: str,
    variant: Variant,
    samples: Sequence[Arrays],
    tools: Tools,
    work: Path,
    entry: Entry,
    *,
    dynamic: bool,
) -> Path:
    """Return a float file as ai-edge-quantizer makes it int8."""
    if source is None:
        raise ConversionError(f"there is no float file by {origin}")
    if tools.quantizer is None:
        raise ConversionError("left out: no Python with ai-edge-quantizer was named")
    file = TfliteFile(source, variant)
    path, arrays = work / f"quantized_{origin}.tflite", work / f"samples_{origin}.npz"
    fed = [file.fed(sample) for sample in samples]
    np.savez(arrays, allow_pickle=False, **{n: np.stack([f[n] for f in fed]) for n in fed[0]})
    request = {
        "source": str(source),
        "output": str(path),
        "recipe": "dynamic_wi8_afp32" if dynamic else "static_wi8_ai8",
        "samples": str(arrays),
        "signature": file.signature,
    }
    entry["tools"] = worker(tools.quantizer, "quantize", request, "ai-edge-quantizer")["tools"]
    return path


# -- files -------------------------------------------------------------------------------------------------


class TfliteFile:
    """A file of whatever tool, called with the source's arrays.

    Axes are matched by size: a tensor of the source's shape has its axes, any other is transposed.
    """

    def __init__(self, path: Path, variant: Variant) -> None:
        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        signatures = self._interpreter.get_signature_list()
        self.signature = next(iter(signatures), None)
        self._inputs = _matched(variant.inputs, self._interpreter.get_input_details())
        self._outputs = _matched(variant.outputs, self._interpreter.get_output_details())
        names = dict.fromkeys(signatures[self.signature]["inputs"]) if self.signature else {}
        self._names = {
            s.name: s.name if s.name in names else str(self._inputs[s.name]["name"]) for s in variant.inputs
        }

    def fed(self, sample: Arrays) -> dict[str, NDArray[Any]]:
        """Return a sample as the file takes it, by the names of its signature."""
        return {self._names[n]: _entering(array, self._inputs[n]) for n, array in sample.items()}

    def __call__(self, sample: Arrays) -> Arrays:
        """Run once."""
        for name, array in sample.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], _entering(array, self._inputs[name]))
        self._interpreter.invoke()
        return {
            name: _leaving(self._interpreter.get_tensor(detail["index"]), detail)
            for name, detail in self._outputs.items()
        }


def _matched(specs: Sequence[TensorSpec], details: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the file's tensor of each of the source's, by name where names are alike, else by order."""
    found = {}
    for spec, detail in zip(specs, details, strict=True):
        alike = [
            d for d in details if d["name"] == spec.name or d["name"] == f"serving_default_{spec.name}:0"
        ]
        chosen = dict((alike or [detail])[0])
        shape = tuple(int(s or 1) for s in spec.shape)
        chosen["source_shape"] = shape
        chosen["axes"] = _axes(shape, tuple(int(d) for d in chosen["shape"]))
        found[spec.name] = chosen
    return found


def _axes(source: tuple[int, ...], file: tuple[int, ...]) -> tuple[int, ...]:
    if source == file:
        return tuple(range(len(source)))
    usual = [p for p in ((0, 2, 3, 1), (0, 2, 1)) if len(p) == len(source)]
    for perm in (*usual, *permutations(range(len(source)))):
        if tuple(source[p] for p in perm) == file:
            return perm
    raise ConversionError(f"a tensor of {list(source)} is {list(file)} in the file")


def _entering(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    array = np.ascontiguousarray(array.transpose(detail["axes"]))
    scale, zero = detail["quantization"]
    kind = np.dtype(detail["dtype"])
    if kind.kind in "iu" and array.dtype.kind == "f":
        limits = np.iinfo(kind)
        array = np.clip(np.rint(array / scale) + zero, limits.min, limits.max)
    return array.astype(kind, copy=False)


def _leaving(array: NDArray[Any], detail: Mapping[str, Any]) -> NDArray[Any]:
    scale, zero = detail["quantization"]
    if array.dtype.kind in "iu" and scale:
        array = ((array.astype(np.float32) - zero) * scale).astype(np.float32)
    return array.transpose(np.argsort(detail["axes"]))


# -- figures -----------------------------------------------------------------------------------------------


def examine(
    contestant: Contestant,
    subject: Subject,
    variant: Variant,
    baseline: Baseline | None,
    sample: Arrays,
    tools: Tools,
    work: Path,
) -> None:
    """Judge a file that was made, and see who takes it."""
    path, entry = contestant.file, contestant.entry
    if path is None:
        return
    with foreign_errors(entry):
        worker(Path(sys.executable), "probe", {"file": str(path), "package": "ai_edge_litert"}, "LiteRT")
        run = TfliteFile(path, variant)
        [likeness, *_] = compare_unlabelled(run, variant, JUDGED)
        entry["snr_db"] = round(likeness.snr_db, 2) if np.isfinite(likeness.snr_db) else None
        entry["agreement"] = likeness.agreement
        entry["judged"] = likeness.samples
        if baseline is not None:
            score = judged(run, variant, baseline)["score"]
            entry["accuracy"] = score
        contestant.run = run
    entry["tflite_runtime_2_14"] = opens(path, tools)
    if "float32" not in path.name and subject.mode == "int8":
        entry["vela"] = through_vela(path, Path(tempfile.mkdtemp(dir=work)))


def opens(path: Path, tools: Tools) -> str:
    """Return whether tflite-runtime 2.14 runs a file: ``yes``, or why not."""
    if tools.old_runtime is None:
        return "not tried: no Python with tflite-runtime was named"
    try:
        worker(tools.old_runtime, "probe", {"file": str(path), "package": "tflite_runtime"}, "tflite-runtime")
    except ConversionError as e:
        return " ".join(str(e).split())[:240]
    return "yes"


def through_vela(path: Path, directory: Path) -> Entry:
    """Return what Vela makes of a file; its QUANTIZE and DEQUANTIZE at the boundary are counted apart."""
    try:
        _, report = run_vela(path, dict(load_target(NPU).accelerator), directory)
    except ConversionError as e:
        return {"failed": " ".join(str(e).split())[:240]}
    boundary = sum(o.operator in _BOUNDARY for o in report.on_cpu)
    return {
        "cpu_operators": report.cpu_operators - boundary,
        "boundary_operators": boundary,
        "npu_operators": report.npu_operators,
        "inference_ms": report.inference_ms,
        "sram_kib": report.sram_kib,
        "on_cpu": [str(o) for o in report.on_cpu if o.operator not in _BOUNDARY][:4],
    }


# -- results -----------------------------------------------------------------------------------------------


def store(path: Path, name: str, entry: Entry) -> None:
    """Replace the entry of a case, and write the table anew."""
    kept = json.loads(path.read_text())["cases"] if path.exists() else {}
    kept[name] = entry
    content = {
        "benchmark": "tflite",
        "machine": machine_info(),
        "tools": tool_versions(),
        "note": "LiteRT with XNNPACK, one thread, all files of a model timed in one interleaved run; load_1m "
        "of each case is the machine's before it",
        "cases": {n: kept[n] for n in subject_names() if n in kept},
    }
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    write_table(path, content)
    for label, each in entry.get("files", {}).items():
        print(f"  {' | '.join(cells(name, label, each, entry))}", flush=True)
    if "failed" in entry:
        print(f"  {entry['failed']}", flush=True)


def write_table(path: Path, content: Mapping[str, Any]) -> None:
    """Write the results as a table beside them."""
    with atomic_write(path.with_suffix(".md")) as file:
        file.write(markdown(content).encode())


def markdown(content: Mapping[str, Any]) -> str:
    """Return the results as a table."""
    machine, cases = content["machine"], content["cases"]
    rows = [
        f"| {' | '.join(cells(name, label, each, case))} |"
        for name, case in cases.items()
        for label, each in case.get("files", {}).items()
    ]
    rows += [f"| {n} | | {c['failed']} | | | | | | |" for n, c in cases.items() if "failed" in c]
    return "\n".join(
        [
            "# TFLite files of three tools",
            "",
            "Written by `benchmarks/tflite.py`; all figures are in `tflite.json`. "
            f"{machine['cpu']}, {machine['cores']} cores. {content['note'][0].upper()}{content['note'][1:]}.",
            "",
            "| model | file | SNR against ONNX | agreement | metric (fp32) | size | latency | Vela | "
            "tflite-runtime 2.14 |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Agreement: share of samples whose first class is the source's. Vela, for {NPU}: operators that "
            "it leaves to the CPU, of all, without QUANTIZE and DEQUANTIZE of inputs and outputs, and the "
            "inference time that it estimates. Weights of mobilenet_v2-random are random: SNR compares tools "
            "there, and says nothing of accuracy. What the data is, is in `tflite.json`.",
            "",
        ]
    )


def cells(name: str, label: str, each: Entry, case: Entry) -> list[str]:
    """Return the cells of a row."""
    if "snr_db" not in each:
        return [name, label, f"fails: {_short(each.get('failed', ''))}", "", "", "", "", "", ""]
    snr = each["snr_db"]
    agreement, accuracy, vela = each.get("agreement"), each.get("accuracy"), each.get("vela")
    what = "identical" if snr is None else f"{snr:.1f} dB"
    if "refused" in each:
        what += " (built with the gate off)"
    return [
        name,
        label,
        what,
        f"{agreement:.1%}" if agreement is not None else "",
        f"{case['metric']} {accuracy:.4f} ({case['fp32']:.4f})" if accuracy is not None else "",
        f"{each['size_bytes'] / 1e6:.3g} MB",
        f"{each['p50_ms']:.3g} ms" if "p50_ms" in each else "",
        _vela_cell(vela) if vela else "",
        _short(each["tflite_runtime_2_14"]),
    ]


def _vela_cell(vela: Entry) -> str:
    if "failed" in vela:
        return f"fails: {_short(vela['failed'])}"
    total = vela["cpu_operators"] + vela["npu_operators"]
    return f"{vela['cpu_operators']} of {total}, {vela['inference_ms']:.3g} ms"


def _short(text: str) -> str:
    flat = " ".join(text.replace("|", "\\|").split())
    return flat if len(flat) <= 140 else f"{flat[:137]}..."


if __name__ == "__main__":
    main()
