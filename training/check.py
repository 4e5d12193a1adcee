"""The data check of one data section, with the tokenizer of its model where one is known."""

from __future__ import annotations

from typing import Any

from training.corpus.findings import Report
from training.corpus.quality import DataCheck, check_data
from training.spec import DataSpec, ModelSpec


def check(data: DataSpec, model: ModelSpec | None, report: Report = lambda *_: None) -> DataCheck:
    """Return what is wrong with `data`. Raises UserError for data or a tokenizer that cannot be read."""
    tokenizer: Any = None
    if model is not None:
        from training.pretrained import load_tokenizer, resolve_checkpoint
        from training.quiet import quiet_libraries

        quiet_libraries()
        report("loading the tokenizer", 0, 0)
        tokenizer = load_tokenizer(model, resolve_checkpoint(model, lambda text: report(text, 0, 0), weights=False))
    name = model.model_name_or_path if model is not None else None
    return check_data(data, tokenizer=tokenizer, tokenizer_name=name, report=report)
