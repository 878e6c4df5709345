"""FleetClient against a server on a port: what it sends again, once, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the client's tests need the extra 'fleet'")
pytest.importorskip("scipy", reason="the client's tests need the extra 'fleet'")
pytest.importorskip("tuf", reason="the client's tests need the extra 'fleet'")

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.fleet.served import Sender, artifact, enrol, serving, token

from edgec.errors import FleetError
from edgec.fleet.api import ApiLimits, create_app
from edgec.fleet.client import FleetClient
from edgec.fleet.client import _http as http
from edgec.fleet.service import Fleet
from edgec.fleet.views import RolloutWanted, StageWanted
from edgec.gateway._fleet import FleetSource
from edgec.protocol.certificates import CertificateAuthority

pytestmark = pytest.mark.slow


class Unreliable:
    """Carries out requests, and then sometimes loses the reply, or says that it is busy."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.lose = 0
        self.busy = 0
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.requests += 1
        if self.busy:
            self.busy -= 1
            headers = [(b"retry-after", b"0"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body"})
            return
        if not self.lose:
            await self.app(scope, receive, send)
            return
        self.lose -= 1

        async def lost(message: Message) -> None:
            return

        await self.app(scope, receive, lost)
        # A reply that breaks off: the server has done it, and the client cannot know.
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})
        raise ConnectionResetError


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet") / "fleet") as opened:
        enrol(opened, *(f"cam-{i:04}" for i in range(3)))
        yield opened


@pytest.fixture(scope="module")
def network(fleet: Fleet) -> Unreliable:
    return Unreliable(create_app(fleet, commands=Sender(), limits=ApiLimits(rate=None)))


@pytest.fixture(scope="module")
def client(fleet: Fleet, network: Unreliable) -> Iterator[FleetClient]:
    with serving(network) as url, FleetClient(url, token(fleet, "admin")) as made:
        yield made


def test_lists_come_whole_however_many_pages(client: FleetClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgec.fleet.client._part._PAGE", 2)
    assert [d.id for d in client.devices()] == ["cam-0000", "cam-0001", "cam-0002"]
    assert len(list(client.audit())) > 3


def test_a_change_whose_reply_was_lost_is_made_once(
    client: FleetClient, network: Unreliable, fleet: Fleet
) -> None:
    network.lose = 2
    made = client.create_token("robot", "viewer")
    assert network.lose == 0
    assert [t.name for t in fleet.tokens.all()].count("robot") == 1
    found = fleet.tokens.find(made.token, fleet.clock())
    assert found is not None
    assert found.id == made.id


def test_an_upload_whose_reply_was_lost_is_sent_again(
    client: FleetClient, network: Unreliable, fleet: Fleet, tmp_path: Path
) -> None:
    path = artifact(tmp_path, "1")
    sent: list[int] = []
    network.lose = 1
    made = client.upload(path, progress=sent.append)
    assert sum(sent) == 2 * path.stat().st_size
    assert [e.action for e in fleet.store.audit.entries(limit=1000)].count("artifact.upload") == 1
    client.download(made.sha256, tmp_path / "again.edgec")
    assert sha256((tmp_path / "again.edgec").read_bytes()).hexdigest() == made.sha256
    with pytest.raises(FleetError, match="there is no artifact"):
        client.download("0" * 64, tmp_path / "none.edgec")
    assert not (tmp_path / "none.edgec").exists()


def test_it_waits_where_the_server_is_busy(client: FleetClient, network: Unreliable) -> None:
    network.busy = 2
    assert client.fleet().devices == 3
    assert network.busy == 0


def test_rollouts_and_incidents_are_values(client: FleetClient) -> None:
    wanted = RolloutWanted(model="kws", stages=[StageWanted(percent=100, soak_s=0)], start=True)
    made = client.create_rollout(wanted)
    assert (made.state, made.version) == ("running", "1")
    assert client.order(made.id, "undo", "wrong one").state == "undoing"
    assert [d.kind for d in client.decisions(made.id)] == ["order", "order"]
    assert [r.id for r in client.rollouts(states=["undoing"])] == [made.id]
    assert list(client.incidents(only_open=True)) == []
    assert client.why("cam-0000", "kws").reason == "undone"
    assert client.command("cam-0000", "logs").state == "done"


def test_the_server_checks_and_the_reason_arrives(client: FleetClient) -> None:
    with pytest.raises(FleetError, match="expected key, !key") as refused:
        client.set_group("bad", "==")
    assert refused.value.reason == "query"
    with pytest.raises(FleetError, match="there is nothing at") as odd:
        client.device("../tokens")
    assert odd.value.reason == "not_found"


def test_who_is_not_there_or_is_no_fleet_is_named(fleet: Fleet, tmp_path: Path) -> None:
    with FleetClient("http://127.0.0.1:1", "t", tries=2) as nobody:
        with pytest.raises(FleetError, match="is the server up") as gone:
            nobody.fleet()
        assert gone.value.reason == "unreachable"

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    with serving(other) as url, FleetClient(url, "t") as stranger:
        with pytest.raises(FleetError, match="is it an edgec fleet") as wrong:
            stranger.fleet()
        assert wrong.value.reason == "reply"


def test_a_server_that_is_away_behind_its_proxy_cannot_be_reached() -> None:
    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 502, "headers": []})
        await send({"type": "http.response.body", "body": b"<h1>Bad Gateway</h1>"})

    with serving(proxy) as url, FleetClient(url, "t", tries=1) as client:
        with pytest.raises(FleetError, match="answered 502") as gone:
            client.fleet()
        assert gone.value.reason == "unreachable"


