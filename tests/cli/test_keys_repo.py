"""``edgec keys`` and ``edgec repo``: from keys to an assignment that a device believes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="signed metadata needs the extra 'agent'")

from click.testing import CliRunner, Result
from tests.trust.simulator import artifact

from edgec.cli import main_group
from edgec.errors import OutputError, TrustError
from edgec.trust import DeviceTrust


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> Result:
    return CliRunner().invoke(main_group, words)


def said(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def shape(*words: str) -> Any:
    return json.loads(said(*words, "--json"))


def set_up(*options: str) -> None:
    said("keys", "init", "keys")
    said("repo", "init", "repo", "--keys", "keys", *options)


def device() -> DeviceTrust:
    roots = [Path("repo", kind, "1.root.json").read_bytes() for kind in ("image", "director")]
    return DeviceTrust(
        Path("device"),
        device_id="cam-7",
        hardware={"cpu-x86_64"},
        image_root=roots[0],
        director_root=roots[1],
    )


@pytest.mark.slow
def test_from_keys_to_a_device() -> None:
    set_up("--targets-threshold", "2")
    first = artifact(Path("1.edgec"), "1", model="digits")
    published = shape("repo", "publish", "repo", str(first), "--keys", "keys")
    assert (published["in_force"], published["waiting"]) == (True, [])
    assert published["published"][0]["path"] == "digits/digits-1-cpu-x86_64.edgec"
    assigned = shape("repo", "assign", "repo", "cam-7", "digits", "--keys", "keys", "--bundle", "bundle.json")
    assert (assigned["device"], assigned["epoch"]) == ("cam-7", 1)
    bundle = {name: text.encode() for name, text in json.loads(Path("bundle.json").read_bytes()).items()}
    assert device().update(bundle).target("digits") is not None
    said("repo", "publish", "repo", str(artifact(Path("2.edgec"), "2", model="digits")), "--keys", "keys")
    assert "epoch 2" in said("repo", "assign", "repo", "cam-7", "digits", "--keys", "keys")
    assert "epoch 3" in said("repo", "assign", "repo", "cam-7", "digits=1", "--keys", "keys")
    assert "1 devices" in said("repo", "renew", "repo", "--keys", "keys")
    status = shape("repo", "status", "repo", "--keys", "keys")
    assert status["devices"]["cam-7"]["models"] == {"digits": "digits/digits-1-cpu-x86_64.edgec"}
    assert [a["version"] for a in status["artifacts"]] == ["1", "2"]
    assert status["due"] == []
    told = said("repo", "status", "repo", "--keys", "keys")
    assert "cam-7" in told
    assert "nothing within two weeks" in told


def test_two_people_sign() -> None:
    said("keys", "init", "keys")
    Path("stick").mkdir()
    for name in ("targets-2.pem", "root-2.pem", "root-3.pem"):
        Path("keys", name).rename(Path("stick", name))
        public = Path(name).with_suffix(".pub").name
        Path("stick", public).write_bytes(Path("keys", public).read_bytes())
    begun = shape("repo", "init", "repo", "--keys", "keys", "--targets-threshold", "2")
    assert begun["released"] == []
    assert "image/root: 1 signatures; root-2, root-3 may sign, 2 are needed" in begun["waiting"]
    signed = shape("keys", "sign", "repo", "--keys", "stick")
    assert set(signed["signed"]) == {"image/root", "image/targets", "director/root"}
    said("repo", "renew", "repo", "--keys", "keys")
    path = artifact(Path("1.edgec"), "1")
    assert "not in force yet" in said("repo", "publish", "repo", str(path), "--keys", "keys")
    assert "must sign" in said("keys", "status", "repo", "--keys", "keys")
    assert "image/model.tiny" in said("keys", "sign", "repo", "--keys", "stick")
    assert "signed and not in force: run  edgec repo renew" in said(
        "keys", "status", "repo", "--keys", "keys"
    )
    assert shape("repo", "renew", "repo", "--keys", "keys")["released"] == [
        "image/model.tiny",
        "image/targets",
    ]
    assert "all they may" in said("keys", "sign", "repo", "--keys", "stick")


@pytest.mark.slow
def test_a_stolen_key_is_retired() -> None:
    set_up()
    said("repo", "publish", "repo", str(artifact(Path("1.edgec"), "1")), "--keys", "keys")
    said("repo", "assign", "repo", "cam-7", "tiny", "--keys", "keys")
    rotated = shape(
        "keys", "rotate", "repo", "--keys", "keys", "--retire", "director", "--retire", "targets-1"
    )
    assert rotated["new"] == ["director-2", "targets-3"]
    assert set(rotated["released"]) == {"image/root", "image/targets", "image/model.tiny", "director/root"}
    for name in ("director.pem", "targets-1.pem"):
        Path("keys", name).unlink()
    said("repo", "publish", "repo", str(artifact(Path("2.edgec"), "2")), "--keys", "keys")
    assert "epoch 2" in said("repo", "assign", "repo", "cam-7", "tiny", "--keys", "keys")
    assert [target.custom.version for target in device().update(Path("repo")).targets] == ["2"]
    assert shape("keys", "rotate", "repo", "--keys", "keys")["released"] == ["image/root", "director/root"]


def test_expired_metadata_is_an_exit_status() -> None:
    set_up("--online-days", "0")
    result = run("keys", "status", "repo", "--keys", "keys")
    assert result.exit_code == 1
    assert "OVERDUE" in result.output
    assert (
        json.loads(run("keys", "status", "repo", "--keys", "keys", "--json").output)["due"][0]["overdue"]
        is True
    )


def test_a_passphrase_comes_from_a_file() -> None:
    Path("secret").write_text("open sesame\n")
    said("keys", "init", "keys", "--passphrase-file", "secret")
    assert "ENCRYPTED" in Path("keys/root-1.pem").read_text()
    assert "ENCRYPTED" not in Path("keys/online.pem").read_text()
    result = run("repo", "init", "repo", "--keys", "keys")
    assert isinstance(result.exception, TrustError)
    assert "--passphrase-file" in str(result.exception)
    said("repo", "init", "repo", "--keys", "keys", "--passphrase-file", "secret")


def test_keys_are_made_one_by_one_and_never_replaced() -> None:
    assert "root-anna.pem" in said("keys", "init", "keys", "--role", "root", "--name", "root-anna")
    again = run("keys", "init", "keys", "--role", "root", "--name", "root-anna")
    assert isinstance(again.exception, OutputError)
    assert run("keys", "init", "keys", "--name", "x").exit_code == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("repo", "status", "nowhere", "--keys", "keys"), "is no repository"),
        (("repo", "init", "other", "--keys", "empty"), "no .pub files"),
        (("repo", "assign", "repo", "cam-7", "nothing", "--keys", "keys"), "no artifact fits"),
        (("keys", "rotate", "repo", "--keys", "keys", "--retire", "nobody"), "there is no key 'nobody'"),
        (("repo", "init", "repo", "--keys", "keys"), "has an image repository already"),
    ],
)
def test_mistakes_are_said(words: tuple[str, ...], said: str) -> None:
    set_up()
    Path("empty").mkdir()
    result = run(*words)
    assert isinstance(result.exception, TrustError)
    assert said in str(result.exception)


@pytest.mark.parametrize("name", ["init", "publish", "assign", "renew", "status"])
def test_repo_commands_have_examples(name: str) -> None:
    told = said("repo", name, "--help")
    assert f"edgec repo {name} repo" in told
    assert "--json" in told


@pytest.mark.parametrize("name", ["init", "rotate", "sign", "status"])
def test_keys_commands_have_examples(name: str) -> None:
    told = said("keys", name, "--help")
    assert f"edgec keys {name} " in told
    assert "--json" in told
