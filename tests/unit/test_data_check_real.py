"""What is known of the real sets beside the checkout is found in them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from training.corpus.findings import Finding
from training.corpus.quality import DataCheck, check_data
from training.spec import DataSpec


@cache
def checked(folder: Path) -> DataCheck:
    files = {path.name.partition(".")[0] + "_file": str(path) for path in folder.glob("*.*")}
    if "train_file" not in files:
        pytest.skip(f"../shared/data/{folder.name} is not there")
    return check_data(DataSpec(**files))  # type: ignore[arg-type]


def finding(result: DataCheck, code: str, split: str, other_split: str | None = None) -> Finding:
    (found,) = [
        item for item in result.findings if (item.code, item.split, item.other_split) == (code, split, other_split)
    ]
    return found


def test_trec6_has_a_small_class_and_eleven_texts_in_both_splits(shared: Path) -> None:
    result = checked(shared / "data" / "trec6")
    assert result.splits["train"]["rows_per_class"]["ABBR"] == 86
    assert "ABBR 86" in finding(result, "imbalance", "train").message
    assert finding(result, "overlap", "test", "train").count == 11
    (overlap,) = result.overlaps
    assert (overlap["exact"], overlap["identical"]) == (11, 10)
    assert finding(result, "conflicting_labels", "test").examples[0]["text"] == "What are the twin cities ?"


def test_toutiao_has_a_class_of_one_row_and_35_test_texts_in_train(shared: Path) -> None:
    result = checked(shared / "data" / "toutiao_zh")
    assert finding(result, "rare_class", "train").message.endswith("stock 1")
    assert {"stock": 1}.items() <= result.splits["train"]["rows_per_class"].items()
    overlap = next(item for item in result.overlaps if (item["split"], item["other_split"]) == ("test", "train"))
    assert (overlap["distinct"], overlap["identical"]) == (35, 38)
    assert finding(result, "near_overlap", "test", "train").count == 1


def test_sst2_holds_utf8_read_as_latin1(shared: Path) -> None:
    result = checked(shared / "data" / "sst2")
    assert "Ã©" in finding(result, "mojibake", "train").examples[0]["text"]
    assert set(result.splits) == {"train", "validation", "test"}
    assert result.num("error") == 0