def test_a_reply_that_cannot_be_unpacked_is_named() -> None:
    async def damaged(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-encoding", b"gzip")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"no gzip"})

    with serving(damaged) as url, FleetClient(url, "t") as client:
        with pytest.raises(FleetError, match="cannot be read") as wrong:
            client.fleet()
        assert wrong.value.reason == "reply"


@pytest.mark.parametrize("token", ["edgec_\u00e4", "edgec_\ud800", "edgec_\n"])
def test_what_cannot_be_a_token_is_refused(token: str) -> None:
    with pytest.raises(FleetError, match="a token has only letters"):
        FleetClient("https://fleet.example", token)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://x", "expected a fleet such as https"),
        ("fleet.example", "expected a fleet such as https"),
        ("https://u:p@fleet.example", "give the token apart"),
        ("http://fleet.example", "without encryption"),
        ("https://fleet.example:port", "expected a fleet such as https"),
        ("https://fleet.example/api", "expected a fleet such as https"),
        ("https://fleet.example:0", "expected a fleet such as https"),
        ("https://fleet.example/#x", "expected a fleet such as https"),
    ],
)
def test_a_url_that_would_not_do_is_refused(url: str, words: str) -> None:
    # Clients and gateways take the same addresses.
    for made in (FleetClient, FleetSource):
        with pytest.raises(FleetError, match=words):
            made(url, "t")


def test_a_certificate_that_is_not_trusted_is_named(fleet: Fleet, tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "tls")
    other = CertificateAuthority(tmp_path / "other")
    with serving(create_app(fleet), authority.server("http", ["127.0.0.1"])) as url:
        with FleetClient(url, token(fleet, "viewer"), ca=authority.root) as right:
            assert right.fleet().devices == 3
        with FleetClient(url, "t", ca=other.root) as wrong:
            with pytest.raises(FleetError, match="--ca") as refused:
                wrong.fleet()
            assert refused.value.reason == "tls"


def test_times_between_tries_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sender = http.Http("http://127.0.0.1:1", "t", ca=None, timeout_s=1, tries=4, sleep=waits.append)
    with pytest.raises(FleetError):
        sender.get(dict, "/")
    sender.close()
    assert len(waits) == 3
    assert waits[0] < waits[1] < waits[2]
