"""chaos.json as Markdown."""

from __future__ import annotations

from collections import Counter
from typing import Any

MIB = 1 << 20


def markdown(content: dict[str, Any]) -> str:
    """Return chaos.md."""
    parts = [f"# A study that is struck, and many short jobs\n\nAll bounds met: {_yes(content['all_met'])}.\n"]
    if "strikes" in content:
        parts.append(_strikes(content["strikes"]))
    if "short" in content:
        parts.append(_short(content["short"]))
    return "\n".join(parts)


def _strikes(found: dict[str, Any]) -> str:
    kinds = Counter(found["strikes"])
    number = max(1, len(found["strikes"]))
    verdict = "adapters and predictions are those of the undisturbed study, byte by byte"
    if found["wrong"]:
        verdict = "LOST: " + "; ".join(found["wrong"])
    rows = {
        "undisturbed": f"{found['undisturbed_seconds'] / 60:.1f} min",
        "struck": f"{found['struck_seconds'] / 60:.1f} min",
        "useful share of the jobs' time (asked for: 90 %)": f"{found['useful']:.1%}",
        "of the study's, which ends with the job that was struck most": f"{found['useful_of_study']:.1%}",
        "strikes": ", ".join(f"{kind} {count}" for kind, count in kinds.items()),
        "steps made again, a strike (of those reported)": f"{found['redone_steps'] / number:.1f}",
        "time lost, a strike": f"{(found['struck_seconds'] - found['undisturbed_seconds']) / number:.0f} s",
        "restarts of jobs since the launcher was struck last": str(found["restarts"]),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"## Struck every {found['every_seconds']:.0f} s\n\n"
        f"Two jobs of {found['steps']} steps on two virtual cards: {verdict}.\n\n"
        f"| | |\n|---|---|\n{table}\n\n{_about(found)}\n"
    )


def _short(found: dict[str, Any]) -> str:
    memory = dict(map(tuple, found["launcher_bytes"]))
    shown = [done for place, done in enumerate(memory) if place % max(1, len(memory) // 10) == 0]
    table = "\n".join(f"| {done} | {memory[done] / MIB:.0f} |" for done in shown)
    return (
        f"## {found['jobs']} short jobs on four virtual cards\n\n"
        f"{found['succeeded']} of {found['jobs']} succeeded, in {found['seconds'] / 60:.1f} min: "
        f"{found['seconds_a_job']:.1f} s a job, of which a job trains {found['training_seconds_a_job']:.1f} s on its "
        f"card beside up to three others. The launcher's memory grew by a factor of {found['growth']:.2f} from a fifth "
        "of the jobs to all (asked for: at most 1.10).\n\n"
        f"| jobs done | launcher, MiB |\n|---|---|\n{table}\n\n{_about(found)}\n"
    )


def _about(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"`python benchmarks/chaos.py`, {found['date']}, {found['hardware']}; {versions}"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
