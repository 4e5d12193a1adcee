"""A disk that is full loses nothing and tears no line. /dev/full is a file on one."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

import training.disk
from launcher.folder import StudyFolder
from launcher.inbox import Inbox
from training.disk import append_line, is_full, wait_for_room
from training.recorder import EVENTS_FILE


def full_disk_error() -> OSError:
    with pytest.raises(OSError) as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    return caught.value


def test_a_full_disk_is_told_from_other_mishaps(tmp_path: Path) -> None:
    assert is_full(full_disk_error())
    with pytest.raises(OSError) as caught:
        (tmp_path / "none" / "there").read_text()
    assert not is_full(caught.value)
    assert not is_full(ValueError())


def test_events_wait_in_memory_and_are_written_in_their_order(tmp_path: Path) -> None:
    inbox = Inbox(str(tmp_path))
    inbox.event("job", {"kind": "log", "time": 0.0, "message": "before"})
    file = tmp_path / "job" / EVENTS_FILE
    kept = file.rename(tmp_path / "kept")
    file.symlink_to("/dev/full")
    for number in range(3):
        inbox.event("job", {"kind": "log", "time": 0.0, "message": str(number)})
    file.unlink()
    kept.rename(file)
    inbox.event("job", {"kind": "log", "time": 0.0, "message": "after"})
    messages = [json.loads(line)["message"] for line in file.read_text().splitlines()]
    assert messages == ["before", "0", "1", "2", "after"]
    assert [event["message"] for _, event in inbox.drain()] == messages  # the launcher heard of all at once


@pytest.fixture
def room_for_ten_bytes() -> Iterator[None]:
    """No file may grow beyond ten bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("room_for_ten_bytes")
def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, "one")
    with pytest.raises(OSError, match="No space left"):
        append_line(path, "two, which is longer")
    assert path.read_text() == "one\n"


def test_a_study_waits_for_room_and_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.disk, "WAIT_SECONDS", 0.01)
    folder = StudyFolder(tmp_path)
    folder.jobs.mkdir()
    said: list[str] = []
    folder.say = said.append
    left = [3]

    def write() -> None:
        left[0] -= 1
        if left[0]:
            raise full_disk_error()

    folder._keep(write)
    assert left == [0] and len(said) == 1 and "full" in said[0]
    with pytest.raises(PermissionError):
        wait_for_room(lambda: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")), lambda: None)
