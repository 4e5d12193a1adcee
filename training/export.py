"""`shoal export RUN --format vllm`: base and LoRA weights as vLLM serves classifiers with adapters.

    base/      the job's base with the trained head: an ordinary `...ForSequenceClassification` checkpoint
    adapter/   the LoRA weights alone

vLLM makes a classifier of any causal model whose checkpoint is called `...ForSequenceClassification` and holds its
head as one linear layer `score` without bias (https://docs.vllm.ai/en/stable/models/pooling_models/classify/;
`as_seq_cls_model` in https://docs.vllm.ai/en/v0.15.0/api/vllm/model_executor/models/adapters/). A base without `score`
does not load: "weights were not initialized from checkpoint". Of an adapter it takes LoRA matrices. A head within
(`modules_to_save`), as PEFT saves every classifier's, was refused, "vLLM only supports modules_to_save being None",
until https://github.com/vllm-project/vllm/pull/53555 of August 2026. So the head goes into the base, which suits both.
DoRA is refused by both, and --max-lora-rank has steps (https://docs.vllm.ai/en/v0.14.0/api/vllm/config/lora/).

vLLM serves what `shoal merge` writes too, with less work a text. This layout is for a base that vLLM quantizes while it
loads it (`--quantization bitsandbytes`): merged, the adapter would be rounded with it. Where vLLM takes heads in
adapters, the jobs' own adapter/ folders go with base/ too, and jobs of the same classes share it.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from training.adapter import compare_logits, padded_logits
from training.errors import UserError
from training.finished import WEIGHTS, FinishedRun, load_finished, open_run
from training.long_text import what_is_read
from training.merge import (
    CPU,
    MAX_TOKENS,
    NUM_TEXTS,
    fixed_texts,
    new_folder,
    refuse_quantized,
    require_room,
    say,
    writing_folder,
)
from training.quiet import quiet_libraries
from training.spec import DataSpec
from training.tokens import TokenizedSplit

BASE, ADAPTER = "base", "adapter"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""


def export_for_vllm(folder: Path, output: Path) -> None:
    """Write base and LoRA weights of a run to `output`, which must not exist, and say how vLLM is started with them.

    What is written is reloaded with transformers and PEFT, not with vLLM, and must give the job's logits. Raises
    UserError for a run that vLLM would refuse or a folder that cannot be used, VerificationError for other logits.
    """
    quiet_libraries()
    run = open_run(folder)
    output = new_folder(output)
    rank = served_rank(run)
    unquantized = replace(run.spec.model, quantization="none")
    model, tokenizer = load_finished(run, unquantized, CPU, say)
    refuse_quantized(model, unquantized)
    require_room(model, output.parent)
    texts = fixed_texts(tokenizer, model.config.vocab_size, min(MAX_TOKENS, run.spec.data.max_seq_length))
    expected = padded_logits(model, texts, NUM_TEXTS, CPU, NUM_TEXTS)
    with writing_folder(output) as temporary:
        model.unload().save_pretrained(str(temporary / BASE))
        tokenizer.save_pretrained(str(temporary / BASE))
        del model
        write_lora(run, temporary / ADAPTER)
        say("verifying")
        reloaded = _reload(temporary, run, texts)
        verified = compare_logits(reloaded, expected, run.dtype, saved="export", original="base and adapter")
    print_how_to_serve(run, output, rank, verified)


def served_rank(run: FinishedRun) -> int:
    """Return the --max-lora-rank an adapter needs. Raises UserError where vLLM takes none such."""
    lora = run.spec.lora
    if lora.use_dora:
        raise UserError("vLLM takes no DoRA adapter. Write one ordinary model instead: shoal merge.")
    if lora.r > RANKS[-1]:
        raise UserError(
            f"vLLM takes adapters up to rank {RANKS[-1]}, and lora.r is {lora.r}. Write one ordinary model instead: "
            "shoal merge."
        )
    return next(rank for rank in RANKS if rank >= lora.r)


def write_lora(run: FinishedRun, folder: Path) -> None:
    """Write an adapter without its head."""
    weights = load_file(run.adapter / WEIGHTS)
    folder.mkdir()
    lora = {name: value for name, value in weights.items() if ".lora_" in name}
    save_file(lora, folder / WEIGHTS, metadata={"format": "pt"})
    config = PeftConfig.from_pretrained(str(run.adapter))
    config.modules_to_save = None
    config.task_type = None  # SEQ_CLS means a head of its own, to PEFT
    config.base_model_name_or_path = f"../{BASE}"
    config.save_pretrained(str(folder))


def _reload(folder: Path, run: FinishedRun, texts: TokenizedSplit) -> npt.NDArray[np.float32]:
    """Return logits [texts, labels] of what was written."""
    base: Any = AutoModelForSequenceClassification.from_pretrained(
        str(folder / BASE), dtype=run.dtype, trust_remote_code=run.spec.model.trust_remote_code
    )
    model = PeftModel.from_pretrained(base, str(folder / ADAPTER), autocast_adapter_dtype=False).eval()
    return padded_logits(model, texts, NUM_TEXTS, CPU, NUM_TEXTS)


def print_how_to_serve(run: FinishedRun, output: Path, rank: int, verified: dict[str, Any]) -> None:
    """Say where it lies, how far its logits are off, and the commands that serve and ask it."""
    name = run.spec.name
    command = [
        "vllm", "serve", str(output / BASE), "--runner", "pooling", "--convert", "classify", "--enable-lora",
        "--max-lora-rank", str(rank), "--lora-modules", f"{name}={output / ADAPTER}",
    ]  # fmt: skip
    asked = f'{{"model": "{name}", "input": "A text."}}'
    print(f"exported    {output} (verified by reloading with transformers and PEFT; vLLM itself has not been run)")
    print(f"difference  {verified['max_logit_difference']:.3g} at most of a logit of base and adapter")
    print(f"serve       {shlex.join(command)}")
    print(f"ask         curl -s localhost:8000/classify -H 'content-type: application/json' -d {shlex.quote(asked)}")
    print(
        f"note        read of a long text in training: {what_is_read(run.spec.data)}; vLLM refuses longer ones or cuts "
        f"their beginning, so {_what_to_ask(run.spec.data)}"
    )
    if run.spec.model.quantization != "none":
        print(
            f"note        the job trained on a base in {run.spec.model.quantization}; base/ holds it in "
            f"{str(run.dtype).removeprefix('torch.')}, so its logits differ from the job's by the quantization"
        )
    sys.stdout.flush()


def _what_to_ask(data: DataSpec) -> str:
    """Return what to do with a long text so that vLLM reads of it what the job read."""
    if data.long_text == "chunk":
        return "ask for each chunk and average the logits, or use `shoal predict` or `shoal serve`"
    return "cut their end before you ask" if data.long_text == "head" else "cut them so before you ask"
