"""The built-in corpus: what it takes from a package, and that its splits share nothing."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from training.corpus.docstrings import MAX_CHARACTERS, MAX_ROWS, write_corpus

LONG = "This sentence of a docstring is a good deal longer than the sixty characters asked for, number {}."


def read(folder: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def write_package(folder: Path, modules: dict[str, str]) -> Path:
    for name, source in modules.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


def all_texts(folder: Path) -> list[str]:
    return [row["text"] for split in MAX_ROWS for row in read(folder, split)]


def make(tmp_path: Path, **packages: dict[str, str]) -> Path:
    written = {name: write_package(tmp_path / name, modules) for name, modules in packages.items()}
    write_corpus(tmp_path / "corpus", written)
    return tmp_path / "corpus"


def test_modules_classes_and_functions_are_read_wherever_they_stand(tmp_path: Path) -> None:
    source = f'''"""{LONG.format("module")}"""
raise RuntimeError("a module is never imported")
if True:
    class A:
        """{LONG.format("class")}"""
        async def f(self):
            """{LONG.format("method")}"""
            def inner():
                """{LONG.format("inner")}"""
try:
    def g():
        """Too short."""
except ImportError:
    def g():
        """{LONG.format("fallback")}"""
'''
    texts = all_texts(make(tmp_path, a={"m.py": source}))
    assert sorted(texts) == sorted(LONG.format(word) for word in ("module", "class", "method", "inner", "fallback"))


def test_test_modules_and_broken_ones_are_left_out(tmp_path: Path) -> None:
    modules = {
        "good.py": f'"""{LONG.format(1)}"""',
        "tests/m.py": f'"""{LONG.format(2)}"""',
        "sub/test_m.py": f'"""{LONG.format(3)}"""',
        "broken.py": f'"""{LONG.format(4)}"""\nclass {{{{ name }}}}: pass',
    }
    assert all_texts(make(tmp_path, a=modules)) == [LONG.format(1)]


def test_package_names_are_masked(tmp_path: Path) -> None:
    text = (
        "Converts NumPy arrays (np.ndarray) for scikit-learn, sklearn.svm, PyTorch, torch_x and Hugging Face, an array."
    )
    (masked,) = all_texts(make(tmp_path, a={"m.py": f'"""{text}"""'}))
    for name in ("numpy", "np.", "scikit", "sklearn", "pytorch", "hugging"):
        assert name not in masked.lower()
    assert "ndarray" in masked and "an array" in masked


def test_long_texts_are_cut(tmp_path: Path) -> None:
    (text,) = all_texts(make(tmp_path, a={"m.py": f'"""{"word " * 500}"""'}))
    assert len(text) == MAX_CHARACTERS


def test_a_text_stands_once_over_all_packages_and_splits(tmp_path: Path) -> None:
    modules = {f"m{number}.py": f'"""{LONG.format("same")}"""' for number in range(30)}
    shouted = {f"m{number}.py": f'"""{LONG.format("SAME").upper()}"""' for number in range(30)}
    assert len(all_texts(make(tmp_path, a=modules, b=shouted))) == 1


def test_all_texts_of_a_module_stand_in_one_split(tmp_path: Path) -> None:
    modules = {
        f"m{number}.py": "\n".join(f'def f{i}():\n    """{LONG.format(f"{number}/{i}.")}"""' for i in range(5))
        for number in range(60)
    }
    folder = make(tmp_path, a=modules)
    splits_of: dict[str, set[str]] = {}
    for split in MAX_ROWS:
        for row in read(folder, split):
            module = row["text"].partition("number ")[2].partition("/")[0]
            splits_of.setdefault(module, set()).add(split)
    assert len(splits_of) == 60
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert set.union(*splits_of.values()) == set(MAX_ROWS)


def test_the_tokenizer_reads_train_modules_only_and_is_not_capped(tmp_path: Path) -> None:
    modules = {
        f"m{number}.py": "\n".join(f'def f{i}():\n    """{LONG.format(f"{number}/{i}")}"""' for i in range(50))
        for number in range(40)
    }
    folder = make(tmp_path, a=modules)
    learnt = {row["text"] for row in read(folder, "tokenizer")}
    train = {row["text"] for row in read(folder, "train")}
    assert len(train) == MAX_ROWS["train"] < len(learnt)
    assert train < learnt
    for split in ("validation", "test"):
        assert not learnt & {row["text"] for row in read(folder, split)}


def test_real_packages_give_the_same_corpus_twice(tmp_path: Path) -> None:
    packages = {}
    for name, part in (("numpy", "lib"), ("deepspeed", "runtime")):  # parts, to take a second
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"{name} is not installed")
        packages[name] = Path(spec.submodule_search_locations[0]) / part
    for run in ("first", "second"):
        write_corpus(tmp_path / run, packages)
    rows = {split: read(tmp_path / "first", split) for split in MAX_ROWS}
    assert rows == {split: read(tmp_path / "second", split) for split in MAX_ROWS}
    for split, most in MAX_ROWS.items():
        for name in packages:
            assert 0 < sum(row["label"] == name for row in rows[split]) <= most
    texts = [row["text"] for split in rows.values() for row in split]
    assert len({" ".join(text.split()).lower() for text in texts}) == len(texts)
    assert not any("numpy" in text.lower().split() or "deepspeed" in text.lower().split() for text in texts)
