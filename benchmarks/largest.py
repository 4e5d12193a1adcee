"""The largest LLaMA that trains on 8, 12, 16 and 24 GB cards, one and two of them, by the memory forecast.

    python benchmarks/largest.py     # an hour or two; goes on where it was stopped

Texts of 512 tokens, 8 a step, LoRA r 16 on all linear layers, bf16. For each model, precision and number
of cards the launcher's planner (`launcher.choose`) takes the fastest setting that fits; the table shows the largest
model that has one, on a PC with 64 GiB of memory for it. A card sold with 12 GB is one of 11.7 GiB, as `shoal plan
--cards 12` has it (launcher.known_cards). No weights and no card are needed.
Writes largest.json, largest.md, and the table of README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.readme_part import write_part  # noqa: E402
from benchmarks.word_tokenizer import save_word_tokenizer  # noqa: E402
from launcher.cards import Node  # noqa: E402
from launcher.choose import Choice, choose  # noqa: E402
from launcher.expand import StudyJob  # noqa: E402
from launcher.forecast import ForecastProcess  # noqa: E402
from launcher.known_cards import read_cards  # noqa: E402
from launcher.settings import deepspeed_source  # noqa: E402
from training.errors import UserError  # noqa: E402
from training.forecast.memory_estimate import JobForecast  # noqa: E402
from training.spec import DataSpec, JobSpec, LoraSpec, ModelSpec, TrainingSpec  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
SIZES = (8, 12, 16, 24)
HOST_GIB = 64.0
# hidden, intermediate, layers, heads, key-value heads, vocabulary; of the checkpoints' config.json.
MODELS = {
    "1B (Llama 3.2)": (2048, 8192, 16, 32, 8, 128256),
    "3B (Llama 3.2)": (3072, 8192, 28, 24, 8, 128256),
    "8B (Llama 3.1)": (4096, 14336, 32, 32, 8, 128256),
    "13B (Llama 2)": (5120, 13824, 40, 40, 40, 32000),
    "34B (Code Llama)": (8192, 22016, 48, 64, 8, 32000),
    "70B (Llama 3.1)": (8192, 28672, 80, 64, 8, 128256),
}
LENGTH, TEXTS = 512, 8


def make_model(shape: tuple[int, ...], folder: Path) -> Path:
    """Write config.json and a tokenizer; a forecast needs no weights."""
    from transformers import LlamaConfig

    hidden, intermediate, layers, heads, key_value_heads, vocabulary = shape
    save_word_tokenizer([f"word{number}" for number in range(50)], folder)
    LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_value_heads, vocab_size=vocabulary, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_data(folder: Path) -> Path:
    """Write texts longer than a model reads."""
    text = " ".join(["word1"] * LENGTH)
    lines = [json.dumps({"text": f"{text} word{row % 40}", "label": row % 2}) for row in range(80)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "train.jsonl"


def job_of(model: Path, data: Path, quantization: str) -> StudyJob:
    """Return the job, of which everything that can be planned is."""
    spec = JobSpec(
        name="job", output_dir="job", num_ranks=1,
        model=ModelSpec(model_name_or_path=str(model), quantization=quantization, dtype="bf16"),  # type: ignore[arg-type]
        data=DataSpec(train_file=str(data), max_seq_length=LENGTH), lora=LoraSpec(r=16),
        training=TrainingSpec(per_device_train_batch_size=TEXTS, per_device_eval_batch_size=TEXTS),
    )  # fmt: skip
    content = json.loads((ROOT / "ds_configs/zero1.json").read_text(encoding="utf-8"))
    return StudyJob(written=spec, spec=replace(spec, deepspeed=content), data_content=[])


def best_setting(process: ForecastProcess, job: StudyJob, size: int, number: int, known: dict[str, Any]) -> Choice:
    """Return what the planner takes on `number` cards sold with `size` GB; `known` keeps the forecasts."""

    def ask(spec: JobSpec, source: str) -> JobForecast | UserError:
        key = json.dumps(spec.to_dict(), sort_keys=True)
        if key not in known:
            known[key] = process.forecast(spec, source)
        return known[key]

    cards = read_cards(",".join([str(size)] * number))
    nodes = {
        card.node_id: Node(node_id=card.node_id, host="pc", total_gib=HOST_GIB, host_gib=HOST_GIB, cores=16)
        for card in cards
    }
    work = process.work(job.spec, deepspeed_source(job))
    return choose(job, work, ask, cards, nodes, on_card=True, most_ranks=number)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each model, precision, card size and number of cards."""
    with tempfile.TemporaryDirectory() as folder, ForecastProcess(on_card=True) as process:
        data = make_data(Path(folder))
        for name, shape in list(MODELS.items())[: options.models]:
            for quantization in ("nf4", "none"):
                model = make_model(shape, Path(folder) / name.split()[0])
                job, known = job_of(model, data, quantization), dict[str, Any]()
                for size in options.cards:
                    for number in (1, 2):
                        choice = best_setting(process, job, size, number, known)
                        yield {
                            "model": name, "quantization": quantization, "card_gib": size, "cards": number,
                            "fits": choice.refusal is None, "setting": str(choice.setting),
                            "needs_card_gib": choice.asked.card_gib, "needs_host_gib": choice.asked.host_gib,
                        }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown table: for each card size, number and precision, the largest model and its setting."""
    lines = ["| cards | nf4 | its setting | bf16 | its setting |", "| --- | --- | --- | --- | --- |"]
    for number in (1, 2):
        for size in SIZES:
            cells = [f"{number} x {size} GB"]
            for quantization in ("nf4", "none"):
                asked = {"fits": True, "card_gib": size, "cards": number, "quantization": quantization}
                fitting = [row for row in rows if asked.items() <= row.items()]
                last = fitting[-1] if fitting else None
                cells += [last["model"], f"{last['setting']}: {memory_of(last)}"] if last else ["none", ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_of(row: dict[str, Any]) -> str:
    """Return what a rank needs."""
    each = " each" if "2 ranks" in row["setting"] else ""
    return f"{row['needs_card_gib']:.1f} GiB of its card, {row['needs_host_gib']:.0f} of the PC{each}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--cards", type=int, nargs="+", default=list(SIZES), metavar="GB", help="as they are sold")
    parser.add_argument("--models", type=int, help="only the first so many")
    options = parser.parse_args()
    rows = []
    for row in measure(options):
        rows.append(row)
        fits = "fits" if row["fits"] else "does not fit"
        print(f"{row['model']} {row['quantization']}, {row['cards']} x {row['card_gib']}: {fits}, {row['setting']}, "
              f"{row['needs_card_gib']:.2f} GiB", flush=True)  # fmt: skip
    text = table(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"date": date.today().isoformat(), "command": "python benchmarks/largest.py", "rows": rows}
    (options.output / "largest.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    head = (
        f"# The largest LLaMA by card\n\nForecast, {content['date']}: `{content['command']}`. Texts of {LENGTH} "
        f"tokens, {TEXTS} a step, LoRA r 16 on all linear layers, a PC with {HOST_GIB:.0f} GiB of memory for it.\n\n"
    )
    (options.output / "largest.md").write_text(head + text + "\n", encoding="utf-8")
    if options.output == RESULTS and options.models is None and options.cards == list(SIZES):
        write_part("largest", text + "\n", ROOT / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
