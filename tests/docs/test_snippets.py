"""The user guide is true: its commands and programs run, its TOML parses, its links lead somewhere.

In a block of commands, lines that begin with ``$ `` are run (a backslash continues one); what follows
is what they print, and is not compared. A block is left alone under ``<!-- not run: reason -->``; under
``<!-- exit status: 1 -->`` its commands must end so. A TOML block whose first line is ``# name.toml`` is
there as that file when the commands of its page are run.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(GUIDE.glob("*.md"))]
LANGUAGES = {"console", "python", "toml", "json", "text"}
_FENCE = re.compile(
    r"(?P<notes>(?:^<!--.*-->\n)*)^```(?P<language>.*)\n(?P<text>(?:.*\n)*?)^```$", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and where it is."""

    where: str
    language: str
    text: str
    notes: str

    @property
    def is_run(self) -> bool:
        """Whether nothing says that it cannot be."""
        return "<!-- not run:" not in self.notes

    @property
    def exit_status(self) -> int:
        """What its commands must end with."""
        stated = re.search(r"<!-- exit status: (\d+) -->", self.notes)
        return int(stated[1]) if stated else 0

    @property
    def commands(self) -> list[str]:
        """Its command lines, continued ones whole."""
        lines = re.sub(r"\\\n", " ", self.text).splitlines()
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            where=f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, m.start('text'))}",
            language=m["language"],
            text=m["text"],
            notes=m["notes"],
        )
        for m in _FENCE.finditer(text)
    ]


def by_page(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda p: str(p.relative_to(ROOT)))


# The first commands of the guide: what they make is there for all pages.
FIRST = next(b for b in blocks(GUIDE / "README.md") if b.language == "console")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the guide supposes it: the examples, and what its first commands make of them."""
    folder = tmp_path_factory.mktemp("guide")
    for example in ("digits", "vibration"):
        shutil.copytree(ROOT / "examples" / example, folder / "examples" / example)
    for command in FIRST.commands:
        _run(command, folder, FIRST)
    return folder


@by_page(PAGES)
def test_every_block_says_what_it_is(page: Path) -> None:
    found = blocks(page)
    fences = [
        line for line in page.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith("```")
    ]
    assert len(fences) == 2 * len(found), "a fence is indented, or not closed"
    assert [b.where for b in found if b.language not in LANGUAGES] == []
    assert [b.where for b in found if b.language == "console" and not b.commands] == []


@by_page([p for p in PAGES if any(b.language == "toml" for b in blocks(p))])
def test_toml_parses(page: Path) -> None:
    for block in blocks(page):
        if block.language == "toml":
            assert tomllib.loads(block.text), block.where


@by_page([p for p in PAGES if any(b.language in ("console", "python") and b.is_run for b in blocks(p))])
@pytest.mark.slow
def test_commands_and_programs_run(
    page: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        named = re.match(r"# ([\w.-]+\.toml)\n", block.text)
        if block.language == "toml" and named:
            (folder / named[1]).write_text(block.text, encoding="utf-8")
    for block in filter(lambda b: b.is_run, blocks(page)):
        if block.language == "python":
            # One page is one program, read from top to bottom.
            exec(compile(block.text, block.where, "exec", dont_inherit=True), names)  # noqa: S102
        elif block.language == "console" and block != FIRST:
            for command in block.commands:
                _run(command, folder, block)


@by_page([*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if re.match(r"https?://", link):
            continue
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    assert dead == []


def test_the_index_names_every_page() -> None:
    links = set(re.findall(r"\]\(([^)#\s]+)\)", (GUIDE / "README.md").read_text(encoding="utf-8")))
    assert {p.name for p in GUIDE.glob("*.md")} - {"README.md"} <= links


def test_every_option_of_compile_is_explained() -> None:
    import click

    from edgec.cli.compile import command

    page = (GUIDE / "compile.md").read_text(encoding="utf-8")
    options = {o for p in command.params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}
    assert {o for o in options if f"`{o}`" not in page} == set()
    assert set(re.findall(r"^\| .*?`(--[\w-]+)`", page, re.MULTILINE)) <= {*options, "--precision"}


def test_messages_that_the_guide_explains_exist() -> None:
    page = (GUIDE / "troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| message contains .*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    phrases = [
        part
        for table in tables
        for row in table.splitlines()
        for phrase in re.findall(r"`([^`]+)`", row.split("|")[1])
        for part in phrase.split(" ... ")
    ]
    assert len(phrases) > 20
    roots = ("compiler", "runtime", "device_agent", "fleet", "targets")
    files = [path.read_text(encoding="utf-8") for root in roots for path in (ROOT / root).rglob("*.py")]
    left = [phrase for phrase in phrases if not any(phrase in file for file in files)]
    # Where a message is in several lines of the code, those that have its beginning are parsed.
    said = "\n".join(text for file in files if any(p[:9] in file for p in left) for text in _texts(file))
    assert [p for p in left if p not in said] == []


def _texts(code: str) -> Iterator[str]:
    """Yield every string constant of code, the pieces of f-strings included."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _run(command: str, folder: Path, block: Block) -> None:
    """Run a command of a block in `folder`, with the programs of this environment before all others."""
    programs = str(Path(sys.executable).parent)
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            # What an earlier run of the tests has built proves nothing.
            "EDGEC_CACHE_DIR": str(folder / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = f"{block.where}: {command}\n{result.stdout}{result.stderr}"
    assert result.returncode == block.exit_status, said
    assert "Traceback" not in result.stderr, said


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
