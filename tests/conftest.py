"""What holds for all tests."""

from __future__ import annotations

import signal

import pytest

pytest_plugins = ["tests.brokers"]


def pytest_configure() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, which some tests are about.

    A shell starts what it puts in the background with SIGINT ignored, and Python leaves it so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: "test_interpreters.py" not in item.nodeid)
