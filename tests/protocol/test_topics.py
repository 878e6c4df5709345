"""Topics are built and taken apart in one place, and nobody reaches into another's."""

from __future__ import annotations

import pytest

from edgec.errors import ProtocolError
from edgec.protocol import Address, Topics

TOPICS = Topics("acme")


def test_a_topic_says_again_what_it_was_built_from() -> None:
    assert TOPICS.state("dev-1.a") == "edgec/v1/acme/d/dev-1.a/up/state"
    assert TOPICS.parse(TOPICS.state("dev-1.a")) == Address(device="dev-1.a", up=True, kind="state")
    assert TOPICS.parse(TOPICS.command("d", "verify")) == Address(
        device="d", up=False, kind="cmd", name="verify"
    )
    assert TOPICS.parse(TOPICS.request("d", "chunk")) == Address(
        device="d", up=True, kind="req", name="chunk"
    )
    assert TOPICS.poke("lab") == "edgec/v1/acme/g/lab/dn/poke"


@pytest.mark.parametrize(
    "topic",
    [
        "edgec/v1/other/d/d/up/state",
        "edgec/v2/acme/d/d/up/state",
        "edgec/v1/acme/g/lab/dn/poke",
        "$SYS/x",
        "",
    ],
)
def test_topics_of_others_are_nobodys_message(topic: str) -> None:
    assert TOPICS.parse(topic) is None


@pytest.mark.parametrize(
    "rest",
    [
        "d/up/state/",
        "d/up/state/x",
        "d/up/nothing",
        "d/dn/state",
        "d/up/desired",
        "d/dn/cmd",
        "d/up/req",
        "d/dn/cmd/a/b",
        "d/dn/cmd/A",
        "/up/state",
        "a/b/up/state",
        "d/up/state\n",
        f"{'d' * 65}/up/state",
    ],
)
def test_what_is_no_topic_of_ours_is_refused(rest: str) -> None:
    with pytest.raises(ProtocolError, match="no topic"):
        TOPICS.parse(f"edgec/v1/acme/d/{rest}")


@pytest.mark.parametrize("bad", ["", "+", "#", "a/b", "a+", "-a", ".a", "ä", "a b", "a" * 65, "a\n"])
def test_ids_cannot_reach_into_other_topics(bad: str) -> None:
    with pytest.raises(ProtocolError, match="must be an id"):
        Topics(bad)
    for build in (TOPICS.state, TOPICS.desired, TOPICS.ack, TOPICS.for_device, TOPICS.poke):
        with pytest.raises(ProtocolError, match="must be an id"):
            build(bad)
    with pytest.raises(ProtocolError, match="must be a word"):
        TOPICS.command("d", bad)


def test_filters_do_not_overlap() -> None:
    filters = [f.split("/") for f in TOPICS.for_fleet()]
    built = [TOPICS.state("d"), TOPICS.reported("d"), TOPICS.telemetry("d"), TOPICS.event("d")]
    for topic in [*built, TOPICS.reply("d"), TOPICS.request("d", "chunk")]:
        parts = topic.split("/")
        matching = [
            f
            for f in filters
            if len(f) == len(parts) and all(a in ("+", b) for a, b in zip(f, parts, strict=True))
        ]
        assert len(matching) == 1, topic
