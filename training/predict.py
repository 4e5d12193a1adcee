"""`shoal predict RUN`: the labels a finished job gives to texts, in the input's order.

One process, on the GPU if there is one. Memory is bounded however large the input is: a window of rows is read, sorted
by length, cut into batches by the job's own token budget, computed without padding as in training, and written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.batches import fill
from training.corpus.stream import Row, listed_texts, stream_file, stream_standard_input, windows
from training.errors import UserError
from training.evaluation import to_device
from training.finished import FinishedRun, load_finished, open_run
from training.fused import fuse_layers
from training.model import can_pack, use_packed_attention
from training.multi_label import labels_over_threshold, sigmoid
from training.packing import PackedClassifier
from training.prediction_files import Columns, check_output, writing
from training.progress import format_seconds
from training.quiet import quiet_libraries
from training.spec import MULTI_LABEL, SINGLE_LABEL, DataSpec, ProblemType
from training.tokens import TokenizedSplit, encode_texts

WINDOW_ROWS = 4096
WINDOW_CHARACTERS = 1 << 24
"""A window ends with the row that reaches either."""
FIRST_LINE_SECONDS, MOST_SECONDS = 5.0, 60.0
"""Until the first line of progress, and between later ones: each wait is twice the one before, up to the most."""


def predict(
    folder: Path,
    *,
    source: str | None = None,
    texts: list[str] | None = None,
    output: Path | None = None,
    probabilities: bool = False,
) -> None:
    """Predict the rows of `source` (a file, or "-" for standard input) or `texts`; write CSV or the file `output`.

    Raises UserError for a run, input or output that cannot be used. A file is checked to its end before the model is
    loaded; of standard input, what came before a fault has been written.
    """
    quiet_libraries()
    run = open_run(folder)
    path = None if source in (None, "-") else Path(str(source)).expanduser()
    if output is not None:
        check_output(output, path)
    total = len(texts) if texts is not None else None
    if path is not None and (path.is_file() or not path.exists()):  # a pipe can be read once only
        total = count_rows(stream_file(path, run.text_columns))
    rows = read_rows(path, texts, run)
    first = next(rows)
    progress = RowProgress("predicted", total)
    names = run.label_names
    with_id = first.id is not None  # the columns of the output are settled before its first row
    with naming_full_card(run):
        predictor = Predictor.load(run, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        with writing(output, run.spec.data.label_delimiter) as write:
            for window in windows(chain([first], rows), max_rows=WINDOW_ROWS, max_characters=WINDOW_CHARACTERS):
                logits = predictor.logits([row.text for row in window], progress.advance)
                write(to_columns(window, logits, names, run.problem_type, with_id=with_id, probabilities=probabilities))
    if output is not None:
        print(f"{progress.rows:,} rows predicted: {output}")


@contextmanager
def naming_full_card(run: FinishedRun) -> Iterator[None]:
    """Turn a card without enough memory into a UserError: several may have trained what one does not hold."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"the card's memory does not hold {run.spec.model.model_name_or_path} and a batch of its texts. "
            "Free the card, or predict on the CPU: CUDA_VISIBLE_DEVICES= shoal predict ..."
        ) from None


def read_rows(path: Path | None, texts: list[str] | None, run: FinishedRun) -> Iterator[Row]:
    """Return the rows to predict."""
    if texts is not None:
        return listed_texts(texts)
    if path is not None:
        return stream_file(path, run.text_columns)
    return stream_standard_input(sys.stdin.buffer, run.text_columns)


