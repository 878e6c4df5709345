from __future__ import annotations

import pytest

from edgec.compiler.report import Build, render_html, render_text


def test_summary_names_candidates_winner_reasons_and_paths(build: Build) -> None:
    text = render_text(build)
    lines = text.splitlines()
    assert lines[0] == "cpu-x86_64  (PC or server, x86-64)"
    assert " ".join(lines[1].split()) == "candidate status p50 µs p99 vs fp32 top-1 parity size"
    winners = [line for line in lines if line.startswith("*")]
    won = " ".join(winners[0].split())
    assert won == "* onnxruntime int8 winner 18.2 31.1 2.31x 98.9 % 61.2 dB 44.1 kB"
    assert len(winners) == len(build["artifacts"])
    assert "why      onnxruntime int8 won" in text
    assert "not run  The TensorRT engine was not built" in text
    assert "artifact build/digits-cpu-x86_64.edgec (63.8 kB)" in text
    assert text.endswith("2 artifacts built, in 41.7 s.\n")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 132])
def test_lines_fit_the_width(build: Build, width: int) -> None:
    for artifact in build["artifacts"]:
        artifact["path"] = "a.edgec"
    assert max(map(len, render_text(build, width=width).splitlines())) <= width


def test_paths_are_never_broken(build: Build) -> None:
    build["artifacts"][0]["path"] = path = "/somewhere/" + "long/" * 40 + "a.edgec"
    assert path in render_text(build, width=60)


def test_warnings_come_first(build: Build) -> None:
    build["data"] = {"synthetic": "inputs were made up"}
    build["skipped"] = [{"target": "coral-edgetpu", "reason": "not built yet"}]
    lines = render_text(build).splitlines()
    assert lines[:2] == ["WARNING inputs were made up", "WARNING coral-edgetpu: not built: not built yet"]


def test_a_reason_that_a_decision_gives_is_not_said_twice(build: Build) -> None:
    reason = build["artifacts"][0]["candidates"][3].get("reason")
    build["artifacts"][0]["decisions"] = [f"openvino bf16 is out: {reason}"]
    assert " ".join(render_text(build).split()).count(str(reason)) == 1


def test_control_characters_do_not_reach_the_terminal(build: Build) -> None:
    build["artifacts"][0]["candidates"][0]["name"] = "\x1b[2Jevil\r\u202e"
    build["artifacts"][0]["decisions"] = ["a\x1b]0;title\x07b\nc"]
    build["artifacts"][0]["path"] = "x\x1b[31m.edgec"
    text = render_text(build)
    assert not set(text) & set("\x1b\x07\r\u202e")
    assert "\ufffd[2Jevil" in text


def test_a_build_that_knows_nothing_renders(build: Build) -> None:
    assert render_text({}) == "0 artifacts built.\n"
    bare = {"artifacts": [{"target": "cpu", "candidates": [{"name": "a", "status": "winner"}]}]}
    assert "* a             winner" in render_text(bare)


def test_what_a_toolchain_estimates_is_told_in_numbers(build: Build) -> None:
    build["artifacts"][0]["estimate"] = {
        "latency_ms": 0.4213, "source": "estimated by Vela 5.2.0 for U55", "cycles": 210_650,
        "clock_mhz": 500.0, "sram_kib": 96.5,
        "dram_kib": 0.0, "operators": 12, "cpu_operators": 3, "cpu_share": 0.25,
    }  # fmt: skip
    told = (
        "estimate 0.421 ms, 210650 cycles at 500 MHz, SRAM 96 KiB, 3 of 12 operators on the CPU, "
        "estimated by Vela 5.2.0 for U55"
    )
    assert told in " ".join(render_text(build, width=60).split())
    page = " ".join(render_html(build).split())
    assert f"<dt>Estimate</dt><dd>{told.removeprefix('estimate ')}</dd>" in page
    build["artifacts"][0]["estimate"] = {"latency_ms": 2.0, "source": "estimated by something"}
    assert "estimate 2.00 ms, estimated by something" in " ".join(render_text(build).split())


def test_without_an_estimate_nothing_is_said_of_one(build: Build) -> None:
    assert "estimate" not in render_text(build).casefold()
    assert "<dt>Estimate" not in render_html(build)
