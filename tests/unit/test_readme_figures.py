"""Figures of the README's table are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = CHECKOUT / "benchmarks" / "results"


def results(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def readme_says(beginning: str, figures: str) -> None:
    """Assert that the one row that begins so has these figures."""
    [row] = [line for line in (CHECKOUT / "README.md").read_text().splitlines() if line.startswith(f"| {beginning}")]
    assert row.split(" | ")[1] == figures


def ratios(file: str, model: str, peer: str, data_sets: tuple[str, ...], zero: str = "plain") -> list[str]:
    """Return Shoal's speed over a peer's, with a decimal, in the order of the data sets."""
    found = {
        row["data_set"]: row["ratio"]
        for row in results(file)["comparisons"]
        if (row["model"], row["peer"], row["zero"]) == (model, peer, zero)
    }
    return [f"{found[name]:.1f}" for name in data_sets]


def test_speed() -> None:
    sets = ("ag_news", "imdb", "newsgroups20")
    for beginning, model, peers in (
        ("training steps on two CPU cores", "llama-12m", ["hf-usual"]),
        ("... against the same tuned", "llama-12m", ["hf-tuned"]),
        ("... against ms-swift", "llama-12m", ["ms-swift"]),
        ("... a random LLaMA of 100 M", "random-100m", ["hf-usual", "hf-tuned"]),
    ):
        rows = [", ".join(ratios("speed.json", model, peer, sets)) for peer in peers]
        readme_says(beginning, "; ".join(f"{row} x" for row in rows))


def test_speed_without_amx() -> None:
    def of(peer: str, sets: tuple[str, ...]) -> str:
        zeros = ("zero2", "zero3_offload")
        both = [ratios("speed_avx512/speed.json", "random-100m", peer, sets, z) for z in zeros]
        return ", ".join(" and ".join(pair) for pair in zip(*both, strict=True))

    usual, tuned = of("hf-usual", ("ag_news", "imdb", "newsgroups20")), of("hf-tuned", ("imdb", "newsgroups20"))
    readme_says("... the same LLaMA on a CPU without AMX", f"{usual} x; {tuned} x")


def test_chaos() -> None:
    content = results("chaos.json")
    useful = 100 * content["strikes"]["useful"]
    readme_says("two jobs of which a rank", f"{useful:.0f} %; the same to the byte")
    short = content["short"]
    assert not content["strikes"]["wrong"]
    readme_says("200 short jobs", f"{short['succeeded']}; {short['seconds_a_job']:.1f}; {short['growth']:.2f} x")


def test_long_texts() -> None:
    accuracy = {(cell["data"], cell["long_text"]): cell["accuracy"] for cell in results("long_text.json")["cells"]}
    sets = ("newsgroups20", "imdb")
    gains = [f"{100 * accuracy[name, 'chunk']:.1f} against {100 * accuracy[name, 'head']:.1f} %" for name in sets]
    readme_says("long texts read in chunks", "; ".join(gains))
    readme_says("... their last 128 tokens", "; ".join(f"{100 * accuracy[name, 'tail']:.1f} %" for name in sets))
