"""An order without news of the image repository: what was verified of that holds on, as long as it may."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.trust.simulator import DAY, DEVICE, Publisher, artifact, path_of, refused, versions

from edgec.trust import Assignment, DeviceTrust, generate_key, rotate


class _Watched:
    """The files of a repository; notes which are asked for, and whether the image repository is verified."""

    def __init__(self, publisher: Publisher, scratch: Path) -> None:
        self._files, self._scratch = publisher.files(), scratch
        self.asked: list[str] = []
        self.verified = False

    def fetch(self, file: str, max_bytes: int) -> bytes | None:
        del max_bytes
        self.asked.append(file)
        # tuf's client works in a folder.
        self.verified |= any(self._scratch.glob("work-*/image"))
        return self._files.get(file)


class _Held(_Watched):
    """Answers when it is told to."""

    def __init__(self, publisher: Publisher, scratch: Path) -> None:
        super().__init__(publisher, scratch)
        self.asked_for, self.go_on = threading.Event(), threading.Event()

    def fetch(self, file: str, max_bytes: int) -> bytes | None:
        self.asked_for.set()
        assert self.go_on.wait(60)
        return super().fetch(file, max_bytes)


def _device(publisher: Publisher, tmp_path: Path) -> tuple[DeviceTrust, Path]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    device = publisher.device(tmp_path / "device", scratch=scratch)
    device.update(publisher.repo)
    return device, scratch


def _updated(device: DeviceTrust, publisher: Publisher, scratch: Path) -> tuple[Assignment, _Watched]:
    source = _Watched(publisher, scratch)
    return device.update(source), source


def test_it_is_asked_for_news_and_not_verified_again(publisher: Publisher, tmp_path: Path) -> None:
    device, scratch = _device(publisher, tmp_path)
    publisher.director.assign(DEVICE, {"tiny": path_of("2")})
    assignment, source = _updated(device, publisher, scratch)
    assert versions(assignment) == ["2"]
    assert [file for file in source.asked if file.startswith("image/")] == [
        "image/2.root.json",
        "image/timestamp.json",
    ]
    assert not source.verified
    # What is on its disk is whole, though only the director's part of it is new.
    again = publisher.device(tmp_path / "device")
    assert again.known() == assignment


def test_a_new_release_is_seen_and_each_file_fetched_once(publisher: Publisher, tmp_path: Path) -> None:
    device, scratch = _device(publisher, tmp_path)
    path = publisher.publish("3")
    publisher.director.assign(DEVICE, {"tiny": path})
    assignment, source = _updated(device, publisher, scratch)
    assert versions(assignment) == ["3"]
    assert source.verified
    assert len(set(source.asked)) == len(source.asked)


def test_new_keys_are_seen(publisher: Publisher, tmp_path: Path) -> None:
    device, scratch = _device(publisher, tmp_path)
    before = publisher.files()
    added = generate_key(publisher.keys_folder, "online-2", "online")
    ring = publisher.ring()
    rotate(*publisher.open(ring), retire=[ring.named("online")], add=[added])
    publisher.image.release()
    # The root alone is news: what the old key has signed is not believed any more.
    refused(device, before | {"image/2.root.json": publisher.files()["image/2.root.json"]}, "signature")
    _, source = _updated(device, publisher, scratch)
    assert source.verified


def test_another_model_is_looked_up(publisher: Publisher, tmp_path: Path) -> None:
    image = publisher.image
    image.publish(artifact(tmp_path / "other.edgec", "1", model="other"))
    image.release()
    device, scratch = _device(publisher, tmp_path)
    publisher.director.assign(DEVICE, {"tiny": path_of("1"), "other": "other/other-1-cpu-x86_64.edgec"})
    assignment, source = _updated(device, publisher, scratch)
    assert [target.model for target in assignment.targets] == ["other", "tiny"]
    assert source.verified
    # What nobody needs any more is not kept: when it expires is nobody's concern.
    publisher.director.assign(DEVICE, {"other": "other/other-1-cpu-x86_64.edgec"})
    assignment, _ = _updated(device, publisher, scratch)
    assert [target.model for target in assignment.targets] == ["other"]
    kept = json.loads((tmp_path / "device/metadata.json").read_bytes())["content"]
    assert [name for name in kept if "other" in name or "tiny" in name] == ["image/model.other.json"]


def test_what_a_source_answered_is_not_kept(publisher: Publisher, tmp_path: Path) -> None:
    device, scratch = _device(publisher, tmp_path)
    path = publisher.publish("3")
    publisher.director.assign(DEVICE, {"tiny": path})
    source = _Watched(publisher, scratch)
    device.update(source)
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None


def test_what_another_thread_learned_meanwhile_is_known(publisher: Publisher, tmp_path: Path) -> None:
    _device(publisher, tmp_path)
    again = publisher.device(tmp_path / "device")
    publisher.director.assign(DEVICE, {"tiny": path_of("2")})
    publisher.publish("3")
    held = _Held(publisher, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        updated = pool.submit(again.update, held)
        assert held.asked_for.wait(60)
        known = pool.submit(again.known)
        # It waits for the other, as far as one can see.
        time.sleep(0.2)
        held.go_on.set()
        assert versions(updated.result(60)) == ["2"]
        assert versions(known.result(60)) == ["2"]


def test_it_expires_though_nothing_has_changed(publisher: Publisher, tmp_path: Path) -> None:
    device, scratch = _device(publisher, tmp_path)
    before = device.known().expires
    publisher.clock.now += 29 * DAY
    publisher.director.renew(DEVICE)
    _, source = _updated(device, publisher, scratch)
    assert not source.verified
    # The director's is fresh; it is the other's that ends here.
    publisher.clock.now = before + 1
    publisher.director.renew(DEVICE)
    refused(device, _Watched(publisher, scratch), "expired")


def test_what_the_repository_does_not_have_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    device, _ = _device(publisher, tmp_path)
    other = publisher.files()
    path = publisher.publish("3")
    publisher.director.assign(DEVICE, {"tiny": path})
    held_back = publisher.files() | {name: data for name, data in other.items() if name.startswith("image/")}
    refused(device, held_back, "unknown_target")
    assert versions(device.update(publisher.files())) == ["3"]
