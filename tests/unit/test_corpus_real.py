"""Real data sets: CSV, JSONL, gzip, Chinese, twenty classes, a class with a single row; and docstrings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from training.corpus import docstrings
from training.corpus.corpus import Corpus
from training.corpus.load import load_corpus
from training.errors import UserError
from training.spec import DataSpec


def spec_of(shared: Path, name: str, **settings: int) -> DataSpec:
    """Return the data section that names a set's files."""
    files = {path.name.partition(".")[0] + "_file": str(path) for path in (shared / "data" / name).glob("*.*")}
    if "train_file" not in files:
        pytest.skip(f"../shared/data/{name} is not there")
    return DataSpec(**files, **settings)  # type: ignore[arg-type]


def assert_sound(corpus: Corpus) -> None:
    """Check what holds for any corpus: whole rows, each used once, every class in train."""
    splits = [split for split in (corpus.train, corpus.validation, corpus.test) if split is not None]
    for split in splits:
        assert len(split.ids) == len(split.texts) == len(split.labels) > 0
        assert all(text.strip() for text in split.texts)
    ids = [row for split in splits for row in split.ids]
    assert len(set(ids)) == len(ids)
    assert set(corpus.train.labels) == set(range(len(corpus.label_names)))


@pytest.mark.parametrize(
    ("name", "train", "test", "overlap", "num_classes"),
    [
        ("ag_news", 37_434, 7_600, None, 4),
        ("imdb", 25_000, 25_000, 123, 2),
        ("newsgroups20", 11_314, 7_532, None, 20),
        ("trec6", 5_452, 500, 10, 6),  # exact texts; an eleventh differs in case or spaces
        ("sst2", 6_920, 1_821, None, 2),
        ("toutiao_zh", 5_000, 999, 35, 15),
    ],
)
def test_no_row_of_a_real_set_is_lost(
    shared: Path, name: str, train: int, test: int, overlap: int | None, num_classes: int
) -> None:
    data = spec_of(shared, name)
    corpus = load_corpus(data)
    assert_sound(corpus)
    rows = corpus.facts["num_rows"]
    set_aside = 0 if data.validation_file else rows["validation"]
    assert (rows["train"] + set_aside, rows["test"]) == (train, test)
    assert len(corpus.label_names) == num_classes
    assert overlap is None or corpus.facts["num_texts_in_train_and_test"] == overlap
    from_split = "validation" if data.validation_file else "train"
    assert {row.partition(":")[0] for row in corpus.validation.ids} == {from_split}


@pytest.mark.parametrize("name", ["trec6", "newsgroups20"])
def test_validation_has_the_shares_of_train(shared: Path, name: str) -> None:
    corpus = load_corpus(spec_of(shared, name))
    counts = Counter(corpus.validation.labels)
    for label, count in Counter(corpus.train.labels).items():
        assert abs(counts[label] - (count + counts[label]) * 0.1) <= 1


def test_a_class_with_a_single_row_stays_in_train(shared: Path) -> None:
    given = spec_of(shared, "toutiao_zh")
    corpus = load_corpus(DataSpec(train_file=given.train_file, test_file=given.test_file))
    assert_sound(corpus)
    counts = corpus.facts["rows_per_class"]["train"]
    rare = min(counts, key=counts.get)
    assert (counts[rare], corpus.facts["rows_per_class"]["validation"][rare]) == (1, 0)


def test_parts_of_a_real_set_are_the_same_each_time(shared: Path) -> None:
    data = spec_of(shared, "trec6", max_train_samples=120, max_validation_samples=60, max_test_samples=50)
    corpus = load_corpus(data)
    assert_sound(corpus)
    assert corpus.facts["num_rows"] == {"train": 120, "validation": 60, "test": 50}
    assert load_corpus(data) == corpus
    other = load_corpus(spec_of(shared, "trec6", max_train_samples=120, split_seed=1))
    assert other.train.ids != corpus.train.ids


@pytest.fixture
def two_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `builtin:docstrings` read two small packages only, into a cache of the test's own."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(docstrings, "PACKAGES", {"pydantic": "pydantic", "hypothesis": "hypothesis"})


@pytest.mark.usefixtures("two_packages")
def test_docstrings_are_a_corpus_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataSpec(dataset_name=docstrings.DOCSTRINGS)
    corpus = load_corpus(data)
    assert_sound(corpus)
    assert corpus.label_names == ["hypothesis", "pydantic"]
    assert corpus.facts["num_texts_in_train_and_test"] == 0
    assert corpus.facts["validation"] == "as given"

    def make_again(*_: object) -> None:
        raise AssertionError("the corpus was made a second time")

    monkeypatch.setattr(docstrings, "write_corpus", make_again)
    assert load_corpus(data) == corpus


@pytest.mark.usefixtures("two_packages")
def test_docstrings_need_two_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings, "PACKAGES", {"pydantic": "pydantic", "nowhere": "not_an_installed_package"})
    with pytest.raises(UserError, match=r"two of the packages.*installed: pydantic.*Install"):
        load_corpus(DataSpec(dataset_name=docstrings.DOCSTRINGS))
