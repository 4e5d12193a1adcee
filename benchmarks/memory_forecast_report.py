"""The files memory_forecast.py writes: all jobs as JSON, the errors as tables, forecast against measured as a plot."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.accuracy import hardware
from training.forecast.memory_estimate import SAFETY_MARGIN

BOUNDS = {"median": 0.02, "95th percentile": 0.05}
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "accelerate")
PEERS = ("DeepSpeed estimate_zero*", "accelerate estimate-memory")

Row = dict[str, Any]


def error_of(row: Row) -> float:
    """Return by which share the forecast is above what was measured."""
    return float(row["forecast"]["bytes"] / row["measured"]["bytes"] - 1)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1))]


def write_results(rows: list[Row], folder: Path) -> int:
    """Write the results; return 1 where a job failed or a bound is missed."""
    rows = sorted(rows, key=lambda row: int(row["job"]["name"].removeprefix("job")))
    good = [row for row in rows if "error" not in row]
    content = {
        "date": str(date.today()),
        "hardware": hardware(),
        "versions": {name: version(name) for name in PACKAGES},
        "rows": rows,
    }
    (folder / "memory_forecast.json").write_text(json.dumps(content), encoding="utf-8")
    text, holds = render(good, rows, content)
    (folder / "memory_forecast.md").write_text(text, encoding="utf-8")
    plot(good, folder / "memory_forecast.png")
    print(text)
    return 0 if holds and len(good) == len(rows) else 1


def render(good: list[Row], rows: list[Row], content: Row) -> tuple[str, bool]:
    """Return memory_forecast.md, and whether all bounds hold."""
    errors = [error_of(row) for row in good]
    sizes = [abs(error) for error in errors]
    under = sum(error < -SAFETY_MARGIN for error in errors)
    found = {"median": statistics.median(sizes), "95th percentile": percentile(sizes, 0.95)}
    lines = [f"| {name} of the error | {found[name]:.2%} | at most {BOUNDS[name]:.0%} |" for name in BOUNDS]
    lines.append(f"| largest error | {max(sizes):.2%} | |")
    lines.append(f"| forecasts more than {SAFETY_MARGIN:.0%} too low | {under} of {len(good)} | none |")
    holds = under == 0 and all(found[name] <= BOUNDS[name] for name in BOUNDS)
    peers = []
    for peer in PEERS:
        ratios = [row["peers"][peer] / row["measured"]["bytes"] for row in good if row["peers"].get(peer)]
        if ratios:
            low, middle, high = (percentile(ratios, share) for share in (0.05, 0.5, 0.95))
            peers.append(f"| {peer} | {len(ratios)} | {middle:.2f} x | {low:.2f} to {high:.2f} x |")
    ours = [1 + error for error in errors]
    peers.append(
        f"| Shoal | {len(ours)} | {percentile(ours, 0.5):.3f} x | {percentile(ours, 0.05):.3f} to "
        f"{percentile(ours, 0.95):.3f} x |"
    )
    failed = [f"- {row['job']['name']}: {row['error'].splitlines()[-1]}" for row in rows if "error" in row]
    worst = sorted(good, key=lambda row: -abs(error_of(row)))[:10]
    tail = [
        f"| {row['job']['name']} | {error_of(row):+.2%} | {row['measured']['bytes'] / 2**20:,.1f} | {settings(row)} |"
        for row in worst
    ]
    seconds = statistics.median(row["forecast_seconds"] for row in good)
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    text = f"""# Memory forecast against what jobs took

{len(good)} random jobs of two steps on the CPU, {min(r["measured"]["bytes"] for r in good) / 2**20:.0f} to
{max(r["measured"]["bytes"] for r in good) / 2**20:,.0f} MiB: the most bytes of tensors alive in the first rank,
forecast from config.json, settings and lengths of the texts, and counted by PyTorch's allocator while the job ran.

| | found | to reach |
| --- | --- | --- |
{chr(10).join(lines)}

![forecast against measured](memory_forecast.png)

## By kind of job

{groups(good)}

