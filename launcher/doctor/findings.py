"""What the doctor finds: a fact, how grave it is, and the mend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "ok"]
LEVELS: tuple[Level, ...] = ("error", "warning", "ok")
"""The gravest first."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at, e.g. "token"."""
    node: str
    """Where: a PC as the cluster file names it, or this machine's host name."""
    level: Level
    """error: a study fails, a PC stays out or others get in. warning: it runs, slower or soon no more. ok: as it should
    be."""
    fact: str
    fix: str = ""
    """What to do; of a finding that is ok, nothing."""


def ok(check: str, node: str, fact: str) -> Finding:
    """Return a finding of something that is as it should be."""
    return Finding(check=check, node=node, level="ok", fact=fact)


def warning(check: str, node: str, fact: str, fix: str) -> Finding:
    """Return a finding of something that studies survive."""
    return Finding(check=check, node=node, level="warning", fact=fact, fix=fix)


def error(check: str, node: str, fact: str, fix: str) -> Finding:
    """Return a finding of something that studies do not survive."""
    return Finding(check=check, node=node, level="error", fact=fact, fix=fix)
