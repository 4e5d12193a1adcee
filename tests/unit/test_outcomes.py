"""What Ray says of a task or rank, told apart: it answered, it died, or its PC could not run it."""

from __future__ import annotations

import platform
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from launcher.cluster import Cluster

TRACEBACK = "Traceback (most recent call last):\n  File ...\n"


def outcome(answer: Any) -> dict[str, Any]:
    """Return what the cluster makes of an answer, or of an error, that Ray has for a reference."""

    def get(ref: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    cluster = Cluster.__new__(Cluster)
    cluster.ray = SimpleNamespace(get=get, exceptions=exceptions)
    return cluster.outcome("a reference")


def test_an_answer_is_the_outcome_or_its_result() -> None:
    assert outcome({"ok": False, "error": "no good"}) == {"ok": False, "error": "no good"}
    assert outcome({"rank0.log": "the end"}) == {"ok": True, "result": {"rank0.log": "the end"}}


def raised(cause: Exception) -> exceptions.RayTaskError:
    """Return Ray's words for what was raised in a call."""
    return exceptions.RayTaskError("run", f"{TRACEBACK}{type(cause).__name__}: {cause}", cause)


@pytest.mark.parametrize(
    "error",
    [
        exceptions.ActorDiedError(),
        exceptions.WorkerCrashedError(),
        exceptions.RaySystemError("the raylet was killed"),
        # A rank whose rank 0 was killed before it said where it listens.
        raised(exceptions.ActorDiedError()),
    ],
)
def test_a_rank_that_was_killed_has_died(error: Exception) -> None:
    answer = outcome(error)
    assert answer["died"] and not answer["ok"] and not answer["is_user_error"]
    assert answer["error"].startswith("its process died") and "ray::" not in answer["error"]


@pytest.mark.parametrize(
    "error",
    [
        raised(TypeError("unexpected keyword 'num_tries'")),
        raised(exceptions.RaySystemError(ImportError(), f"{TRACEBACK}ModuleNotFoundError: unexpected")),
        exceptions.ActorDiedError(raised(TypeError("unexpected argument of __init__"))),
        exceptions.RayError("unexpected"),
    ],
)
def test_a_pc_with_another_version_of_shoal_is_no_death(error: Exception) -> None:
    answer = outcome(error)
    assert not answer["ok"] and not answer.get("died") and not answer["is_user_error"]
    assert "unexpected" in answer["error"] and "install the head's" in answer["error"]


def test_a_class_or_function_is_made_rays_once() -> None:
    """Ray keeps each it makes for good: the launcher of a long study would grow."""
    from launcher.cluster import _actor_class, _remote_function

    assert _actor_class(SimpleNamespace) is _actor_class(SimpleNamespace)
    assert _remote_function(outcome, 1) is _remote_function(outcome, 1) is not _remote_function(outcome, 0)


ARENAS = """
import ctypes, sys, threading
from launcher.connecting import _share_one_arena
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if sys.argv[1:]: _share_one_arena()
held, all_there = [], threading.Barrier(4)
def work():
    held.append(libc.malloc(64 << 10) >> 26)
    all_there.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
print(len(set(held)))
"""
"""Prints in how many arenas (of 64 MiB each) four threads that live at once have their memory."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_one_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)

    def arenas(*arguments: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", ARENAS, *arguments]))

    assert arenas() == 4  # each its own
    assert arenas("shared") < 3  # of 64 MiB, at whose border the one may lie
