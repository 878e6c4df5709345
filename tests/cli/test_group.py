"""The command line as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgec.cli import COMMANDS, main_group


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_examples_and_json(name: str) -> None:
    result = CliRunner().invoke(main_group, [name, "--help"])
    assert result.exit_code == 0
    assert f"edgec {name}" in result.output
    assert "--json" in result.output


@pytest.mark.parametrize("group", ["agent", "fleet", "gateway", "keys", "repo", "fleet rollout"])
def test_help_of_a_group_says_of_each_command_a_whole_sentence(group: str) -> None:
    output = CliRunner().invoke(main_group, [*group.split(), "--help"]).output
    assert "..." not in output.partition("Commands:")[2]


def test_help_imports_no_command() -> None:
    code = (
        "import sys; sys.argv = ['edgec', '--help']\n"
        "from edgec.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'openvino', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_wrong_usage_exits_2_and_names_the_parameter() -> None:
    result = CliRunner().invoke(main_group, ["compile", "m.onnx"])
    assert result.exit_code == 2
    assert "--target" in result.output


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("onnx", ["check", "m.onnx", "-t", "cpu"], "compiler"),
        ("onnx", ["compile", "m.onnx", "-t", "cpu"], "compiler"),
        ("onnxslim", ["compile", "{model}", "-t", "cpu", "--no-cache"], "compiler"),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(
    module: str, words: list[str], extra: str, tmp_path: Path
) -> None:
    model = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
    argv = ["edgec", *(w.format(model=model) for w in words)]
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = {argv!r}\nfrom edgec.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("edgec: error: ")
    assert f"pip install 'edgec[{extra}]'" in last
    assert "Traceback" not in result.stderr


def test_a_package_that_does_not_load_is_one_line_though_the_error_does_not_name_it(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/__init__.py").write_text(
        "raise ImportError('numpy.core.multiarray failed to import')\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = 'edgec check m.onnx -t cpu'.split()\n"
        "from edgec.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        "edgec: error: this command needs a package of 'edgec[compiler]', which is installed"
    )
    assert "numpy.core.multiarray failed to import; reinstall it" in last
