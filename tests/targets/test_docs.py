"""What the user guide says about targets runs as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgec.cli import main_group
from edgec.targets import alias_names, load_target, target_names

PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write the TOML blocks that name their file in the first line, and go to their folder."""
    names = []
    for block in blocks("toml"):
        named = re.match(r"# (\S+\.toml)\n", block)
        if named:
            (tmp_path / named[1]).write_text(block, encoding="utf-8")
            names.append(named[1])
    monkeypatch.chdir(tmp_path)
    return names


def test_the_example_files_are_right(files: list[str]) -> None:
    assert files == ["camera.toml", "board.toml"]
    camera = load_target("./camera.toml")
    assert camera.limits.refused_operators == (
        ("Loop", "too slow on the door camera: unroll it before export"),
    )
    assert camera.engines == load_target("rpi5").engines
    assert load_target("./board.toml").limits.attributes[0].maximum == 4


def test_every_command_works(files: list[str]) -> None:
    commands = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(commands) == 5
    for command in commands:
        program, *args = shlex.split(command[2:])
        assert program == "edgec"
        result = CliRunner().invoke(main_group, args)
        assert result.exit_code == 0, (command, result.output)


def test_every_python_example_works(files: list[str]) -> None:
    examples = blocks("python")
    assert len(examples) == 1
    for example in examples:
        exec(compile(example, "docs/targets.md", "exec"), {})  # noqa: S102 -- our own page


def test_the_page_names_every_target_and_alias() -> None:
    table = dict(re.findall(r"^\| (`[^|]*`) \|.*?`([a-z0-9_-]+)`[^|]*\|$", PAGE, flags=re.MULTILINE))
    shown = {
        alias: name
        for cell, name in table.items()
        for alias in re.findall(r"`([^`]+)`", cell)
        if alias != "cpu"
    }
    for alias, name in alias_names().items():
        if alias not in ("cpu", "onnxruntime"):
            assert shown[alias] == name
    for name in target_names():
        assert f"`{name}`" in PAGE
