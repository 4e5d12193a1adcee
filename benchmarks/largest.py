"""The largest LLaMA that trains on one and on two cards of 8, 12, 16 and 24 GiB, by forecast.

    python benchmarks/largest.py                # a quarter of an hour on one core; writes results/largest.md and README
    python benchmarks/largest.py --only 1B 8B --output outputs/largest

For each model and number of cards the settings are tried from the fastest to the thriftiest (weights as they are,
nf4, recomputed activations, ZeRO-3 over the cards, weights streamed from host memory); a card gets the first that fits
it. Texts of 512 tokens, one at a time (more of them are added up), LoRA r 16 on all linear layers. No weights and no
card are needed: it is `shoal plan` on config.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["DS_ACCELERATOR"] = "cpu"

from training.forecast.estimate import MemoryEstimate, forecast, shape_of  # noqa: E402
from training.spec import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec  # noqa: E402

GIB = 2**30
CARDS = (8, 12, 16, 24)
DISPLAY = 0.5
"""GiB of a card that a desktop, a browser and the driver are left."""
START, END = "<!-- largest -->", "<!-- /largest -->"


def llama(vocab: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """Return a config.json."""
    return {
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_labels": 4,
        "pad_token_id": 0,
    }  # fmt: skip


MODELS = {
    "1B": llama(128256, 2048, 8192, 16, 32, 8),
    "3B": llama(128256, 3072, 8192, 28, 24, 8),
    "8B": llama(128256, 4096, 14336, 32, 32, 8),
    "13B": llama(32000, 5120, 13824, 40, 40, 40),
    "70B": llama(128256, 8192, 28672, 80, 64, 8),
}
"""Shapes of Llama 3.2 1B and 3B, 3.1 8B, 2 13B, 3.1 70B, smallest first."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to train."""

    name: str
    quantization: str = "none"
    checkpointing: bool = False
    deepspeed: str = "ds_configs/zero1.json"


OFFLOAD = "ds_configs/zero3_offload_param.json"
SETTINGS = (
    Setting(name="bf16"),
    Setting(name="bf16, recomputing", checkpointing=True),
    Setting(name="nf4", quantization="nf4"),
    Setting(name="nf4, recomputing", quantization="nf4", checkpointing=True),
    Setting(name="bf16, ZeRO-3, recomputing", checkpointing=True, deepspeed="ds_configs/zero3.json"),
    Setting(name="nf4, ZeRO-3, recomputing", quantization="nf4", checkpointing=True, deepspeed="ds_configs/zero3.json"),
    Setting(name="bf16, weights from host memory, recomputing", checkpointing=True, deepspeed=OFFLOAD),
    Setting(
        name="nf4, weights from host memory, recomputing", quantization="nf4", checkpointing=True, deepspeed=OFFLOAD
    ),
)
"""From the fastest to the thriftiest."""


def estimate(model: str, setting: Setting, num_cards: int) -> MemoryEstimate:
    """Return what a rank needs."""
    spec = JobSpec(
        data=DataSpec(train_file="texts.csv", max_seq_length=512),
        model=ModelSpec(model_name_or_path=model, quantization=setting.quantization),  # type: ignore[arg-type]
        lora=LoraSpec(),
        training=TrainingSpec(
            per_device_train_batch_size=1, per_device_eval_batch_size=1, gradient_accumulation_steps=8,
            gradient_checkpointing=setting.checkpointing,
        ),
        deepspeed=setting.deepspeed,
        num_ranks=num_cards,
    )  # fmt: skip
    shape = shape_of(spec, None, None, num_cards)
    return forecast(spec, MODELS[model], shape, dtype="bf16", world_size=num_cards, on_card=True)


def all_rows(models: list[str]) -> list[dict[str, Any]]:
    """Return model, number of cards, setting and forecast of all that may be the answer for some card."""
    rows = []
    for model in models:
        for num_cards in (1, 2):
            for setting in SETTINGS:
                if num_cards == 1 and "ZeRO-3," in setting.name:
                    continue  # with nobody to share with it saves nothing
                found = estimate(model, setting, num_cards)
                rows.append(
                    {
                        "model": model, "num_cards": num_cards, "setting": setting.name,
                        "card_bytes": found.card_bytes, "host_bytes": found.host_bytes * num_cards,
                        "card": found.card,
                    }
                )  # fmt: skip
                print(
                    f"{model}, {num_cards} x, {setting.name}: {found.card_bytes / GIB:.1f} GiB a card, "
                    f"{found.host_bytes * num_cards / GIB:.1f} GiB host",
                    flush=True,
                )
                if found.card_bytes <= (CARDS[0] - DISPLAY) * GIB:
                    break  # what is slower is nobody's answer
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return, for each card, the largest model that fits and its fastest setting."""
    lines = ["| cards | largest LLaMA | setting | GiB a card | GiB host |", "|---|---|---|---|---|"]
    for size in CARDS:
        for num_cards in (1, 2):
            fitting = [
                row for row in rows if row["num_cards"] == num_cards and row["card_bytes"] <= (size - DISPLAY) * GIB
            ]
            if not fitting:
                lines.append(f"| {num_cards} x {size} GiB | none | | | |")
                continue
            largest = max(fitting, key=lambda row: list(MODELS).index(row["model"]))["model"]
            row = next(row for row in fitting if row["model"] == largest)
            lines.append(
                f"| {num_cards} x {size} GiB | {largest} | {row['setting']} | {row['card_bytes'] / GIB:.1f} "
                f"| {row['host_bytes'] / GIB:.1f} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(MODELS), default=list(MODELS), help="these models")
    parser.add_argument("--output", type=Path, help="folder of the results (default: benchmarks/results, and README)")
    arguments = parser.parse_args()
    folder = arguments.output or ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    rows = all_rows(arguments.only)
    text = table(rows)
    every = [
        f"| {row['model']} | {row['num_cards']} | {row['setting']} | {row['card_bytes'] / GIB:.1f} "
        f"| {row['host_bytes'] / GIB:.1f} |"
        for row in rows
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "deepspeed"))
    page = [
        "# The largest LLaMA by card", "", text, "", "## All forecasts", "",
        "| model | cards | setting | GiB a card | GiB host |", "|---|---|---|---|---|", *every, "",
        "- Command: `python benchmarks/largest.py`: forecasts, no card was there",
        f"- A card keeps {DISPLAY} GiB for the display; host memory is that of all ranks on one PC",
        f"- Run {date.today()}; {versions}", "",
    ]  # fmt: skip
    (folder / "largest.md").write_text("\n".join(page), encoding="utf-8")
    (folder / "largest.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if arguments.output is None:
        readme = ROOT / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(START)
        readme.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
