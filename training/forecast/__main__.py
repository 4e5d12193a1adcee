"""Answers the launcher: forecasts of jobs, in a process of its own, since a forecast changes the libraries it runs on.

    python -m training.forecast < requests > answers        # one JSON a line

A request is {"spec": JobSpec.to_dict(), "deepspeed_source": what messages call its DeepSpeed settings, "on_card": bool,
"capability": the card's compute capability, such as [8, 6], or null, "memory": bool}; an answer {"ok": True, "work":
Work as a dict, "dtype": bf16, fp16 or fp32, "estimate": MemoryEstimate as a dict, where "memory"} or {"ok": False,
"error": text}, with "crashed" where it is not the job's fault. Data and
tokenizer are read, for the lengths of the texts, and config.json; no weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.batches import LENGTH_MULTIPLE, Lengths, steps_per_epoch
from training.cache import cached
from training.deepspeed_config import check_deepspeed_config, fill_auto, refuse_impossible
from training.errors import UserError
from training.forecast.estimate import forecast, in_fork, shape_of
from training.forecast.memory_estimate import Work
from training.parse import build
from training.precision import AMPERE, Capability, auto_precision
from training.spec import DataSpec, JobSpec, ModelSpec


def main() -> int:
    """Answer until the requests end."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # a fake card takes a real one's place
    import torch

    from training.quiet import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)  # no pool of threads that a fork would leave behind
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            spec = build(JobSpec, request["spec"], "request")
            source, on_card, memory = (request[key] for key in ("deepspeed_source", "on_card", "memory"))
            capability = tuple(request.get("capability") or ()) or None
            known = estimate(spec, source, on_card=on_card, memory=memory, capability=capability)
            answer: dict[str, Any] = {"ok": True, **known}
        except UserError as error:
            answer = {"ok": False, "error": str(error)}
        except Exception as error:  # of this job alone; the next may be well
            traceback.print_exc()
            answer = {"ok": False, "crashed": True, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def estimate(
    spec: JobSpec, deepspeed_source: str, *, on_card: bool, memory: bool, capability: Capability | None = None
) -> dict[str, Any]:
    """Return "work", what a job computes on the data and the model it names, its "dtype", and "estimate", the `memory`
    it needs. `spec.deepspeed` is the content of what messages call `deepspeed_source`. Raises UserError for what the
    trainer refuses. A card whose `capability` is not known counts as one of the Ampere generation."""

    from training.pretrained import TORCH_DTYPES, load_config, resolve_checkpoint
    from training.readable import require_positions, vocabulary_size

    assert isinstance(spec.deepspeed, dict)
    check_deepspeed_config(spec.deepspeed, deepspeed_source)
    refuse_impossible(spec, spec.deepspeed)
    checkpoint = resolve_checkpoint(spec.model, lambda _: None, weights=False)
    data, model = (json.dumps(spec.to_dict()[name], sort_keys=True) for name in ("data", "model"))
    model_config = load_config(spec.model, checkpoint, _corpus(data).label_names)
    require_positions(model_config, spec.data)
    config = model_config.to_dict()
    config.pop("_name_or_path", None)  # the same model elsewhere needs no forecast of its own
    lengths = _lengths(data, model, checkpoint, vocabulary_size(model_config))
    evaluated = [length for name, split in lengths.items() if name != "train" for length in split]
    in_bf16 = spec.deepspeed.get("bf16", {}).get("enabled")
    dtype: str
    if spec.model.dtype != "auto":
        dtype = spec.model.dtype
    elif isinstance(in_bf16, bool):  # the file knows the cards, or its ranks refuse it
        dtype = "bf16" if in_bf16 else "fp32"
    else:
        dtype = auto_precision((capability or AMPERE) if on_card else None)
    work = work_of(spec, base_figures(json.dumps(config, sort_keys=True)), lengths, dtype)
    answer: dict[str, Any] = {"work": asdict(work), "dtype": dtype}
    if memory:
        # As it will be filled when it runs, for the messages: the forecast itself knows no file's name.
        torch_dtype = TORCH_DTYPES[dtype]
        fill_auto(
            spec.deepspeed, deepspeed_source, spec.training, world_size=spec.num_ranks, dtype=torch_dtype, cuda=on_card
        )
        shape = shape_of(spec, lengths["train"], evaluated, spec.num_ranks)
        needs = forecast(
            spec, config, shape, dtype=dtype, world_size=spec.num_ranks, on_card=on_card, capability=capability
        )
        answer["estimate"] = asdict(needs)
    return answer


def work_of(spec: JobSpec, base: Mapping[str, int], lengths: Mapping[str, Lengths], dtype: str) -> Work:
    """Return the work of a job on texts of these many tokens; `lengths` holds train, validation and maybe test, `base`
    is of base_figures."""
    tokens = {name: sum(map(sum, split)) for name, split in lengths.items()}
    pairs = {name: pairs_of(split) for name, split in lengths.items()}
    training = spec.training
    global_batch_size = training.per_device_train_batch_size * training.gradient_accumulation_steps * spec.num_ranks
    an_epoch = steps_per_epoch(len(lengths["train"]), global_batch_size)
    steps = training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * an_epoch)
    evaluations = 1 + math.ceil(steps / an_epoch)  # the first is of the untrained model
    evaluations += steps // training.eval_steps if training.eval_steps else 0
    # The best weights are evaluated once more, and then test.
    evaluated = [(evaluations + 1) * of["validation"] + of.get("test", 0) for of in (tokens, pairs)]
    return Work(
        parameters=base["parameters"],
        layers=base["layers"],
        tokens=round(tokens["train"] * steps / an_epoch),
        evaluated_tokens=evaluated[0],
        steps=steps,
        dtype=dtype,
        hidden=base["hidden"],
        weights=base["weights"],
        trained=spec.lora.r * base["activations"],
        activations=base["activations"],
        pairs=round(pairs["train"] * steps / an_epoch),
        evaluated_pairs=evaluated[1],
        evaluations=evaluations,
    )


