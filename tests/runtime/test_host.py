"""Several models in one process: versions, memory, candidates, shares."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, Event
from time import perf_counter

import numpy as np
import pytest
from tests.runtime.test_swap import X, scaled

from edgec.errors import (
    ArtifactError,
    DeviceMemoryError,
    IncompatibleArtifactError,
    InferenceError,
    InputError,
    OverloadedError,
    UnknownModelError,
)
from edgec.runtime import Host, Session, load
from edgec.runtime._routes import Split
from edgec.runtime._shadow import Shadow

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def answer(host: Host, name: str, **options: str) -> float:
    return float(host.run(name, X, **options)["y"][0, 0])


def loaded(host: Host) -> list[str]:
    return [f"{m.name}/{m.version}" for m in host.models() if m.loaded]


def test_models_are_called_by_name_and_version(tmp_path: Path) -> None:
    with Host(partial(load, threads=1)) as host:
        assert host.add("m", scaled(tmp_path / "a.edgec", 2)) == "2"
        host.add("m", scaled(tmp_path / "b.edgec", 3), "next")
        assert loaded(host) == []
        assert answer(host, "m") == 2
        assert answer(host, "m", version="next") == 3
        assert host.submit("m", X, version="next").result(60)["y"][0, 0] == 3
        assert loaded(host) == ["m/2", "m/next"]
        host.set_default("m", "next")
        assert answer(host, "m") == 3
        assert [m.default for m in host.models()] == [False, True]
        host.remove("m", "2")
        with pytest.raises(UnknownModelError, match=r"no model m 2; there are: m next"):
            host.run("m", X, version="2")
        with pytest.raises(UnknownModelError, match="no model other"):
            host.run("other", X)
        with pytest.raises(InputError):
            host.run("m", {"z": X["x"]})
        with host.session("m") as session:
            assert session.manifest.model_version == "3"
    with pytest.raises(InferenceError, match="host is closed"):
        host.run("m", X)


def test_what_is_wrong_is_told_when_a_model_is_added_or_removed(tmp_path: Path) -> None:
    with Host() as host:
        host.add("m", scaled(tmp_path / "a.edgec", 2))
        host.add("m", scaled(tmp_path / "b.edgec", 3))
        with pytest.raises(ValueError, match="a version 2 of m already"):
            host.add("m", tmp_path / "a.edgec")
        with pytest.raises(ArtifactError):
            host.add("n", tmp_path / "missing.edgec")
        with pytest.raises(ValueError, match="is the default of m"):
            host.remove("m", "2")
        host.split("m", {"3": 1})
        with pytest.raises(ValueError, match="has a share"):
            host.remove("m", "3")
    with pytest.raises(ValueError, match="above 0 MiB"):
        Host(memory_budget_mib=0)


def test_a_default_that_does_not_load_is_not_taken(tmp_path: Path) -> None:
    with Host() as host:
        host.add("m", scaled(tmp_path / "a.edgec", 2))
        host.add("m", scaled(tmp_path / "b.edgec", 3, golden=9))
        with pytest.raises(InferenceError, match="something else"):
            host.set_default("m", "3")
        assert answer(host, "m") == 2


@pytest.fixture
def grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each load take 10 MiB, and calls nothing, whatever the system says."""
    monkeypatch.setattr("edgec.runtime._hosted._FIRST_CALLS", 0)
    taken = iter(range(0, 10_000, 10))
    monkeypatch.setattr("edgec.runtime._host_memory.resident_bytes", lambda: next(taken) * 2**20)


@pytest.mark.usefixtures("grows")
def test_the_model_called_longest_ago_makes_room(tmp_path: Path) -> None:
    with Host(memory_budget_mib=25) as host:
        for name, factor in (("a", 2), ("b", 3), ("c", 4)):
            host.add(name, scaled(tmp_path / f"{name}.edgec", factor))
        assert [answer(host, name) for name in "aba"] == [2, 3, 2]
        assert answer(host, "c") == 4
        assert loaded(host) == ["a/2", "c/4"]
        assert {m.memory_bytes for m in host.models()} == {10 * 2**20}
        assert answer(host, "b") == 3, "loaded again"
        host.unload("b")
        assert loaded(host) == ["c/4"]


