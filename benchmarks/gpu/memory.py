"""Which LLaMA trains on a card of 8, 12 or 24 GiB? Real steps under a cap on what PyTorch may take.

    python -m benchmarks.gpu.memory --output memory.jsonl --seconds 150

A model is built once a quantization and ZeRO stage, and trained with and without gradient checkpointing; for each cap
the largest batch of 1, 2, 4, 8 texts of 512 tokens is found that makes two optimizer steps. Builds come in order of
interest until the time is up; a build in the output already, or begun there twice in vain, is left out.
Exit status 75: start me again for the rest (memory of the last build is not coming back).
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.card import Card
from benchmarks.gpu.fits import Peak, largest_batches
from benchmarks.gpu.random_model import partitioner, random_classifier
from benchmarks.gpu.shapes import NUM_LABELS, SHAPES, llama_config, weight_bytes
from training.card_memory.release import release
from training.deepspeed_config import fill_auto, fit_buckets, read_deepspeed_config
from training.engine import build_optimizer, start_engine, start_process_group, trainable_parameters
from training.ranks import Ranks
from training.spec import LoraSpec, TrainingSpec

GIB = 2**30
LINEAR = F.linear
CAPS_GIB = (8, 12, 24)
BATCHES = (1, 2, 4, 8)
STEPS = 2
RESTART = 75
LEFT_OVER_BYTES = 256 * 2**20
"""Memory a build may leave behind before the process is not good for another."""
HOST_LIMIT_BYTES = 100 * GIB
"""Weights kept in host memory above this are not tried."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """One model on one card."""

    shape: str
    quantization: str
    zero: str
    """File of ds_configs/."""

    @property
    def key(self) -> dict[str, str]:
        return asdict(self)


ZERO2, ZERO3 = "zero2", "zero3_offload_param"
BUILDS = [
    Build(shape=shape, quantization=quantization, zero=zero)
    for shape, quantization, zero in [
        ("1B", "none", ZERO2), ("8B", "nf4", ZERO2), ("3B", "none", ZERO2), ("8B", "nf4", ZERO3),
        ("8B", "none", ZERO3), ("13B", "nf4", ZERO2), ("8B", "none", ZERO2), ("13B", "nf4", ZERO3),
        ("34B", "nf4", ZERO2), ("34B", "nf4", ZERO3), ("70B", "nf4", ZERO3), ("13B", "none", ZERO3),
        ("1B", "nf4", ZERO2), ("3B", "nf4", ZERO2), ("3B", "none", ZERO3), ("3B", "nf4", ZERO3),
        ("1B", "none", ZERO3), ("1B", "nf4", ZERO3), ("70B", "nf4", ZERO2), ("13B", "none", ZERO2),
        ("34B", "none", ZERO2), ("70B", "none", ZERO2), ("70B", "none", ZERO3), ("34B", "none", ZERO3),
    ]
]  # fmt: skip
WARM_UP = Build(shape="tiny", quantization="nf4", zero=ZERO3)
SMOKE = [Build(shape="tiny", quantization=q, zero=z) for q, z in (("nf4", ZERO3), ("none", ZERO2))]


class Trainer:
    """One build and its engine; made again after it ran out of memory, which leaves DeepSpeed in no state to go on."""

    def __init__(self, build: Build, card: Card) -> None:
        self.build, self.card = build, card
        self.engine: Any = None
        self.load_peak = Peak(allocated_bytes=0, reserved_bytes=0)

    def load(self, cap_bytes: int) -> bool:
        """Build under the cap; False where memory runs out."""
        self.drop()
        self.card.cap(cap_bytes)
        with suppress(torch.OutOfMemoryError):
            self.engine = self._start()
            self.load_peak = self.card.peak()
        return self.engine is not None

    def _start(self) -> Any:
        training = TrainingSpec(per_device_train_batch_size=1)
        content, source = read_deepspeed_config(f"ds_configs/{self.build.zero}.json")
        on_card, bf16 = self.card.on_card, torch.bfloat16
        config = fill_auto(content, source, training, world_size=1, dtype=bf16, cuda=on_card)
        model = random_classifier(
            llama_config(self.build.shape), LoraSpec(), self.build.quantization, bf16, self.card.device,
            partitioner(fit_buckets(config, 1)),
        )  # fmt: skip
        assert all(parameter.dtype == bf16 for parameter in trainable_parameters(model).values())
        return start_engine(model, build_optimizer(model, training, config, lambda _message: None), config)

    def run(self, batch: int, cap_bytes: int, *, gradient_checkpointing: bool, tokens: int) -> Peak | None:
        """Make two steps under the cap; None where memory runs out."""
        if self.engine is None and not self.load(cap_bytes):
            return None
        base = self.engine.module.classifier.get_base_model()
        if gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            base.gradient_checkpointing_disable()
        self.card.cap(cap_bytes)
        with suppress(torch.OutOfMemoryError):
            for _ in range(STEPS):
                self._step(batch, tokens)
            return self.card.peak()
        self.drop()  # here, where the error no longer holds the step's tensors
        return None

    def _step(self, batch: int, tokens: int) -> None:
        vocabulary = SHAPES[self.build.shape]["vocab_size"]
        ids = torch.randint(3, vocabulary, (batch * tokens,), device=self.card.device)
        logits = self.engine(ids, [tokens] * batch)
        labels = torch.arange(batch, device=self.card.device) % NUM_LABELS
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(F.cross_entropy(logits, labels), scale_wrt_gas=False)
        self.engine.step()

    def drop(self) -> None:
        """Give the memory back."""
        if self.engine is not None:
            self.engine.destroy()
            release(self.engine)
        self.engine = None
        F.linear = LINEAR  # ZeRO-3 replaces it for good, and ZeRO-2 is to be measured with torch's own
        gc.collect()
        self.card.free_host_memory()


def weights_on_card(build: Build) -> int:
    """Return the bytes of frozen weights that stay on the card whatever the batch: the least a cap must hold."""
    whole = weight_bytes(build.shape, build.quantization)
    if build.zero == ZERO2:
        return whole
    return weight_bytes(build.shape, "nf4") // 9 if build.quantization == "nf4" else 0  # nf4's scales are not offloaded


def measure(build: Build, card: Card, tokens: int) -> dict[str, Any]:
    """Return what trains under each cap, with and without gradient checkpointing."""
    caps = [gib * GIB for gib in CAPS_GIB if gib * GIB <= card.total_bytes]
    possible = [cap for cap in caps if weights_on_card(build) + card.outside_bytes < cap]
    if not possible:
        return {"not_run": f"{weights_on_card(build) / GIB:.1f} GiB of weights on the card"}
    if build.zero != ZERO2 and weight_bytes(build.shape, build.quantization) > HOST_LIMIT_BYTES:
        return {"not_run": f"{weight_bytes(build.shape, build.quantization) / GIB:.0f} GiB of weights in host memory"}
    trainer, started = Trainer(build, card), time.monotonic()
    loads = [cap for cap in possible if trainer.engine is not None or trainer.load(cap)]
    if not loads:
        return {"not_run": "out of memory while loading"}
    result: dict[str, Any] = {
        "weight_bytes": weight_bytes(build.shape, build.quantization),
        "load_peak": asdict(trainer.load_peak),
        "load_seconds": round(time.monotonic() - started, 1),
        "fits": [],
    }
    for recompute in (True, False):

        def run(batch: int, cap: int, recompute: bool = recompute) -> Peak | None:
            return trainer.run(batch, cap, gradient_checkpointing=recompute, tokens=tokens)

        for cap, fit in largest_batches(loads, BATCHES, run).items():
            entry = {"cap_gib": cap // GIB, "gradient_checkpointing": recompute, "batch": fit[0] if fit else 0}
            result["fits"].append(entry | (asdict(fit[1]) if fit else {}))
    trainer.drop()
    result["seconds"] = round(time.monotonic() - started, 1)
    return result


def is_over(build: Build, known: list[dict[str, Any]]) -> bool:
    """Whether a build has been measured, or has failed or died twice."""
    states = [line["state"] for line in known if line["build"] == build.key]
    return "done" in states or states.count("begun") >= 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a build; added to")
    parser.add_argument("--seconds", type=float, required=True, help="begin no build after this time")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes and texts")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    known = (
        [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    )
    warnings.filterwarnings("ignore", category=FutureWarning)
    card = Card(start_process_group(Ranks.from_environment()))

    def note(content: dict[str, Any]) -> None:
        print(content, flush=True)
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")

    if not arguments.smoke:  # what is loaded once, with the first model, counts towards none
        try:
            measure(WARM_UP, card, 512)
        except Exception:  # what fails here fails in the builds of its kind too, which say so one by one
            traceback.print_exc()
        card.cap(max(CAPS_GIB) * GIB)
        card.note_outside()
    for build in SMOKE if arguments.smoke else BUILDS:
        if time.monotonic() > deadline or is_over(build, known):
            continue
        note({"build": build.key, "state": "begun"})
        try:
            result = measure(build, card, 16 if arguments.smoke else 512)
        except Exception as error:  # of CUDA or a library: the process may be good for nothing now
            traceback.print_exc()
            note({"build": build.key, "state": "failed", "error": f"{type(error).__name__}: {error}"[:300]})
            return RESTART
        note({"build": build.key, "state": "done", "outside_bytes": card.outside_bytes, **result})
        if card.held_bytes() > LEFT_OVER_BYTES:
            return RESTART
    return 0


if __name__ == "__main__":
    sys.exit(main())
