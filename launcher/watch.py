"""`shoal status` and `shoal cancel`: see studies, and end what is in them, from another terminal or machine."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from launcher.others import Studies
from launcher.state import OPEN
from launcher.status import StudyStatus
from launcher.table import LINES_BESIDE, StudyView, describe, render
from training.errors import UserError

REFRESH_SECONDS = 2.0
ALL_LINES = 1 << 20
NAMES_SHOWN = 8


def show_status(studies: Studies, names: Sequence[str], *, watch: bool = False, as_json: bool = False) -> int:
    """Print the studies of these names, or all; return the exit status. Raises UserError for a name there is not.

    Those that run, or are named, are shown with their jobs. To `watch` is to show them anew until none runs.
    """
    console = Console()
    found = _named(studies, names)
    if as_json:
        print(json.dumps([status.to_dict() for status in found], ensure_ascii=False, indent=1))
    elif not found:
        _say(console, studies.none)
    elif not watch:
        if console.is_terminal:
            console.print(_draw(found, _with_jobs(found, names), console.width, ALL_LINES))
        else:
            _print_plain(found, _with_jobs(found, names), console)
    else:
        with suppress(KeyboardInterrupt):  # how one stops watching
            (_watch_terminal if console.is_terminal else _watch_plain)(studies, names, found, console)
    return 0


def cancel(studies: Studies, target: str) -> int:
    """Ask a launcher to end its study (`target` is STUDY) or a job of it (JOB or STUDY/JOB); return the exit status."""
    status, jobs = choose(target, studies.read())
    studies.cancel(status, jobs)
    _say(Console(), f"{status.study}: to be cancelled: {', '.join(jobs)}")
    return 0


def choose(target: str, studies: Sequence[StudyStatus]) -> tuple[StudyStatus, list[str]]:
    """Return the study and those of its jobs that `target` names, and that have not ended.

    Raises UserError where that is none, or might be more than one.
    """
    running = [(status, [job.name for job in status.jobs if job.status in OPEN]) for status in _running(studies)]
    found = [(status, jobs) for status, jobs in running if status.study == target] or [
        (status, [job]) for status, jobs in running for job in jobs if target in (job, f"{status.study}/{job}")
    ]
    if len(found) == 1 and found[0][1]:
        return found[0]
    if len(found) > 1:
        places = ", ".join(f"{status.study}/{jobs[0]}" for status, jobs in found)
        if len({status.study for status, _ in found}) < len(found):
            places = " and ".join(f"{status.host}:{status.folder}" for status, _ in found)
            raise UserError(f"{target!r} is in {places}. Cancel it on its host, in the folder that holds outputs/.")
        raise UserError(f"{target!r} is the name of several jobs. Give one of: {places}")
    there = "; ".join(f"{status.study} ({_shortened(jobs)})" for status, jobs in running if jobs)
    raise UserError(f"nothing that waits or runs is called {target!r}. There is: {there or 'nothing'}.")


def _running(studies: Sequence[StudyStatus]) -> list[StudyStatus]:
    return [status for status in studies if status.state == "running"]


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _named(studies: Studies, names: Sequence[str]) -> list[StudyStatus]:
    """Return the studies of these names, or all."""
    found = studies.read()
    there = {status.study for status in found}
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"there is no study {unknown[0]!r}. There is: {', '.join(sorted(there)) or 'none'}.")
    return [status for status in found if not names or status.study in names]


def _with_jobs(found: Sequence[StudyStatus], names: Sequence[str]) -> set[str]:
    """Return the folders of the studies whose jobs are shown."""
    return {status.folder for status in found if status.state != "finished" or status.study in names}


def _draw(found: Sequence[StudyStatus], with_jobs: Collection[str], width: int, height: int) -> Group:
    """Return the studies for a terminal of `width` x `height` characters."""
    each = (height - len(found)) // max(1, len(with_jobs)) + LINES_BESIDE // 2
    parts: list[RenderableType] = []
    for status in found:
        parts.append(Text(status.headline(), style="bold"))
        if status.folder in with_jobs:
            parts.append(render(status.jobs, width, each))
    return Group(*parts)


def _print_plain(found: Sequence[StudyStatus], with_jobs: Collection[str], console: Console) -> None:
    """Print the studies as lines."""
    for status in found:
        _say(console, status.headline())
        if status.folder in with_jobs:
            for job in status.jobs:
                _say(console, f"  {describe(job)}")


def _watch_terminal(studies: Studies, names: Sequence[str], found: list[StudyStatus], console: Console) -> None:
    """Show the studies in place until none runs; those that end meanwhile stay."""
    with_jobs = _with_jobs(found, names)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_draw(found, with_jobs, *console.size), refresh=True)
            if not _running(found):
                return
            time.sleep(REFRESH_SECONDS)
            found = _named(studies, names)
            with_jobs |= _with_jobs(found, names)


def _watch_plain(studies: Studies, names: Sequence[str], found: list[StudyStatus], console: Console) -> None:
    """Print a line for what changes until no study runs."""
    views: dict[str, StudyView] = {}
    states: dict[str, str] = {}
    while True:
        for status in found:
            if status.folder not in views:
                _say(console, status.headline())
                views[status.folder] = StudyView(status.jobs, console)
            views[status.folder].states = status.jobs
            views[status.folder].update()
            if status.state != states.setdefault(status.folder, status.state):
                states[status.folder] = status.state
                _say(console, status.headline())
        if not _running(found):
            return
        time.sleep(REFRESH_SECONDS)
        found = _named(studies, names)


def _say(console: Console, message: str) -> None:
    console.print(message, highlight=False, markup=False, soft_wrap=True)
