"""How a rank's events and files reach the study folder on the head, with no shared disk.

`Inbox` is one Ray actor on the head's node; `RayRecorder` is the rank's end of it. Files travel in chunks, each
acknowledged before the next, so a large checkpoint never fills the memory of either side. What a rank names cannot
leave the job's folder, and what it links to is not sent. Where the head's disk is full, a job waits for room with what
it has to save.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

from launcher.status import ask_to_cancel, read_status, wants
from training.disk import append_line, flush, is_full, wait_for_room
from training.errors import ShoalError
from training.recorder import EVENTS_FILE, Event
from training.redact import redact_values

CHUNK_BYTES = 4 << 20
INCOMING = ".incoming"
MOST_UNWRITTEN = 100_000
"""Events kept in memory while the disk is full; jobs wait by then, so that there are few."""
INBOX_NAME = "{study}: progress and results"
"""The actor's name begins with it: its log in Ray's dashboard is the progress of the study."""
NAMESPACE = "shoal"


class Inbox:
    """Writes `jobs/<name>/` of a study folder. Made a Ray actor by the launcher; plain here.

    It is by name in Ray's namespace NAMESPACE, where other launchers and `shoal status` find it.
    """

    def __init__(self, jobs_folder: str) -> None:
        self.jobs_folder = Path(jobs_folder)
        self.new_events: list[tuple[str, Event]] = []
        self.unwritten: deque[tuple[Path, Event]] = deque(maxlen=MOST_UNWRITTEN)

    def event(self, job: str, event: Event) -> None:
        """Append one event to the job's events.jsonl and keep it for `drain`."""
        self.unwritten.append((self._inside(job, "") / EVENTS_FILE, event))
        self.new_events.append((job, event))
        if news := describe_event(event):
            print(f"{time.strftime('%H:%M:%S', time.localtime(event['time']))}  {job}: {news}", file=sys.stderr)
        while self.unwritten:
            path, event = self.unwritten[0]
            try:
                append_line(path, json.dumps(event, ensure_ascii=False))
            except OSError as error:
                if not is_full(error):
                    raise
                return  # written with one that comes later
            self.unwritten.popleft()

    def drain(self) -> list[tuple[str, Event]]:
        """Return (job, event) of all that came since the last call."""
        events, self.new_events = self.new_events, []
        return events

    def begin(self, job: str, relative_path: str) -> None:
        """Get ready for the files of `relative_path`, dropping what an earlier try left half sent."""
        _delete(self._incoming(job, relative_path))

    def chunk(self, job: str, relative_path: str, file: str, content: bytes) -> None:
        """Append to `file` within a folder being sent; `file` is "" where a single file is."""
        target = self._incoming(job, relative_path, file)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as opened:
            opened.write(content)

    def commit(self, job: str, relative_path: str) -> None:
        """Put what was sent in its place, replacing what was there."""
        target = self._inside(job, relative_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            _delete(target)
        incoming = self._incoming(job, relative_path)
        flush(incoming)
        incoming.replace(target)

    def remove(self, job: str, relative_path: str) -> None:
        """Delete a file or folder of the job, if it is there."""
        _delete(self._inside(job, relative_path))

    def list_files(self, job: str, folder: str) -> list[str]:
        """Return the paths of all files under a folder of the job, relative to the job; of a file its own."""
        root, within = self._inside(job, ""), self._inside(job, folder)
        if within.is_file():
            return [folder]
        return sorted(str(path.relative_to(root)) for path in within.rglob("*") if path.is_file())

    def read(self, job: str, relative_path: str, offset: int) -> bytes:
        """Return the next chunk of a file; empty at its end."""
        with self._inside(job, relative_path).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)

    def status(self) -> dict[str, Any] | None:
        """Return the study's newest StudyStatus.to_dict()."""
        status = read_status(self.jobs_folder.parent)
        return status.to_dict() if status else None

    def wants(self) -> dict[str, Any]:
        """Return what the study's jobs wait for; see launcher.status.wants."""
        return wants(self.jobs_folder.parent)

    def cancel(self, jobs: list[str]) -> None:
        """Ask the launcher to end these jobs."""
        ask_to_cancel(self.jobs_folder.parent, jobs)

    def _incoming(self, job: str, relative_path: str, file: str = "") -> Path:
        """Return where what is being sent lies until all of it is here."""
        self._inside(job, relative_path)
        return self._inside(job, Path(INCOMING, relative_path.replace("/", "--"), file))

    def _inside(self, job: str, relative_path: str | Path) -> Path:
        """Return a path in the job's folder; raise ShoalError for one that leaves it, by its name or by a link."""
        path = self.jobs_folder / job / relative_path
        is_name = job == Path(job).name and ".." not in Path(job, relative_path).parts
        if not job or not is_name or not path.resolve().is_relative_to(self.jobs_folder.resolve() / job):
            raise ShoalError(f"job {job!r} names {str(relative_path)!r}, which is not in its folder")
        return path


def describe_event(event: Event) -> str:
    """Return what an event says of a job's progress; empty where it says nothing."""
    if event["kind"] == "step":
        done = f"step {event['step']}/{event['num_steps']}"
        return f"{done}  loss {event['loss']:.4f}  {event['samples_per_second']:.1f} samples/s"
    if event["kind"] == "evaluation":
        return f"{event['split']} accuracy {event['accuracy']:.4f}"
    return str(event.get("phase") or event.get("message", ""))


class RayRecorder:
    """training.recorder.Recorder of a rank: everything goes to the `Inbox` actor."""

    def __init__(self, inbox: Any, job: str) -> None:
        self.inbox = inbox
        self.job = job

    def event(self, kind: str, **values: Any) -> None:
        """Send one event; does not wait."""
        self.inbox.event.remote(self.job, {"time": round(time.time(), 3), "kind": kind, **redact_values(values)})

    def save(self, relative_path: str, source: Path) -> None:
        """Send a file or folder and wait until it lies in the study folder, for room on the head's disk if need be.

        result.json stays here: the head writes it once every rank has ended well.
        """
        if relative_path == "result.json":
            return
        message = f"the head's disk is full; the job waits with {relative_path} until there is room"
        wait_for_room(lambda: self._send(relative_path, source), lambda: self.event("waiting", message=message))

    def _send(self, relative_path: str, source: Path) -> None:
        """Send a file or folder. Raises OSError where the head cannot keep it."""
        self._call("begin", relative_path)
        entries = sorted(source.rglob("*")) if source.is_dir() else [source]
        links = [path for path in entries if path.is_symlink()]
        if links:
            raise ShoalError(f"{links[0]} is a symbolic link: what it leads to is not part of {relative_path}")
        files = [path for path in entries if path.is_file()]
        for path in files:
            name = str(path.relative_to(source)) if source.is_dir() else ""
            self._call("chunk", relative_path, name, b"")
            with path.open("rb") as opened:
                while content := opened.read(CHUNK_BYTES):
                    self._call("chunk", relative_path, name, content)
        self._call("commit", relative_path)

    def remove(self, relative_path: str) -> None:
        """Delete a file or folder of the study folder."""
        self._call("remove", relative_path)

    def fetch(self, folder: str, workdir: Path) -> None:
        """Bring a folder or file of the job (its checkpoints), if there is one, from the study folder to `workdir`."""
        for name in self._call("list_files", folder):
            target = workdir / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as opened:
                while content := self._call("read", name, opened.tell()):
                    opened.write(content)

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self.inbox, method).remote(self.job, *arguments))
        except ray.exceptions.RayTaskError as error:
            if is_full(error.cause):
                raise error.cause from None
            raise


def _delete(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
