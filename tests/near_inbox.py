"""The rank's end of a study's inbox, in the process of the inbox itself."""

from __future__ import annotations

import pytest

from launcher.inbox import Inbox, RayRecorder


def recorder_near(inbox: Inbox, job: str, monkeypatch: pytest.MonkeyPatch) -> RayRecorder:
    """Return a recorder that calls the inbox as a plain object: no Ray is between."""
    recorder = RayRecorder(inbox, job)
    monkeypatch.setattr(recorder, "_call", lambda method, *rest: getattr(inbox, method)(job, *rest))
    return recorder
