"""What was measured on a GPU, as Markdown."""

from __future__ import annotations

from typing import Any

GIB = 2**30

Results = dict[str, Any]


def markdown(results: Results) -> str:
    """Return results.md."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    parts = [f"# Shoal on {results['card']}"]
    sections = {"checks": checks_section, "tests": tests_section, "speed": speed_section, "memory": memory_section}
    parts += [write(results[name], results["card"]) for name, write in sections.items() if name in results]
    facts = f"- Command: `{results['command']}`\n- Run {results['date']} on {results['hardware']}\n- {versions}"
    return "\n\n".join([*parts, facts]) + "\n"


def ending(part: Results) -> str:
    """Say how a part ended and how long it took."""
    return f"{part['ending'].capitalize()} after {part['seconds']:.0f} of at most {part['limit_seconds']:.0f} s."


def checks_section(part: Results, _card: str) -> str:
    """Return the checks in their order, and how each ended."""
    rows = [
        f"| {check['check']} | {'well' if check['ok'] else 'FAILED'} | {check['seconds']:.0f} |"
        for check in part["checks"]
    ]
    return "\n\n".join(["## Checks", ending(part), "\n".join(["| check | ended | s |", "|---|---|---|", *rows])])


def tests_section(part: Results, _card: str) -> str:
    """Return the GPU tests and how each ended."""
    lines = ["## Tests", ending(part)]
    rows = [f"| {name} | {outcome} |" for name, outcome in part["tests"].items()]
    return "\n\n".join([*lines, "\n".join(["| test | outcome |", "|---|---|", *rows])])


def speed_section(part: Results, _card: str) -> str:
    """Return the speeds of each side, and each as a multiple of the two peers."""
    head = [
        "| model | texts | side | tokens/s | samples/s | of matrix rate | padding | peak GiB | / usual | / tuned |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    cells = part["cells"]
    rates = {(c["shape"], c["data"], c["side"]): c["tokens_per_second"] for c in cells if "error" not in c}
    rows = []
    for cell in cells:
        place = (cell["shape"], cell["data"])
        if "error" in cell:
            rows.append(f"| {' | '.join([*place, cell['side'], cell['error']])} | | | | | | |")
            continue
        peers = [rates.get((*place, peer)) for peer in ("hf-usual", "hf-tuned")]
        ratios = [f"{cell['tokens_per_second'] / peer:.2f}" if peer else "" for peer in peers]
        figures = [
            f"{cell['tokens_per_second']:,.0f}",
            f"{cell['samples_per_second']:,.1f}",
            f"{cell['share_of_matrix_rate']:.1%}",
            f"{cell['padding_share']:.0%}",
            f"{cell['peak_memory_bytes'] / GIB:.2f}",
        ]
        rows.append(f"| {' | '.join([*place, cell['side'], *figures, *ratios])} |")
    rate = next((cell["matrix_flops"] for cell in cells if "error" not in cell), 0.0)
    note = (
        f"Measured rate of bf16 matrix products: {rate / 1e12:.1f} TFLOP/s. Tokens are real ones, padding left out; a "
        "token counts 4 operations a frozen linear weight and 6 an adapter weight. Every side updates on 32 texts a "
        "step: shoal and hf-usual (gradient checkpointing) in batches of 8, shoal-32 and hf-tuned (grouped by length) "
        "of 32."
    )
    return "\n\n".join(["## Speed", ending(part), "\n".join(head + rows), note])


def memory_section(part: Results, card: str) -> str:
    """Return the largest batch of 512-token texts under each cap."""
    done = [build for build in part["builds"] if build["state"] == "done"]
    caps = sorted({fit["cap_gib"] for build in done for fit in build.get("fits", [])})
    names = " | ".join(f"{cap} GiB-capped {card}" for cap in caps)
    head = [f"| model | base | ZeRO | recompute | {names} |", "|---|---|---|---|" + "---|" * len(caps)]
    rows = []
    for build in part["builds"]:
        key = build["build"]
        place = f"| {key['shape']} | {key['quantization'].replace('none', 'bf16')} | {key['zero']} |"
        fits = {(fit["gradient_checkpointing"], fit["cap_gib"]): fit for fit in build.get("fits", [])}
        if not fits:
            why = build.get("not_run") or build.get("error") or "begun, not finished"
            rows.append(f"{place} | {why} |" + " |" * max(0, len(caps) - 1))
        for recompute in (True, False) if fits else ():
            row = [describe(fits.get((recompute, cap))) for cap in caps]
            rows.append(f"{place} {'yes' if recompute else 'no'} | {' | '.join(row)} |")
    outside = max((build.get("outside_bytes", 0) for build in done), default=0)
    note = (
        "The largest batch of 1, 2, 4, 8 texts of 512 tokens that made two optimizer steps, and the peak in GiB: in "
        "tensors / taken from the card. A batch is run under the cap, unless a run under a larger one took less than "
        "this one; one whose memory, on the straight line through smaller ones, is over the cap by 5 % is not tried. "
        f"The caps hold {outside / GIB:.2f} GiB for the CUDA context and its libraries too. Random weights."
    )
    return "\n\n".join(["## Memory", ending(part), "\n".join(head + rows), note])


def describe(fit: Results | None) -> str:
    """Return a cell of the memory table."""
    if fit is None:
        return "does not load"
    if not fit["batch"]:
        return "–"
    return f"{fit['batch']} ({fit['allocated_bytes'] / GIB:.2f} / {fit['reserved_bytes'] / GIB:.2f})"
