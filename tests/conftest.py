"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator
from importlib.util import find_spec

import pytest

pytest_plugins = ["tests.brokers"]
# What takes longest, and waits for brokers, browsers and devices more than it computes.
_LONGEST = (
    *("tests/test_interpreters.py", "tests/gateway/test_ray.py", "tests/examples/test_ota_walkthrough.py"),
    *("tests/examples/test_whole_story.py", "tests/fleet/test_dashboard_browser.py"),
    *("tests/simulation/test_demo.py", "tests/docs/test_snippets.py"),
)


def pytest_configure() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, which some tests are about; time no examples of hypothesis.

    A shell starts what it puts in the background with SIGINT ignored, and Python leaves it so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if find_spec("hypothesis") is not None:
        from hypothesis import settings

        # An example that takes long says that the machine is busy, and nothing about edgec.
        settings.register_profile("busy", deadline=None)
        settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let each test be run once, where what is tried is whether its code runs at all."""
    parser.addoption(
        "--once",
        action="store_true",
        help="run each test with the first of its parameters only, but those of tests/conformance with all",
    )


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """With ``-n auto``, run one test more than there are processors: there is always one that waits.

    Fast tests do not wait, and each further worker reads all files of tests again.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ or config.option.markexpr == "not slow":
        return None
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while modules and tests come to be, which stay; and never among them afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left alone with it at the end."""
    if config.getoption("--once"):
        first: dict[str, pytest.Item] = {}
        for item in items:
            whole = item.nodeid.startswith("tests/conformance/")
            first.setdefault(item.nodeid if whole else item.nodeid.partition("[")[0], item)
        kept = set(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = first.values()
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    file = item.nodeid.partition("::")[0]
    return _LONGEST.index(file) if file in _LONGEST else len(_LONGEST)
