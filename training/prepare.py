"""What is done once, before the jobs of a study start: bad input fails here, the built-in data and model are made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import AutoModelForSequenceClassification

from training.deepspeed_config import check_deepspeed_config, refuse_impossible
from training.errors import UserError
from training.loss import require_fitting
from training.model import add_adapter, require_head
from training.pretrained import TORCH_DTYPES, load_config, load_tokenizer, resolve_checkpoint
from training.readable import require_positions
from training.spec import JobSpec, ProblemType
from training.trackers import require_trackers


def prepare(
    spec: JobSpec,
    deepspeed_source: str,
    label_names: list[str],
    problem_type: ProblemType,
    report: Callable[[str], None],
) -> None:
    """Check what can be checked without a card: trackers, DeepSpeed keys, model, tokenizer, layers of the adapter.

    `spec.deepspeed` holds the content of the file that messages call `deepspeed_source`. `report` is told of what
    takes long. Raises UserError for what cannot work.
    """
    if not isinstance(spec.deepspeed, dict):
        raise UserError(f"{deepspeed_source}: give the content of the file.")
    require_trackers(spec.training.report_to)
    require_fitting(spec.training, label_names, problem_type)
    check_deepspeed_config(spec.deepspeed, deepspeed_source)
    # With dtype auto the ranks' cards decide; here no more than shapes depend on it.
    dtype = TORCH_DTYPES.get(spec.model.dtype, torch.float32)
    checkpoint = resolve_checkpoint(spec.model, report)
    refuse_impossible(spec, spec.deepspeed)
    config = load_config(spec.model, checkpoint, label_names, problem_type)
    require_positions(config, spec.data)
    load_tokenizer(spec.model, checkpoint)
    with torch.device("meta"):  # the shape alone: no weights are read
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=spec.model.trust_remote_code)
        require_head(model, spec.model, config)
        add_adapter(model, spec.lora, dtype)
