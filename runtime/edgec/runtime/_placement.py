"""Whether an engine runs a model where, and as finely as, its artifact promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgec.artifact import EngineSpec, Manifest
    from edgec.runtime.backends import Program

# Engines name places after the library that drives them; artifacts name the place.
_PLACES = {"CUDA": "GPU", "Tensorrt": "GPU", "NvTensorRTRTX": "GPU", "CPU-reference": "CPU"}
# How fine floating-point formats are; an engine that picks a coarser one says nothing. A finer one is what
# devices without arithmetic in fp16 or bf16 take, and what compiling accepts.
_FINENESS = {"fp64": 4, "fp32": 3, "fp16": 2, "bf16": 1}
# Beside integers, edgec asks every engine for fp32; "mixed" names what is beside them nowhere.
_COARSEST = {**_FINENESS, "mixed": 1}
_MOST_NAMED = 8
# As systems beside Linux name what targets call by Linux's names.
_ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}


def placement_problems(program: Program, spec: EngineSpec) -> list[str]:
    """Return what differs from the promise, in plain sentences; empty where nothing does.

    What the engine does not tell is taken for kept. ONNX Runtime tells precisions after a profiled run
    only; it picks no coarser one by itself, once its options say so, as those that edgec gives it do.

    Args:
        program: That was just loaded.
        spec: What the artifact promises of it.
    """
    return [*_places(program, spec), *_precisions(program, spec)]


def other_arch(manifest: Manifest) -> str | None:
    """Return the sentence that an artifact was compiled for another kind of CPU than this one; None if not.

    Payloads are portable: what they compute here is what the golden vectors promise, or loading fails.
    """
    from platform import machine  # here, because few artifacts are asked for their target's CPU

    target = manifest.provenance.get("target")
    arch = target.get("arch") if isinstance(target, dict) else None
    here = machine().lower()
    here = _ARCHES.get(here, here)
    if not isinstance(arch, str) or arch == "any" or not here or arch == here:
        return None
    return (
        f"it was compiled for {manifest.target}, whose CPU is {arch}, and this is {here}: its outputs are "
        "what it promises, but its precision was chosen, and its latency stated, for that one; compile it "
        "for this machine to run it here"
    )


def _places(program: Program, spec: EngineSpec) -> list[str]:
    promised = _place(spec.device)
    elsewhere = {name: n for name, n in program.placement.items() if n and _place(name) != promised}
    if not elsewhere:
        return []
    counts = ", ".join(f"{count} on {name}" for name, count in elsewhere.items())
    # Few engines know the nodes by name: a method that a Program may have.
    tell = getattr(program, "nodes_elsewhere", None)
    names: list[str] = tell() if tell is not None else []
    listed = ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )
    nodes = f" ({listed})" if listed else ""
    return [f"promised is the {spec.device} for every node, but {counts}{nodes}"]


def _precisions(program: Program, spec: EngineSpec) -> list[str]:
    if spec.name == "onnxruntime":
        return []
    least = _COARSEST.get(spec.precision, _FINENESS["fp32"])
    coarser = {p: n for p, n in program.precisions.items() if _FINENESS.get(p, least) < least}
    if not coarser:
        return []
    counts = ", ".join(f"{count} in {name}" for name, count in coarser.items())
    return [f"promised is {spec.precision}, but layers compute more coarsely: {counts}"]


def _place(device: str) -> str:
    name = device.partition(".")[0]  # OpenVINO numbers devices: GPU.1
    return _PLACES.get(name, name)
