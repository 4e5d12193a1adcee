"""The studies there are: those of outputs/ on this machine, or those that run on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from launcher.board import Request
from launcher.connecting import join
from launcher.inbox import NAMESPACE
from launcher.status import STALE_SECONDS, STATUS_FILE, StudyStatus, ask_to_cancel, read_status
from training.errors import UserError

ASK_SECONDS = 2.0
ANSWER_SECONDS = 10.0
"""How long a study has to answer `shoal status`; a large file that comes in may keep its Inbox busy."""


class Studies(Protocol):
    """Where to find studies."""

    none: str
    """What to say where there are none."""

    def read(self) -> list[StudyStatus]:
        """Return the status of each, the oldest first."""

    def cancel(self, study: StudyStatus, jobs: Sequence[str]) -> None:
        """Ask its launcher to end these jobs."""


class StudiesHere:
    """Those of a folder such as outputs/; needs no Ray."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.none = f"No study has run in {outputs}/. Those on a Ray cluster: shoal status --address HOST:PORT"

    def read(self) -> list[StudyStatus]:
        """Return the status of each study that was ever run there, the oldest first."""
        found = [read_status(path.parent) for path in self.outputs.glob(f"*/{STATUS_FILE}")]
        return _oldest_first([status for status in found if status])

    def cancel(self, study: StudyStatus, jobs: Sequence[str]) -> None:
        """Ask its launcher to end these jobs."""
        ask_to_cancel(Path(study.folder), jobs)


class StudiesOnCluster:
    """Those that run on a Ray cluster, of which this machine is a node; joins it."""

    def __init__(self, address: str) -> None:
        """Raises UserError where no cluster answers."""
        join(address)
        self.none = f"No study runs on the cluster at {address}."
        self.inboxes: dict[tuple[str, str], Any] = {}

    def read(self) -> list[StudyStatus]:
        """Return the status of each study that runs, the oldest first."""
        import ray

        asked = {inbox.status.remote(): inbox for _, inbox in find_inboxes()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
        found = {}
        for ref in ready:
            content = _answer(ref)
            if content:
                status = StudyStatus.of(content)
                self.inboxes[status.host, status.folder] = asked[ref]
                found[status.host, status.folder] = status
        return _oldest_first(found.values())

    def cancel(self, study: StudyStatus, jobs: Sequence[str]) -> None:
        """Ask its launcher to end these jobs. Raises UserError where it has gone meanwhile."""
        import ray

        try:
            ray.get(self.inboxes[study.host, study.folder].cancel.remote(list(jobs)), timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError:
            raise UserError(f"{study.study} does not answer. See what runs with: shoal status") from None


class Rivals:
    """The other studies on a launcher's cluster, asked what they wait for without waiting for them."""

    def __init__(self, own: str, priority: int) -> None:
        self.own, self.priority = own, priority
        self.asked: dict[Any, str] = {}
        """Reference of an answer -> the Inbox it is of."""
        self.answers: dict[str, tuple[float, list[Request]]] = {}
        """Inbox -> when it answered, and what of higher priority its study waits for."""
        self.next_ask = 0.0

    def ahead(self) -> list[Request]:
        """Return what studies of higher priority wait for, as they last said."""
        import ray

        ready, _ = ray.wait(list(self.asked), num_returns=len(self.asked), timeout=0) if self.asked else ([], [])
        now = time.monotonic()
        for ref in ready:
            name = self.asked.pop(ref)
            self.answers[name] = (now, self._of_higher_priority(name, _answer(ref) or {}))
        if now >= self.next_ask:
            self.next_ask = now + ASK_SECONDS
            inboxes = dict(find_inboxes())
            self.answers = {name: answer for name, answer in self.answers.items() if name in inboxes}
            for name in inboxes.keys() - {self.own, *self.asked.values()}:
                self.asked[inboxes[name].wants.remote()] = name
        fresh = [requests for answered, requests in self.answers.values() if now - answered < STALE_SECONDS]
        return [request for requests in fresh for request in requests]

    def _of_higher_priority(self, name: str, answer: dict[str, Any]) -> list[Request]:
        if answer.get("priority", self.priority) <= self.priority:
            return []
        try:
            waiting = [Request.of(request) for request in answer["waiting"]]
        except (TypeError, KeyError):  # another version of Shoal, whose requests are others
            return []
        # Jobs of two studies may have one name.
        return [item.renamed(f"{name} {item.job}", answer["priority"]) for item in waiting]


def find_inboxes() -> Iterator[tuple[str, Any]]:
    """Yield name and handle of the Inbox of each study on the cluster that this process has joined."""
    import ray

    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE:
            try:
                yield actor["name"], ray.get_actor(actor["name"], namespace=NAMESPACE)
            except ValueError:  # it has ended this very moment
                continue


def _answer(ref: Any) -> Any:
    """Return what an Inbox answered; None where it has ended."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError:
        return None


def _oldest_first(studies: Any) -> list[StudyStatus]:
    return sorted(studies, key=lambda status: (status.started, status.study))