## Beside it, forecast over measured

| | jobs | median | 5th to 95th percentile |
| --- | --- | --- | --- |
{chr(10).join(peers)}

Theirs count weights, gradients and optimizer states of a model that is trained in full, which is all they know of.

## The ten largest errors

| job | error | measured MiB | settings |
| --- | --- | --- | --- |
{chr(10).join(tail)}

## How

- Command: `python benchmarks/memory_forecast.py`; a forecast took {seconds:.1f} s in the median
- The checkpoint that is written beside the next step counts as not yet gone or gone, whichever: the job waits for it
- Collective calls are waited for at once, and a moment longer: gloo's threads hold a buffer of their own for each, and
  which of the rank's tensors it is alive beside would be luck. On cards NCCL has no such buffers
- Run {content["date"]} on {content["hardware"]}
- Versions: {versions}
"""
    return text + ("\n## Failed\n\n" + "\n".join(failed) + "\n" if failed else ""), holds


def settings(row: Row) -> str:
    """Return a job's settings in short."""
    job = row["job"]
    parts = [
        job["quantization"] if job["quantization"] != "none" else "", job["dtype"], f"ZeRO-{job['stage']}",
        f"offload {job['offload']}" if job["offload"] != "none" else "",
        f"{job['num_ranks']} rank" + "s" * (job["num_ranks"] > 1),
        "recomputing" if job["checkpointing"] else "", f"batch {job['batch_size']} x {job['accumulation']}",
        f"{job['max_seq_length']} tokens",
    ]  # fmt: skip
    return ", ".join(part for part in parts if part)


def groups(rows: list[Row]) -> str:
    """Return the errors by each setting."""
    kinds: dict[str, Callable[[Row], Any]] = {
        "quantization": lambda row: row["job"]["quantization"],
        "type": lambda row: row["job"]["dtype"],
        "ZeRO stage": lambda row: row["job"]["stage"],
        "offload": lambda row: row["job"]["offload"],
        "ranks": lambda row: row["job"]["num_ranks"],
        "recomputing": lambda row: "yes" if row["job"]["checkpointing"] else "no",
        "size": lambda row: "below 64 MiB" if row["measured"]["bytes"] < 64 * 2**20 else "64 MiB and more",
    }
    lines = ["| | | jobs | median error | 95th percentile | lowest | highest |", "| --- " * 7 + "|"]
    for name, of in kinds.items():
        for value in sorted({str(of(row)) for row in rows}):
            errors = [error_of(row) for row in rows if str(of(row)) == value]
            sizes = [abs(error) for error in errors]
            lines.append(
                f"| {name} | {value} | {len(errors)} | {statistics.median(sizes):.2%} | {percentile(sizes, 0.95):.2%} "
                f"| {min(errors):+.2%} | {max(errors):+.2%} |"
            )
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draw forecast against measured, both axes logarithmic, and the errors below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 8), sharex=True, gridspec_kw={"height_ratios": [3, 1]}, layout="constrained"
    )
    measured = [row["measured"]["bytes"] / 2**20 for row in rows]
    sides = {"Shoal": [row["forecast"]["bytes"] / 2**20 for row in rows]}
    for peer in PEERS:
        sides[peer] = [(row["peers"].get(peer) or float("nan")) / 2**20 for row in rows]
    for (name, values), marker in zip(sides.items(), "o^s", strict=True):
        above.scatter(measured, values, s=14, marker=marker, alpha=0.6, label=name)
    ends = [min(measured), max(measured)]
    above.plot(ends, ends, color="black", linewidth=0.8)
    above.set(xscale="log", yscale="log", ylabel="forecast MiB", title="Memory forecast against measured")
    above.legend()
    below.scatter(measured, [100 * error_of(row) for row in rows], s=10, alpha=0.6)
    for bound in (-3, 5):
        below.axhline(bound, color="grey", linewidth=0.8, linestyle="--")
    below.set(xlabel="measured MiB", ylabel="Shoal's error, %")
    figure.savefig(path, dpi=110)
    plt.close(figure)
