"""Passes of other packages: applied, held to the same outputs, and named where they break something."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.compiler.networks import cnn

from edgec.artifact import Artifact
from edgec.compiler import CompileOptions, compile_model
from edgec.compiler.extensions import extensions_digest
from edgec.errors import PassError
from edgec.targets import load_target

FAST = CompileOptions(precision="fp32", measure_s=0.05, workers=0)
Install = Callable[[str], Path]

RENAME = """
def run(model):
    model.graph.node[0].name = "renamed_by_acme"
    return model
"""
NOTHING = "def run(model):\n    return None\n"
ZEROES = """
def run(model):
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            tensor.raw_data = bytes(len(tensor.raw_data))
    return model
"""
INVALID = "def run(model):\n    model.graph.node[0].op_type = 'Nonsense'\n    return model\n"
CRASH = "def run(model):\n    raise KeyError('acme')\n"
TEXT = "def run(model):\n    return 'model'\n"
OUTPUT = "def run(model):\n    del model.graph.output[:]\n    return model\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package with a pass, as far as the import system sees it."""

    def installed(code: str) -> Path:
        folder = tmp_path / "site"
        info = folder / "acme_passes-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-passes\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[edgec.passes]\nacme = acme_test_pass:run\n")
        (folder / "acme_test_pass.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "acme_test_pass", raising=False)
        importlib.invalidate_caches()
        return folder

    return installed


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "cnn.onnx"
    path.write_bytes(cnn().SerializeToString())
    return path


def test_a_registered_pass_is_applied_and_noted(model: Path, install: Install, tmp_path: Path) -> None:
    install(RENAME)
    target = load_target("cpu-x86_64")
    alone = replace(target, engines=target.engines[:1])  # others keep no names of nodes
    result = compile_model(model, [alone], tmp_path / "out", options=FAST)
    (info,) = result.report["artifacts"]
    assert "pass 'acme': from 8 to 8 nodes, with the same outputs" in info["decisions"]
    with Artifact.open(result.artifacts[0]) as artifact:
        assert b"renamed_by_acme" in artifact.read("model.onnx")
        assert artifact.manifest.provenance["toolchain"]["packages"]["acme-passes"] == "1.0"


def test_a_pass_with_nothing_to_do_leaves_no_trace(model: Path, install: Install, tmp_path: Path) -> None:
    install(NOTHING)
    (info,) = compile_model(model, ["cpu-x86_64"], tmp_path / "out", options=FAST).report["artifacts"]
    assert not any("acme" in decision for decision in info["decisions"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (ZEROES, "pass 'acme' changes what the model computes: "),
        (INVALID, "pass 'acme' breaks the model: "),
        (CRASH, "pass 'acme' failed: KeyError: 'acme'"),
        (TEXT, "pass 'acme' gave str"),
        (OUTPUT, "pass 'acme' changes the inputs or outputs"),
        ("import nowhere_at_all\n", "cannot be imported"),
        ("run = 3\n", "expected a function, not int"),
    ],
)
def test_a_pass_that_breaks_something_is_named(
    model: Path, install: Install, tmp_path: Path, code: str, message: str
) -> None:
    install(code)
    with pytest.raises(PassError, match=message):
        compile_model(model, ["cpu-x86_64"], tmp_path / "out", options=FAST)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_digest_of_extensions_follows_their_code(install: Install) -> None:
    before = extensions_digest()
    folder = install(NOTHING)
    installed = extensions_digest()
    (folder / "acme_test_pass.py").write_text(RENAME)
    assert len({before, installed, extensions_digest()}) == 3