@pytest.mark.usefixtures("grows")
def test_models_in_use_are_not_unloaded(tmp_path: Path) -> None:
    with Host(memory_budget_mib=15) as host:
        host.add("a", scaled(tmp_path / "a.edgec", 2))
        host.add("b", scaled(tmp_path / "b.edgec", 3))
        with host.session("a") as session:
            with pytest.raises(OverloadedError, match=r"b 3 needs 10.0 MiB, models in use take 10.0 of 15.0"):
                host.run("b", X)
            assert session.run(X)["y"][0, 0] == 2
        assert answer(host, "b") == 3


@pytest.mark.usefixtures("grows")
def test_a_model_larger_than_the_budget_is_refused(tmp_path: Path) -> None:
    with Host(memory_budget_mib=5) as host:
        host.add("a", scaled(tmp_path / "a.edgec", 2))
        for _ in range(2):
            with pytest.raises(DeviceMemoryError, match=r"needs 10\.0 MiB, and all .* may take 5\.0"):
                host.load("a")
        assert loaded(host) == []


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the process have these MiB, from one look to the next."""
    left: list[int] = []
    monkeypatch.setattr("edgec.runtime._host_memory.resident_bytes", lambda: left.pop(0) * 2**20)
    return left


def test_what_a_model_grows_by_in_its_first_calls_is_counted(tmp_path: Path, resident: list[int]) -> None:
    with Host(memory_budget_mib=25) as host:
        for name, factor in (("a", 2), ("b", 3)):
            host.add(name, scaled(tmp_path / f"{name}.edgec", factor))
        resident += [0, 10, 10, 11, 11, 11, 11, 11]  # loaded, and three calls
        assert [answer(host, "a") for _ in range(5)] == [2] * 5
        resident += [11, 21, 21, 24]
        assert answer(host, "b") == 3
        assert [m.memory_bytes // 2**20 for m in host.models()] == [10, 12]  # less what it gave
        assert loaded(host) == ["a/2", "b/3"]
        resident += [24, 26]
        assert answer(host, "b") == 3
        assert loaded(host) == ["b/3"], "together they are above the budget"
        resident += [18, 20, 20, 20]
        assert answer(host, "a") == 2
        assert host.models()[0].memory_bytes == 2 * 2**20, "measured anew"


def test_calls_beside_others_count_nothing(tmp_path: Path, resident: list[int]) -> None:
    with Host(memory_budget_mib=25) as host:
        for name, factor in (("a", 2), ("b", 3)):
            host.add(name, scaled(tmp_path / f"{name}.edgec", factor))
        resident += [0, 10, 10, 12]
        with host.session("a"):
            assert answer(host, "b") == 3
        assert [m.memory_bytes // 2**20 for m in host.models()] == [10, 2]
        assert resident == []


@pytest.mark.parametrize("begins", ["before the call", "in the call"])
def test_a_load_beside_a_first_call_is_not_counted_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    paths = [scaled(tmp_path / f"{factor}.edgec", factor) for factor in (2, 3)]
    begun, go_on = Event(), Event()
    at_looks: list[Callable[[], None]] = []
    memory = 0

    def look() -> int:
        before = memory
        if at_looks:
            at_looks.pop(0)()
        return before

    def allocate() -> None:
        nonlocal memory
        memory += 10 * 2**20

    def loader(path: Path) -> Session:
        allocate()
        if path == paths[1]:
            begun.set()
            assert go_on.wait(60)
        return load(path, threads=1)

    monkeypatch.setattr("edgec.runtime._host_memory.resident_bytes", look)
    with Host(loader, memory_budget_mib=100) as host, ThreadPoolExecutor(1) as other:
        for name, path in zip("ab", paths, strict=True):
            host.add(name, path)
        host.load("a")

        def begin() -> None:
            other.submit(host.load, "b")
            assert begun.wait(60)

        if begins == "before the call":
            begin()
        at_looks.append(begin if begins == "in the call" else allocate)
        try:
            assert answer(host, "a") == 2
            assert host.models()[0].memory_bytes == 10 * 2**20
        finally:
            go_on.set()


def test_first_calls_that_begin_together_end_the_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def look() -> int:
        nonlocal looks
        looks += 1
        return 0

    monkeypatch.setattr("edgec.runtime._host_memory.resident_bytes", look)
    together = Barrier(4)

    def wants(_: Shadow) -> bool:  # asked after the host found that the call is among the first
        together.wait(60)
        return False

    with Host(partial(load, threads=1)) as host, ThreadPoolExecutor(4) as callers:
        host.add("m", scaled(tmp_path / "a.edgec", 2))
        host.add("m", scaled(tmp_path / "b.edgec", 3))
        host.shadow("m", "3")
        answer(host, "m", version="3")
        with monkeypatch.context() as patch:
            patch.setattr(Shadow, "wants", wants)
            assert list(callers.map(lambda _: answer(host, "m"), range(4), timeout=60)) == [2] * 4
        host.shadow("m", None)
        before = looks
        for _ in range(3):
            assert answer(host, "m") == 2
        assert looks == before


def test_a_model_that_was_measured_too_large_is_measured_once_more(
    tmp_path: Path, resident: list[int]
) -> None:
    with Host(memory_budget_mib=25) as host:
        host.add("a", scaled(tmp_path / "a.edgec", 2))
        resident += [0, 90]
        with pytest.raises(DeviceMemoryError, match=r"needs 90\.0 MiB"):
            host.load("a")
        resident += [0, 10]
        host.load("a")
        assert host.models()[0].memory_bytes == 10 * 2**20
        host.unload("a")
        resident += [0, 90, 0, 91]
        for _ in range(2):
            with pytest.raises(DeviceMemoryError):
                host.load("a")
        with pytest.raises(DeviceMemoryError, match=r"needs 91\.0 MiB"):
            host.load("a")  # without another try
        assert resident == []


@pytest.mark.parametrize("looks", [[0, 90], [0, 10, 10, 90]], ids=["loaded", "grown in its first call"])
def test_nothing_is_unloaded_for_a_model_that_does_not_fit_beside_those_in_use(
    tmp_path: Path, resident: list[int], looks: list[int]
) -> None:
    with Host(memory_budget_mib=25) as host:
        for name, factor in (("large", 2), ("used", 3), ("idle", 4)):
            host.add(name, scaled(tmp_path / f"{name}.edgec", factor))
        resident += looks
        if len(looks) == 2:
            with pytest.raises(DeviceMemoryError, match=r"needs 90\.0 MiB"):
                host.load("large")
        else:
            answer(host, "large")
            host.unload("large")
        resident += [0, 5, 5, 10]
        host.load("idle")
        with host.session("used"):
            for _ in range(2):
                with pytest.raises(OverloadedError, match=r"needs 25\.0 MiB, .* in use take 5\.0 of 25\.0"):
                    host.load("large")
                assert loaded(host) == ["used/3", "idle/4"]
        assert resident == []


def test_what_is_unloaded_in_use_ends_after_its_call(tmp_path: Path) -> None:
    with Host() as host:
        host.add("m", scaled(tmp_path / "a.edgec", 2))
        with host.session("m") as session:
            host.unload("m")
            assert loaded(host) == []
            assert session.run(X)["y"][0, 0] == 2
            assert answer(host, "m") == 2, "loaded again beside it"
        with pytest.raises(InferenceError, match="closed"):
            session.run(X)
        with host.session("m") as session:
            host.close()
            assert session.run(X)["y"][0, 0] == 2


def test_models_that_come_and_go_answer_every_call(tmp_path: Path) -> None:
    with Host(partial(load, threads=1)) as host, ThreadPoolExecutor(3) as callers:
        for i in range(3):
            host.add(str(i), scaled(tmp_path / f"{i}.edgec", i + 1))

        def use(number: int) -> None:
            for i in range(20):
                name = (number + i) % 3
                if i % 7 == 0:
                    host.unload(str(name))
                assert answer(host, str(name)) == name + 1

        for done in [callers.submit(use, n) for n in range(3)]:
            done.result(60)


# Shares


def test_a_key_goes_to_the_same_version(tmp_path: Path) -> None:
    with Host() as host:
        host.add("m", scaled(tmp_path / "a.edgec", 2))
        host.add("m", scaled(tmp_path / "b.edgec", 3))
        host.split("m", {"2": 0.5, "3": 0.5})
        first = [answer(host, "m", key=f"user {i}") for i in range(30)]
        assert set(first) == {2.0, 3.0}
        assert [answer(host, "m", key=f"user {i}") for i in range(30)] == first
        assert answer(host, "m") == 2, "without a key, the default"
        assert answer(host, "m", version="3", key="user 0") == 3
        with pytest.raises(UnknownModelError):
            host.split("m", {"9": 1})
        host.split("m", None)
        assert {answer(host, "m", key=f"user {i}") for i in range(30)} == {2.0}


def test_shares_are_kept() -> None:
    split = Split("m", {"1": 9, "2": 1, "3": 0})
    found = [split.version_of(str(i)) for i in range(5000)]
    assert split.versions == ("1", "2")
    # Four standard deviations of a binomial: 4 * sqrt(5000 * .1 * .9) = 85.
    assert abs(found.count("2") - 500) < 85
    other = [Split("n", {"1": 9, "2": 1}).version_of(str(i)) for i in range(5000)]
    assert other != found


def test_a_larger_share_takes_no_key_away() -> None:
    small, large = Split("m", {"a": 1, "b": 9}), Split("m", {"a": 3, "b": 7})
    mine = [str(i) for i in range(500) if small.version_of(str(i)) == "a"]
    assert all(large.version_of(key) == "a" for key in mine)


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}, {"a": float("inf")}]
)
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected shares"):
        Split("m", shares)


# Candidates


def test_a_candidate_sees_live_inputs_and_answers_nobody(tmp_path: Path) -> None:
    with Host(partial(load, threads=1)) as host:
        host.add("m", scaled(tmp_path / "a.edgec", 2))
        host.add("m", scaled(tmp_path / "b.edgec", -2))
        shadow = host.shadow("m", "-2", fraction=1, max_queue=100)
        assert shadow is not None
        for i in range(20):
            assert host.run("m", {"x": np.arange(4, dtype=np.float32)[None] + i})["y"][0, 0] == 2 * i
        assert shadow.wait(60)
        report = shadow.report()
        assert (report.sampled, report.dropped, report.failed, report.compared) == (20, 0, 0, 20)
        assert report.disagreed == 20, "the largest is the smallest"
        assert report.max_abs_error == {"y": 4 * 22}
        assert report.live_p50_ms > 0
        assert report.candidate_p50_ms > 0
        answer(host, "m", version="-2")
        assert shadow.report().sampled == 20, "its own answers are not compared with themselves"
        assert host.shadow("m", None) is shadow
        answer(host, "m")
        assert shadow.report().sampled == 20
        assert host.shadow("m", None) is None


def test_a_candidate_may_fail_and_be_slow_without_anybody_noticing(tmp_path: Path) -> None:
    go = Event()
    with Host() as host:
        host.add("m", scaled(tmp_path / "a.edgec", 2))
        host.add("m", scaled(tmp_path / "b.edgec", 2.5))

        def wait(*_: object) -> bool:
            return go.wait(60)

        shadow = host.shadow("m", "2.5", fraction=1, max_queue=2, agree=wait)
        assert shadow is not None
        start = perf_counter()
        for _ in range(50):
            assert answer(host, "m") == 2
        assert perf_counter() - start < 30
        go.set()
        assert shadow.wait(60)
        report = shadow.report()
        assert report.sampled == 50
        assert report.dropped >= 50 - 2 - 2
        assert report.compared == 50 - report.dropped
        assert report.disagreed == 0
        with pytest.raises(ValueError, match="fraction"):
            host.shadow("m", "2.5", fraction=2)
        with pytest.raises(ValueError, match="queue"):
            host.shadow("m", "2.5", max_queue=0)
        host.add("m", scaled(tmp_path / "c.edgec", 7, size=5))
        with pytest.raises(IncompatibleArtifactError, match="a candidate sees"):
            host.shadow("m", "7")


def test_a_candidate_that_fails_is_counted(tmp_path: Path) -> None:
    with Host() as host:
        host.add("m", scaled(tmp_path / "a.edgec", 2))
        host.add("m", scaled(tmp_path / "b.edgec", 3))
        shadow = host.shadow("m", "3", fraction=1)
        assert shadow is not None
        host.unload("m", "3")
        (tmp_path / "b.edgec").unlink()
        answer(host, "m")
        assert shadow.wait(60)
        assert (shadow.report().failed, shadow.report().compared) == (1, 0)
        assert "b.edgec" in shadow.report().last_error
