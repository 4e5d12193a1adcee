"""What is made once, before the jobs of a study start: the built-in data and model. Bad data fails here too."""

from __future__ import annotations

from collections.abc import Callable

from training.corpus.load import load_corpus
from training.spec import JobSpec


def prepare(spec: JobSpec, report: Callable[[str], None]) -> None:
    """Load the job's data and make its model where it is built here; `report` is told of what takes long.

    Raises UserError where the data cannot be used.
    """
    load_corpus(spec.data)
    if spec.model.model_name_or_path == "builtin:tiny-llama":
        from training.tiny_llama import ensure_tiny_llama

        ensure_tiny_llama(report)
