"""Checkpoints are written beside the training, one at a time, and a failed write is not lost in a thread."""

from __future__ import annotations

import threading

import pytest

from training.checkpoint_writer import CheckpointWriter


def fail() -> None:
    raise OSError("no space left on device")


def test_the_caller_goes_on_while_a_write_is_under_way() -> None:
    release, written = threading.Event(), []

    def write() -> None:
        release.wait()
        written.append(threading.current_thread())

    with CheckpointWriter() as writer:
        writer.submit(write)
        assert written == []
        release.set()
    assert len(written) == 1 and written[0] is not threading.current_thread()


def test_writes_keep_their_order_and_never_overlap() -> None:
    under_way, order = threading.Lock(), []

    def write(number: int) -> None:
        assert under_way.acquire(blocking=False)
        order.append(number)
        under_way.release()

    with CheckpointWriter() as writer:
        for number in range(20):
            writer.submit(lambda number=number: write(number))  # type: ignore[misc]
    assert order == list(range(20))


def test_a_failed_write_is_raised_at_the_next_or_at_the_end() -> None:
    with CheckpointWriter() as writer:
        writer.submit(fail)
        with pytest.raises(OSError, match="no space"):
            writer.submit(lambda: None)
    with pytest.raises(OSError, match="no space"), CheckpointWriter() as writer:
        writer.submit(fail)


def test_an_error_of_the_training_says_more_than_one_of_the_disk() -> None:
    with pytest.raises(ValueError, match="diverged"), CheckpointWriter() as writer:
        writer.submit(fail)
        raise ValueError("diverged")
