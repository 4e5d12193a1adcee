"""What forecasts of a study's jobs were answered before, in its folder: a launcher that starts again has no wait."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.expand import but_for_the_seed
from training.disk import append_line
from training.forecast.memory_estimate import code_hash

Answer = dict[str, Any]


class KnownAnswers:
    """Answers by their questions, kept in a file; one that was damaged or not written is asked for again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.answers: dict[str, Answer] = {}
        with suppress(OSError):
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    known = json.loads(line)
                    if known["answer"]["ok"]:
                        self.answers[known["key"]] = dict(known["answer"])

    def get(self, key: str) -> Answer | None:
        """Return what a question was answered before, if it was."""
        return self.answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        self.answers[key] = answer
        with suppress(OSError):  # a full disk: the question can be asked again
            append_line(self.file, json.dumps({"key": key, "answer": answer}))


def key_of(question: dict[str, Any], data_content: Sequence[str]) -> str:
    """Return a hash of all that the answer depends on: the question, the local data and model, this PC and this code.

    `data_content` is StudyJob's.
    """
    spec = but_for_the_seed(question["spec"])
    about = [
        {**question, "spec": spec}, list(data_content), _files_of(spec["model"]["model_name_or_path"]),
        platform.node(), code_hash(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _files_of(model: str) -> list[tuple[str, int, int]]:
    """Return name, bytes and time (ns) of each file of a local model, configuration and tokenizer among them; none of
    one that is built in or the hub's."""
    found = []
    for path in sorted(Path(model).rglob("*")):
        with suppress(OSError):  # a link that leads nowhere
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return found
