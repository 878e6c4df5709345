"""A model is removed while an application runs it: the application goes on, and so do updates."""

from __future__ import annotations

import hashlib
import shutil

import pytest
from tests.device_agent.followed import MODEL, Device, SlotsInUse, answer, eventually, scaled

from edgec.device_agent._actions import Context
from edgec.device_agent._events import Work
from edgec.device_agent._state import Wanted
from edgec.runtime import follow

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def test_the_directory_says_that_nothing_is_installed_any_more(here: Device) -> None:
    here.install(2)
    slot = here.slots.current()
    assert slot is not None
    with follow(MODEL, directory=here.models, socket=None, poll_s=0.02) as session:
        assert session.problem == ""
        here.slots.close()
        eventually(lambda: "nothing is installed any more" in session.problem)
        assert answer(session) == 2
        installed = here.slots.installed(slot)
        assert installed is not None
        here.slots.switch(installed, proven=True)
        eventually(lambda: session.problem == "")


def test_the_next_update_does_not_wait_for_an_application_that_runs_what_was_removed(here: Device) -> None:
    here.install(2)
    with here.applications() as served, follow(MODEL, directory=here.models, socket=here.socket) as session:
        old = here.digest()
        eventually(lambda: served.held(MODEL) == {old})
        here.slots.close()
        served.follow(MODEL, None)
        eventually(lambda: "nothing is installed any more" in session.problem)
        # What the application has open is kept on the disk ...
        doing = SlotsInUse(here, served)
        doing.clean(Work(number=1, name="clean", model=MODEL, wanted=None, slot="a"), Context())
        assert here.slots.installed("a") is not None
        # ... until something else is to come there.
        source = scaled(here.root / "new.edgec", 3)
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        shutil.copy(source, here.slots.incoming(digest))
        wanted = Wanted(epoch=2, digest=digest, length=source.stat().st_size)
        doing.stage(Work(number=2, name="stage", model=MODEL, wanted=wanted, slot="a"), Context())
        assert answer(session) == 2
        installed = here.slots.installed("a")
        assert installed is not None
        here.slots.switch(installed, proven=False)
        served.follow(MODEL, here.slots.artifact("a"))
        assert (answer(session), session.problem) == (3, "")
        assert served.held(MODEL) == {digest}
