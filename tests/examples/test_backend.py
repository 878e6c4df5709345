"""The example of an engine in a package of its own: installed, artifacts that name it run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgec.artifact import GOLDEN, EngineSpec, GoldenVector, Manifest, TensorSpec, encode_golden, pack
from edgec.errors import BackendUnavailableError
from edgec.runtime import load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "examples" / "backend"


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False, cwd="/"
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has the package, and sees what is installed here."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the package, is not installed: pip install --group test")
    folder = tmp_path_factory.mktemp("backend") / "venv"
    result = run(Path(sys.executable), "-m", "venv", "--without-pip", folder)
    assert result.returncode == 0, result.stderr
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    roots = [sysconfig.get_path("purelib"), *source_roots()]
    lines = [f"import site; site.addsitedir({root!r})" for root in roots]
    Path(site, "here.pth").write_text("\n".join(lines) + "\n")
    # Without the network: what builds it is here.
    result = run(
        Path(sys.executable), "-m", "pip", "--python", python, "install", "-q", "--no-deps",
        "--no-build-isolation", "--no-index", PACKAGE,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return python


def source_roots() -> list[str]:
    return [str(ROOT / name) for name in ("compiler", "runtime", "device_agent", "targets")]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, with golden vectors."""
    folder = tmp_path_factory.mktemp("dense")
    random = np.random.default_rng(1)
    shapes = {"w0": (4, 8), "b0": (8,), "w1": (8, 3), "b1": (3,)}
    weights = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(folder / "dense.npz", **weights)  # type: ignore[arg-type]
    x = random.standard_normal((2, 4)).astype(np.float32)
    hidden = np.maximum(x @ weights["w0"] + weights["b0"], 0)
    y = hidden @ weights["w1"] + weights["b1"]
    np.save(folder / "x.npy", x)
    manifest = Manifest(
        model="dense",
        model_version="1",
        target="cpu-x86_64",
        engine=EngineSpec(name="numpy", version="", device="CPU", precision="fp32", files=("dense.npz",)),
        inputs=(TensorSpec("x", "float32", ("batch", 4)),),
        outputs=(TensorSpec("y", "float32", ("batch", 3)),),
        golden={"y": {"max_abs_error": 1e-5}},
    )
    golden = encode_golden([GoldenVector(inputs={"x": x}, outputs={"y": y})])
    members = {"dense.npz": (folder / "dense.npz").read_bytes(), GOLDEN: golden}
    return pack(folder / "dense.edgec", manifest, members)


RUN = """
import json, sys
import numpy as np
from edgec.errors import InferenceError
from edgec.runtime import load
x = np.load(sys.argv[2])
with load(sys.argv[1]) as session, load(sys.argv[1], isolate=True) as isolated:
    facts = [session.engine, session.precision, dict(session.placement), session.self_test().passed]
    assert np.array_equal(session.run({"x": x})["y"], isolated.run({"x": x})["y"])
    bare = session.current_program()
    session.swap(sys.argv[1])
    y = session.run({"x": x})["y"].tolist()
try:
    bare.run({"x": x})
except InferenceError as e:
    facts.append(str(e))
print(json.dumps([facts, y]))
"""


def test_an_artifact_runs_on_the_installed_engine(python: Path, artifact: Path) -> None:
    result = run(python, "-c", RUN, artifact, artifact.parent / "x.npy")
    assert result.returncode == 0, result.stderr
    facts, y = json.loads(result.stdout)
    assert facts[:4] == ["numpy", "fp32", {"CPU": 2}, True]
    assert "closed" in facts[4]
    assert np.shape(y) == (2, 3)


@pytest.mark.parametrize("command", [["verify"], ["benchmark", "--duration-s", "0.2"]])
def test_the_command_line_takes_it_as_any_other(python: Path, artifact: Path, command: list[str]) -> None:
    name, *options = command
    result = run(python, "-m", "edgec.cli", name, artifact, *options)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "numpy" in result.stdout


def test_without_it_the_artifact_is_refused_and_told_why(artifact: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"no backend 'numpy'.*edgec\.backends"):
        load(artifact)
