"""`builtin:docstrings`: a corpus every machine has. Which installed package is this docstring from?

Docstrings of modules, classes and functions, read by `ast` (nothing is imported), over 60 characters, cut to 600.
Package names are masked, texts that occur twice are dropped, and a hash of the module's path decides its split, so
that no module and no text stands in two splits.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from training.cache import cached
from training.corpus.corpus import Table
from training.corpus.files import read_file
from training.errors import UserError
from training.spec import DOCSTRINGS

FORMAT = 2
"""Raise it when what is cached changes."""

PACKAGES = {
    "transformers": "transformers", "torch": "torch", "ray": "ray", "scikit-learn": "sklearn", "scipy": "scipy",
    "pandas": "pandas", "deepspeed": "deepspeed", "numpy": "numpy",
}  # fmt: skip
"""Distribution, which is also the class name -> import name."""
MAX_MODULES = 750
"""Modules read a package, drawn by their hash: enough for MAX_ROWS of the large ones, and seconds saved."""
MAX_ROWS = {"train": 800, "validation": 100, "test": 200}
"""Rows a class."""
MIN_CHARACTERS = 60
MAX_CHARACTERS = 600
MASK = "library"
"""Stands where a package was named."""

_NAMES = re.compile(
    r"\b(hugging[ _-]?face|transformers?|py[ _-]?torch|torch(?:vision|audio|text|script)?|ray(?:\.io)?|anyscale|rllib|"
    r"scikit[ _-]?learn|sklearn|scikit|scipy|sp|pandas|pd|deep[ _-]?speed|numpy|np|hf)(?![a-z0-9])",
    re.IGNORECASE,
)


def docstring_tables() -> dict[str, Table]:
    """Return train, validation and test, columns `text` and `label`. Raises UserError without two of the packages."""
    folder = _ensure_cached()
    return {split: read_file(folder / f"{split}.jsonl") for split in MAX_ROWS}


def train_texts() -> list[str]:
    """Return all docstrings of the train modules, masked, however many a class; none of validation or test."""
    return [str(text) for text in read_file(_ensure_cached() / "tokenizer.jsonl").column("text")]


def docstrings_key() -> str:
    """Return a key that changes with the installed packages and with how the corpus is made."""
    names = [f"{name}=={importlib.metadata.version(name)}" for name in _installed()]
    return hashlib.sha256(json.dumps([FORMAT, *names]).encode()).hexdigest()[:16]


def _ensure_cached() -> Path:
    """Return the folder with one JSONL file a split, made on first use."""
    return cached(f"docstrings/{docstrings_key()}", lambda folder: write_corpus(folder, _installed()))


def _installed() -> dict[str, Path]:
    """Return the folder of each package that is installed, by class name."""
    folders = {}
    for name, module in PACKAGES.items():
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations:
            folders[name] = Path(spec.submodule_search_locations[0])
    if len(folders) < 2:
        raise UserError(
            f"{DOCSTRINGS} needs two of the packages {', '.join(PACKAGES)}; installed: {', '.join(folders) or 'none'}. "
            "Install Shoal with its dependencies (pip install -e .)."
        )
    return folders


def write_corpus(folder: Path, packages: dict[str, Path]) -> None:
    """Write train, validation, test and tokenizer (what the tiny LLaMA's learns) as JSONL files into a new folder.

    `packages`: class name -> folder of the package's modules.
    """
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in (*MAX_ROWS, "tokenizer")}
    seen: set[str] = set()
    for label, package in packages.items():
        for split, texts in _texts_by_split(package, seen).items():
            ordered = sorted(texts, key=_hash)
            rows[split] += [{"text": text, "label": label} for text in ordered[: MAX_ROWS[split]]]
            if split == "train":
                rows["tokenizer"] += [{"text": text, "label": label} for text in ordered]
    folder.mkdir(parents=True)
    for split, records in rows.items():
        records.sort(key=lambda record: _hash(record["text"]))
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _texts_by_split(package: Path, seen: set[str]) -> dict[str, list[str]]:
    """Return a package's masked docstrings; `seen` holds the normalized texts of the packages before it."""
    texts: dict[str, list[str]] = {split: [] for split in MAX_ROWS}
    for path in _modules(package):
        split = _split_of(path.relative_to(package.parent).as_posix())
        for text in _docstrings(path):
            masked = _NAMES.sub(MASK, text[:MAX_CHARACTERS])
            normalized = " ".join(masked.split()).lower()
            if normalized not in seen:
                seen.add(normalized)
                texts[split].append(masked)
    return texts


def _modules(package: Path) -> list[Path]:
    """Return modules of the package in a fixed order, tests and bundled third parties left out."""
    left_out = re.compile(r"(tests?|testing|conftest|_?vendor(ed)?|thirdparty_files|.*_tests?|test_.*)")
    modules = {
        path.relative_to(package.parent).as_posix(): path
        for path in package.rglob("*.py")
        if not any(left_out.fullmatch(part) for part in path.relative_to(package).with_suffix("").parts)
    }
    return [modules[name] for name in sorted(modules, key=_hash)[:MAX_MODULES]]


def _split_of(module: str) -> str:
    """Return the split all docstrings of a module belong to: 70 % train, 10 % validation, 20 % test."""
    draw = int(_hash(module)[:8], 16) % 10
    return "train" if draw < 7 else "validation" if draw < 8 else "test"


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the cleaned docstrings of a module that are long enough."""
    try:
        source = path.read_text(encoding="utf-8")
        if '"""' not in source and "'''" not in source:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # templates and the like
        return
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
            if len(text) > MIN_CHARACTERS:
                yield text
            waiting += node.body
        elif isinstance(node, (ast.If, ast.Try, ast.ExceptHandler, ast.With)):  # definitions stand under these too
            waiting += ast.iter_child_nodes(node)


def _hash(text: str) -> str:
    """Return a hash that is the same on every machine."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
