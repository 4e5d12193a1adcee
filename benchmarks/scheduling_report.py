"""Writes what benchmarks/scheduling.py found: scheduling.json, .md, and the Gantt chart of one study as .png."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = {"shoal": "Shoal", "fcfs": "first come, first served, whole cards"}


def write(output: Path, content: dict[str, Any], gantt: Mapping[str, Sequence[Any]]) -> None:
    """Write the three files; `gantt` is scheduler -> the runs of the first cluster's first study."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "scheduling.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (output / "scheduling.md").write_text(_markdown(content), encoding="utf-8")
    _draw(output / "scheduling.png", gantt)


def _markdown(content: dict[str, Any]) -> str:
    lines = [
        "# Scheduling: simulated studies with the launcher's own scheduler",
        "",
        "| cluster | draw | scheduler | makespan, hours | over the lower bound | times over-booked | ms a job |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in content["rows"]:
        for name, figures in row["schedulers"].items():
            ours = "**" if name == "shoal" else ""
            hours = figures["makespan_seconds"] / 3600
            lines.append(
                f"| {row['cluster']['name']} | {row['seed']} | {NAMES[name]} | {hours:.2f} | "
                f"{ours}{figures['over_bound']:.3f} x{ours} | {figures['over_booked']} | "
                f"{figures['milliseconds_a_job']:.2f} |"
            )
    met = "All met." if content["all_met"] else "Not all met."
    lines += [
        "",
        f"To reach: at most 1.10 x the lower bound, nothing over-booked, at most 2 ms a job. {met}",
        "",
        "The lower bound is the larger of the longest job and the volume (GiB x seconds) over the GiB there are, of",
        "all jobs and of those that only the larger cards can hold. Over-booking is counted from the record of the",
        "runs, not by the scheduler. What a job really takes differs from what was expected (log-normal, 0.2). Of the",
        "10,000 jobs the longest is the bound.",
        "",
        f"{content['date']}, Python {content['python']}, {content['machine']}: `{content['command']}`.",
        "",
    ]
    return "\n".join(lines)


def _draw(path: Path, gantt: Mapping[str, Sequence[Any]]) -> None:
    """Draw who held how much of which card and when: a lane a card, as high as its memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(gantt), 1, figsize=(12, 5 * len(gantt)), sharex=True, squeeze=False)
    colours = pyplot.get_cmap("tab20").colors
    for axis, (name, runs) in zip(axes[:, 0], gantt.items(), strict=True):
        cards = sorted({card for run in runs for card in run.placement.cards}, key=lambda card: (card.size, card.key))
        base = 0.0
        bases = {}
        for card in cards:
            bases[card.key] = base
            base += card.size + 1
        held: dict[Any, list[tuple[float, float, float]]] = {card.key: [] for card in cards}
        for number, run in enumerate(sorted(runs, key=lambda run: run.begin)):
            for card in run.placement.cards:
                height = run.placement.request.card_gib
                now = held[card.key] = [item for item in held[card.key] if item[2] > run.begin]
                low = _lowest(now, height)
                now.append((low, height, run.end))
                axis.broken_barh(
                    [(run.begin / 3600, (run.end - run.begin) / 3600)], (bases[card.key] + low, height),
                    facecolor=colours[number % len(colours)], edgecolor="white", linewidth=0.2,
                )  # fmt: skip
        axis.set_yticks([bases[card.key] + card.size / 2 for card in cards], [f"{card.size:.0f} GiB" for card in cards])
        axis.set_ylim(-1, base)
        axis.set_title(f"{NAMES[name]}: the last of {len(runs)} jobs ends after "
                       f"{max(run.end for run in runs) / 3600:.1f} hours")  # fmt: skip
        axis.set_xlabel("hours")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _lowest(held: Sequence[tuple[float, float, float]], height: float) -> float:
    """Return the lowest place in a card's lane where a job of this height overlaps no other; 0 where there is none."""
    lows = [0.0, *(low + high for low, high, _ in held)]
    for low in sorted(lows):
        if all(low + height <= other + 1e-9 or low >= other + high - 1e-9 for other, high, _ in held):
            return low
    return 0.0
