"""The page in a real browser: nothing is wider than a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgec.compiler.report import Build, render_html

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_CHROMIUM is None, reason="no chromium on the path: apt-get install chromium"),
]
# The report stands in a frame as wide as a screen; the page around it measures the report, which
# has no script of its own. What is hidden on purpose (one pixel large) does not count.
_PROBE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const inner = document.querySelector("iframe").contentDocument;
  const root = inner.documentElement;
  const hidden = e => e.closest("thead") && getComputedStyle(e.closest("thead")).position === "absolute";
  const wide = [...inner.querySelectorAll("body *")].filter(e => {{
    const box = e.getBoundingClientRect();
    return box.width > 1 && !hidden(e) && (box.right > root.clientWidth + 0.5 || box.left < -0.5);
  }}).map(e => e.tagName + ": " + e.textContent.trim().slice(0, 60));
  document.getElementById("found").textContent = JSON.stringify({{
    client: root.clientWidth, scroll: root.scrollWidth, wide, height: root.scrollHeight,
    color: getComputedStyle(inner.body).backgroundColor,
  }});
}});
</script>"""


@pytest.mark.parametrize("width", [320, 390, 800, 1200])
def test_nothing_is_wider_than_the_screen(build: Build, tmp_path: Path, width: int) -> None:
    build["artifacts"][0]["candidates"][1]["name"] = "onnxruntime-with-a-rather-long-name-of-a-variant fp32"
    build["artifacts"][0]["path"] = "/a/" + "very/long/path/" * 12 + "digits-cpu-x86_64.edgec"
    build["model"]["name"] = "an_extraordinarily_long_model_name_without_any_place_to_break_it"
    found = _measure(render_html(build), tmp_path, width)
    assert found["client"] == width
    assert found["wide"] == []
    assert found["scroll"] == width
    assert found["height"] > 2000


def test_style_is_applied(build: Build, tmp_path: Path) -> None:
    assert _measure(render_html(build), tmp_path, 390)["color"] in ("rgb(246, 246, 244)", "rgb(18, 20, 22)")


def _measure(page: str, directory: Path, width: int) -> dict[str, Any]:
    probe = directory / "probe.html"
    probe.write_text(_PROBE.format(width=width, page=html.escape(page)), encoding="utf-8")
    assert _CHROMIUM is not None
    command = [
        _CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
        f"--user-data-dir={directory / 'profile'}", "--window-size=1300,1000", "--dump-dom", probe.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found, f"the page was not measured: {dom[-300:]}"
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured
