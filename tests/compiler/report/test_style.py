"""Text of the report can be read: its contrast is that of WCAG AA, in both colour schemes."""

from __future__ import annotations

import re
from importlib import resources

import pytest

STYLE = (resources.files("edgec.compiler.report") / "style.css").read_text(encoding="utf-8")
SCHEMES = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
TEXTS = [(ink, ground) for ink in ("ink", "soft", "good", "warn", "bad") for ground in ("page", "panel")]
LEAST_FOR_TEXT, LEAST_FOR_MARKS = 4.5, 3.0


def _luminance(color: str) -> float:
    shares = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(a: str, b: str) -> float:
    dark, light = sorted((_luminance(a), _luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES, ids=["light", "dark"])
def test_texts_and_marks_stand_out(scheme: str) -> None:
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
    texts = [*TEXTS, ("accent-ink", "accent"), ("warn", "warn-bg"), ("ink", "warn-bg")]
    marks = [("accent", "panel"), ("mark", "panel")]
    faint = [p for p in texts if _contrast(colors[p[0]], colors[p[1]]) < LEAST_FOR_TEXT]
    faint += [p for p in marks if _contrast(colors[p[0]], colors[p[1]]) < LEAST_FOR_MARKS]
    assert faint == []


def test_both_schemes_are_styled() -> None:
    assert len(SCHEMES) == 2
