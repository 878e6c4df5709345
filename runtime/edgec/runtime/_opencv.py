"""OpenCV, imported when it is needed."""

from __future__ import annotations

from typing import Any

from edgec.errors.extras import needs_extra


def opencv(what: str) -> Any:
    """Return the module `cv2`.

    Args:
        what: Needs it, for messages: ``"image preprocessing"``.

    Raises:
        MissingExtraError: It is not installed.
        BrokenExtraError: It is, and does not load.
    """
    with needs_extra(what, "vision"):
        import cv2
    return cv2