def pairs_of(lengths: Lengths) -> int:
    """Return the pairs of positions that attention works on; texts are filled up as training.batches folds them."""
    padded = (length + -length % LENGTH_MULTIPLE for chunks in lengths for length in chunks)
    return sum(length * length for length in padded)


@functools.lru_cache(maxsize=16)
def base_figures(config: str) -> dict[str, int]:
    """Return what of a model its time depends on, by the names of Work: "parameters" (without its embeddings),
    "layers", "hidden", "weights" and "activations". `config` is its config.json."""
    key = hashlib.sha256(f"{version('transformers')} {config}".encode()).hexdigest()[:32]

    def make(target: Path) -> None:
        target.write_text(json.dumps(in_fork(_figures, config)), encoding="utf-8")

    return dict(json.loads(cached(f"figures/{key}", make).read_text(encoding="utf-8")))


def _figures(config: str) -> dict[str, int]:
    import torch
    from transformers import AutoConfig, AutoModel

    model_config = AutoConfig.for_model(**json.loads(config))
    with torch.device("meta"):
        model = AutoModel.from_config(model_config)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    weights = sum(int(parameter.numel()) for parameter in model.parameters())
    return {
        "parameters": weights - int(model.get_input_embeddings().weight.numel()),
        "layers": int(model_config.num_hidden_layers),
        "hidden": int(model_config.hidden_size),
        "weights": weights,
        "activations": sum(module.in_features + module.out_features for module in linear),
    }


@functools.lru_cache(maxsize=4)
def _lengths(data: str, model: str, checkpoint: str, vocabulary: int) -> dict[str, Lengths]:
    """Return the tokens of each chunk of each text of each split; DataSpec and ModelSpec come as JSON."""
    from training.pretrained import load_tokenizer
    from training.readable import require_vocabulary
    from training.tokens import tokenize_split

    corpus = _corpus(data)
    model_spec = build(ModelSpec, json.loads(model), "request")
    tokenizer = load_tokenizer(model_spec, checkpoint)
    data_spec = build(DataSpec, json.loads(data), "request")
    splits = {
        name: tokenize_split(split, tokenizer, data_spec)
        for name, split in (("train", corpus.train), ("validation", corpus.validation), ("test", corpus.test))
        if split is not None
    }
    require_vocabulary(vocabulary, model_spec, splits)
    return {name: split.lengths for name, split in splits.items()}


@functools.lru_cache(maxsize=4)
def _corpus(data: str) -> Any:
    """Return the corpus of a DataSpec given as JSON."""
    from training.corpus.load import load_corpus

    return load_corpus(build(DataSpec, json.loads(data), "request"))


if __name__ == "__main__":
    sys.exit(main())
