"""What a first card must show before anything is measured on it, in the order of doubt; a line of JSON as each ends.

    python -m benchmarks.gpu.checks --output checks.jsonl --seconds 120

Jobs are training/main.py's on a random model of two layers. On a CPU they run too (`--smoke`), without a card to name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
from small_material import write_corpus, write_tiny_model  # noqa: E402

ATTENTION = """
import json, torch
from training.varlen import Heads, varlen_obstacle
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
obstacle = varlen_obstacle(device, torch.bfloat16, Heads(queries=4, keys=2, size=64))
print(json.dumps({"torch": torch.__version__, "device": str(device), "varlen": obstacle is None, "since": obstacle}))
"""


class Workplace:
    """A folder with a tiny model and texts, and jobs on them."""

    def __init__(self, folder: Path, *, on_card: bool) -> None:
        self.folder, self.on_card = folder, on_card
        write_tiny_model(folder / "model")
        write_corpus(folder / "train.jsonl", 96, seed=1)
        write_corpus(folder / "test.jsonl", 30, seed=2)

    def start(self, name: str, *flags: str, visible: str | None = None) -> subprocess.Popen[bytes]:
        """Start a job under zero2, on the card of this number or UUID."""
        words = [
            sys.executable, str(ROOT / "training" / "main.py"), f"--model_name_or_path={self.folder / 'model'}",
            f"--train_file={self.folder / 'train.jsonl'}", f"--test_file={self.folder / 'test.jsonl'}",
            f"--bf16={'true' if self.on_card else 'false'}", "--learning_rate=1e-2", "--max_seq_length=32",
            "--deepspeed=ds_configs/zero2.json", f"--output_dir={self.folder / name}", *flags,
        ]  # fmt: skip
        environment = {**os.environ, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def end(self, name: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Wait for a job; return how it ended, with its log's end where it failed."""
        status = process.wait()
        log = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return {"status": status, **({"log": log[-1500:]} if status else {})}


def card_uuid() -> str:
    """Return NVML's name of the first card."""
    import pynvml

    pynvml.nvmlInit()
    return str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))


def attention(_: Workplace) -> dict[str, Any]:
    """Whether this torch's varlen kernel works on the card, and passes the trainer's own probe."""
    run = subprocess.run([sys.executable, "-c", ATTENTION], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        return {"ok": False, "log": run.stderr[-1500:]}
    found = json.loads(run.stdout.splitlines()[-1])
    return {"ok": found["varlen"] or found["device"] == "cpu", **found}


def two_jobs_on_a_card(place: Workplace) -> dict[str, Any]:
    """One job that sees the card by its number and one by its UUID, at once: two processes on it."""
    names = {"number": "0", "uuid": card_uuid()} if place.on_card else {"number": ""}
    running = {name: place.start(name, "--num_train_epochs=1", visible=visible) for name, visible in names.items()}
    ends = {name: place.end(name, process) for name, process in running.items()}
    return {"ok": all(end["status"] == 0 for end in ends.values()), "jobs": ends}


CHECKS: dict[str, Callable[[Workplace], dict[str, Any]]] = {
    "attention": attention,
    "two jobs on a card, by number and by UUID": two_jobs_on_a_card,
}


@contextmanager
def workplace(*, on_card: bool) -> Iterator[Workplace]:
    """Have a workplace within this context."""
    with tempfile.TemporaryDirectory() as folder:
        yield Workplace(Path(folder), on_card=on_card)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, one a check; added to")
    parser.add_argument("--seconds", type=float, required=True, help="begin no check after this time")
    parser.add_argument("--smoke", action="store_true", help="on the CPU")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    with workplace(on_card=not arguments.smoke) as place, arguments.output.open("a", encoding="utf-8") as output:
        for name, check in CHECKS.items():
            if time.monotonic() > deadline:
                break
            start = time.monotonic()
            try:
                found = check(place)
            except Exception as error:  # one check takes none of the others along
                traceback.print_exc()
                found = {"ok": False, "log": f"{type(error).__name__}: {error}"[:300]}
            line = {"check": name, **found, "seconds": round(time.monotonic() - start, 1)}
            print(json.dumps(line), file=output, flush=True)
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
