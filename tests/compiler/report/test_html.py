from __future__ import annotations

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgec.compiler.report import Build, render_html, render_text

_VOID = {"meta", "br"}
_HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></svg></title><script>alert(1)</script>",
    "{{ 7 * 7 }}{% include 'template.html' %}",
    "<!--", "]]>", "&lt;b&gt;", "javascript:alert(1)",
]  # fmt: skip


class _Page(HTMLParser):
    """What a page consists of; fails where an element is closed that is not open."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.attributes}

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)


def test_page_has_every_section(build: Build) -> None:
    text = _Page(render_html(build)).text
    expected = [
        "digits 1.0",
        "2 artifacts built, in 41.7 s.",
        "PC or server, x86-64",
        "ONNX Runtime int8",
        "2.31× faster than fp32",
        "58 % smaller than the source model",
        "source 99.1 %, 95 % CI 97.6 – 99.5 %, n = 540",
        "✓ passed",
        "SNR 61.2 dB",
        "Candidates",
        "top-1 may be as much as 1.31 points below fp32 (allowed: 1)",
        "promised int8, effective int8",
        "CPU: 12 nodes",
        "within the budget: at most 0.64 points worse than fp32 (95 % confidence, paired)",
        "openvino bf16 is faster than fp32, but 540 samples leave a loss of up to 1.31 points possible.",
        "What was not run",
        "The TensorRT engine was not built: that needs the Jetson itself.",
        "image: float32[batch, 1, 8, 8]",
        '"kind": "top_k"',
        "e3" * 32,
        "digits/calibration.npz, 128 samples",
        "AMD EPYC 9R14, 2 cores, x86_64",
        "not told by the kernel",
        "openvino 2026.4.1",
        "edgec compile examples/digits/digits.onnx --target cpu --target jetson -o build",
    ]
    assert [e for e in expected if e not in text] == []


def test_page_draws_every_chart_and_says_it_in_words(build: Build) -> None:
    page = _Page(render_html(build))
    for words in (
        "Latency of one inference, µs onnxruntime int8 18.2 µs openvino fp32 27.6 µs",
        "Accuracy, top-1 source 99.1 % onnxruntime int8 98.9 % (97.6 – 99.5 %)",
        "Size source model 152 kB onnxruntime int8 44.1 kB",
    ):
        assert words in page.text
    labels = [value or "" for name, value in page.attributes if name == "aria-label"]
    assert any(
        label.startswith("Accuracy (top-1) against median latency: onnxruntime int8") for label in labels
    )


def test_page_refers_to_nothing_outside_itself(build: Build) -> None:
    html = render_html(build)
    page = _Page(html)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert not re.search(r"https?://|//\w|@import|url\(|expression\(", html)
    assert not page.names & {"src", "srcset", "data", "poster", "action", "style"}
    assert not [name for name in page.names if name.startswith("on")]
    links = [value for name, value in page.attributes if name == "href"]
    assert links
    assert all(link and link.removeprefix("#") in page.ids for link in links)
    assert "default-src 'none'" in html


def test_page_can_be_read_on_a_phone_and_in_the_dark(build: Build) -> None:
    html = render_html(build)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "prefers-color-scheme: dark" in html
    assert len(set(ids := _Page(html).ids)) == len(ids)


@pytest.mark.parametrize("hostile", _HOSTILE)
def test_hostile_text_is_only_text(build: Build, hostile: str) -> None:
    plain, page = _Page(render_html(build)), _Page(render_html(_with_text(build, hostile)))
    assert page.tags <= plain.tags
    assert page.names <= plain.names
    assert hostile in page.text


# No example of one test can see another's build: each is a copy.
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("<>\"'&;=/!-{}%# abscript\x00\x1b\n\u202e\ud800")))
def test_no_text_makes_another_page(build: Build, text: str) -> None:
    plain, html = _Page(render_html(build)), render_html(_with_text(build, text))
    page = _Page(html)
    assert page.tags <= plain.tags
    assert page.names <= plain.names
    html.encode()  # a lone surrogate could not be written
    assert not set(html) & set("\x00\x1b\u202e")


@pytest.mark.slow
def test_any_value_may_be_missing_or_none(build: Build) -> None:
    for changed in _with_one_less(build):
        for text in (_Page(render_html(changed)).text, render_text(changed)):
            assert not re.search(r"\b(None|nan|Undefined|undefined)\b", text)


def test_an_empty_build_renders() -> None:
    assert "0 artifacts built." in _Page(render_html({})).text


def test_synthetic_inputs_are_the_first_warning(build: Build) -> None:
    build["data"] = {"synthetic": "No calibration data was given: inputs are standard normal."}
    text = _Page(render_html(build)).text
    assert text.index("Read this first No calibration data was given") < text.index("PC or server")


def test_another_effective_precision_is_a_warning(build: Build) -> None:
    build["artifacts"][0]["effective_precision"] = "bf16"
    text = _Page(render_html(build)).text
    assert "cpu-x86_64 : the engine runs bf16, not the promised int8" in text


def test_failed_parity_and_skipped_targets_are_warnings(build: Build) -> None:
    assert build["artifacts"][0]["parity"]
    build["artifacts"][0]["parity"]["passed"] = False
    build["skipped"] = [{"target": "ethos-u55-128", "reason": "this version does not build for it"}]
    text = _Page(render_html(build)).text
    assert "cpu-x86_64 : parity FAILED" in text
    assert "ethos-u55-128 : not built: this version does not build for it" in text
    assert "✗ failed" in text


def test_a_page_without_warnings_has_no_warning_box(build: Build) -> None:
    assert "Read this first" not in render_html(build)


def test_memory_has_a_column_where_it_was_measured(build: Build) -> None:
    assert "MiB" not in _Page(render_html(build)).text.split("This build")[0]
    build["artifacts"][0]["candidates"][0]["memory_mib"] = 61.52
    assert "Memory" in (page := _Page(render_html(build))).text
    assert "61.5 MiB" in page.text


def test_identical_outputs_are_called_identical(build: Build) -> None:
    parity = build["artifacts"][0]["parity"]
    assert parity
    parity["max_abs_error"], parity["snr_db"] = 0.0, None
    assert "SNR identical" in _Page(render_html(build)).text


def test_a_report_that_went_through_json_renders_the_same(build: Build) -> None:
    assert render_html(json.loads(json.dumps(build))) == render_html(build)


def test_rendering_twice_gives_the_same_bytes(build: Build) -> None:
    assert render_html(build) == render_html(deepcopy(build))


def _with_text(value: Any, text: str) -> Any:
    """Return a copy of `value` with `text` in place of every string, keys of free-form tables included."""
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [_with_text(v, text) for v in value]
    if not isinstance(value, dict):
        return value
    changed = {k: _with_text(v, text) for k, v in value.items()}
    for table in ("tools", "placement", "options", "pipeline"):
        if isinstance(changed.get(table), dict):
            changed[table] = {f"{text}{n}": v for n, v in enumerate(changed[table].values())}
    return changed


def _with_one_less(build: Any) -> Iterator[Any]:
    """Yield copies of `build`, each without one of its values, and with None in its place."""
    for path in _paths(build):
        for remove in (True, False):
            changed = deepcopy(build)
            place = changed
            for key in path[:-1]:
                place = place[key]
            if remove:
                del place[path[-1]]
            else:
                place[path[-1]] = None
            yield changed


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield (*path, key)
            yield from _paths(child, (*path, key))
    elif isinstance(value, list):
        # One item stands for all of a list.
        yield from _paths(value[0], (*path, 0)) if value else ()
