"""The cache: made once, by one process at a time, and made again where it is no longer whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.cache import cached


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))


class Maker:
    """Makes a folder of two files and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "inner").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "inner" / "weights").write_text("1234")


def test_an_entry_is_made_once() -> None:
    make = Maker()
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: cached("kind/key", make), range(8)))
    assert len(paths) == 1 and make.calls == 1
    assert (paths.pop() / "inner" / "weights").read_text() == "1234"


@pytest.mark.parametrize("damage", ["deleted", "cut off", "left empty", "older Shoal"])
def test_an_entry_that_is_not_whole_is_made_again(damage: str) -> None:
    make = Maker()
    folder = cached("kind/key", make)
    if damage == "deleted":
        (folder / "config.json").unlink()
    elif damage == "cut off":
        (folder / "inner" / "weights").write_text("12")
    elif damage == "left empty":
        (folder / "config.json").write_text("")
    else:
        folder.with_name("key.sizes.json").unlink()
    assert cached("kind/key", make) == folder
    assert make.calls == 2 and (folder / "config.json").read_text() == "{}"


def test_a_failed_making_leaves_nothing_behind() -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached("kind/file", fail)

    def make(path: Path) -> None:
        path.write_text("whole")

    assert cached("kind/file", make).read_text() == "whole"