def count_rows(rows: Iterator[Row]) -> int:
    """Read all rows, so that a fault in the last one costs no computation."""
    progress = RowProgress("checked", None)
    for _ in rows:
        progress.advance(1)
    return progress.rows


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A finished job's model, ready to be asked."""

    classifier: PackedClassifier
    tokenizer: Any
    device: torch.device
    num_labels: int
    data: DataSpec
    """How texts are cut."""
    token_budget: int
    """Tokens computed at once, as in the job's own evaluation."""

    @staticmethod
    def load(run: FinishedRun, device: torch.device) -> Predictor:
        """Load base, adapter and tokenizer."""
        model, tokenizer = load_finished(run, run.spec.model, device, lambda text: print(text, file=sys.stderr))
        max_seq_length = run.spec.data.max_seq_length
        packed = can_pack(model.get_base_model().config, max_seq_length)
        if packed:
            use_packed_attention(model)
        fuse_layers(model)
        return Predictor(
            classifier=PackedClassifier(model, packed=packed).eval(),
            tokenizer=tokenizer,
            device=device,
            num_labels=len(run.label_names),
            data=run.spec.data,
            token_budget=run.spec.training.per_device_eval_batch_size * max_seq_length,
        )

    def logits(self, texts: list[str], advance: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """Return logits [texts, num_labels] in the order of the texts; `advance` is told of each batch's size."""
        return self.logits_of(self.encode(texts), advance)

    def encode(self, texts: list[str]) -> TokenizedSplit:
        """Return the tokens of texts, cut as the job's. One thread at a time: the tokenizer keeps its settings."""
        arrays = encode_texts(texts, self.tokenizer, self.data)
        return TokenizedSplit(ids=[""] * len(texts), labels=[0] * len(texts), **arrays)

    @torch.no_grad()
    def logits_of(self, split: TokenizedSplit, advance: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """Return logits [texts, num_labels] of encoded texts, in their order."""
        longest_first = sorted(range(len(split)), key=lambda index: -sum(split.lengths[index]))
        logits = torch.zeros(len(split), self.num_labels, device=self.device)
        for indices in fill(longest_first, split.lengths, self.token_budget):
            inputs, (rows,) = to_device(split, indices, self.device, np.asarray(indices))
            logits[rows] = self.classifier(*inputs)
            advance(len(indices))
        return logits.cpu().numpy()


def to_columns(
    rows: list[Row],
    logits: npt.NDArray[np.float32],
    label_names: list[str],
    problem_type: ProblemType = SINGLE_LABEL,
    *,
    with_id: bool,
    probabilities: bool,
) -> Columns:
    """Return what is written of a window: row, id if asked, prediction, its probability, and if asked those of all.

    Where texts have several labels, the prediction is a list: all whose probability is over 0.5.
    """
    is_multi = problem_type == MULTI_LABEL
    shares = sigmoid(logits) if is_multi else softmax(logits)
    columns: Columns = {"row": [row.number for row in rows]}
    if with_id:
        columns["id"] = [row.id for row in rows]
    if is_multi:
        columns["prediction"] = labels_over_threshold(logits, label_names)
    else:
        columns["prediction"] = [label_names[index] for index in logits.argmax(axis=1)]
        columns["probability"] = rounded(shares.max(axis=1))
    if probabilities:
        for index, name in enumerate(label_names):
            columns[f"probability_{name}"] = rounded(shares[:, index])
    return columns


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the probabilities of logits [texts, labels]."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def rounded(values: npt.NDArray[np.float64]) -> list[float]:
    """Return seven digits of each, which is what fp32 logits hold."""
    return [float(f"{value:.7g}") for value in values]


class RowProgress:
    """Says on standard error how far it is, now and then."""

    def __init__(self, done: str, total: int | None) -> None:
        self.done = done
        self.total = total
        self.rows = 0
        self.started = self.last_line = time.monotonic()
        self.wait = FIRST_LINE_SECONDS

    def advance(self, rows: int) -> None:
        """Note rows that are done."""
        self.rows += rows
        now = time.monotonic()
        if now - self.last_line < self.wait:
            return
        self.last_line, self.wait = now, min(2 * self.wait, MOST_SECONDS)
        rate = self.rows / (now - self.started)
        line = f"{self.done} {self.rows:,} rows  {rate:,.0f} rows/s"
        if self.total is not None:
            line = f"{self.done} {self.rows:,} of {self.total:,} rows  {rate:,.0f} rows/s"
            line += f"  ETA {format_seconds((self.total - self.rows) / rate)}"
        print(line, file=sys.stderr, flush=True)
