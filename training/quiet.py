"""Silences the libraries: their progress bars and advice say nothing of a job."""

from __future__ import annotations

import os
import warnings

import torch


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice out of the log; errors still come as exceptions."""
    import transformers

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Read when `datasets` is imported, which takes a second and is done only where the data need it.
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it has to find out itself
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
