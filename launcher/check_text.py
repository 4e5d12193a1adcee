"""A data check (training.corpus.quality.DataCheck.to_dict()) in words, for the terminal and for report.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

MOST_CLASSES = 20
NAMES = {"error": "error", "warning": "warning", "info": "note"}

Check = dict[str, Any]


def terminal_text(title: str, check: Check) -> str:
    """Return what `shoal check` prints of one data."""
    rows = [("split", *HEADER), *((name, *cells(split, check)) for name, split in check["splits"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(_padded(row, widths)).rstrip() for row in rows]
    lines = [f"Data check: {title}", "", *(f"  {line}" for line in table), "", *_classes(check), ""]
    for finding in check["findings"]:
        lines += [f"{NAMES[finding['level']]:<8} {finding['message']}", f"{'':8} {finding['fix']}"]
        for example in finding["examples"]:
            note = f"  ({example['note']})" if example["note"] else ""
            row, place, text = (example[name] for name in ("row", "place", "text"))
            lines.append(f'{"":11}{row}, {place}: "{text}"{note}')
    return "\n".join([*lines, *([""] if check["findings"] else []), summary(check)])


HEADER = ("rows", "classes", "largest/smallest", "unit", "median", "95 %", "longest", "texts cut", "lost by it")


def cells(split: dict[str, Any], check: Check) -> tuple[str, ...]:
    """Return a split's line of the table."""
    unit = _unit(check)
    lengths, cut, ratio = split[unit], split["cut"], split["imbalance_ratio"]
    return (
        f"{split['rows']:,}",
        f"{len(split['rows_per_class'])}",
        f"{ratio:.1f}" if ratio else "",
        unit,
        *(f"{lengths[name]:,}" for name in ("p50", "p95", "max")),
        f"{cut['share_of_texts']:.1%}" if cut else "?",
        f"{cut['share_of_tokens']:.1%}" if cut else "?",
    )


def _unit(check: Check) -> str:
    """Return what lengths are shown in: words say nothing where spaces do not part them."""
    train = check["splits"]["train"]
    if train["tokens"]:
        return "tokens"
    return "words" if train["characters"]["mean"] < 12 * train["words"]["mean"] else "characters"


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if not column else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _classes(check: Check) -> list[str]:
    """Return train's classes with their rows, and what tokens were counted with."""
    counts = check["splits"]["train"]["rows_per_class"]
    listed = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:MOST_CLASSES])
    more = f" and {len(counts) - MOST_CLASSES} more" if len(counts) > MOST_CLASSES else ""
    tokens = (
        f"  tokens of {check['tokenizer']}; read of a long text: {check['read']}"
        if check["tokenizer"]
        else "  no tokenizer: --model_name_or_path counts tokens and says what is cut"
    )
    return [f"  train: {listed}{more}", tokens]


def counted_with(check: Check) -> str:
    """Return a sentence on what tokens were counted with, and on what is cut."""
    return f" Tokens of {check['tokenizer']}; read of a long text: {check['read']}." if check["tokenizer"] else ""


def summary(check: Check) -> str:
    """Return how many findings of each level there are."""
    counts = Counter(finding["level"] for finding in check["findings"])
    named = [f"{counts[level]} {name}{'s' if counts[level] != 1 else ''}" for level, name in NAMES.items()]
    if not counts:
        return "Nothing is wrong."
    end = " Training refuses this data until the errors are mended." if counts["error"] else ""
    return f"{', '.join(named)}.{end}"


def markdown_section(data_checks: Sequence[dict[str, Any]]) -> str:
    """Return the section "Data check" of report.md, without its heading."""
    return "\n\n".join(_markdown(item["data"], item["check"], len(data_checks) > 1) for item in data_checks)


def _markdown(title: str, check: Check, named: bool) -> str:
    """Return one data's part: its splits, and each finding on a line."""
    lines = [("split", *HEADER), ("---",) * (len(HEADER) + 1)]
    lines += [(name, *cells(split, check)) for name, split in check["splits"].items()]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    findings = "\n".join(_item(finding) for finding in check["findings"])
    counted = counted_with(check)
    return "\n\n".join(filter(None, [f"### {title}" if named else "", table, summary(check) + counted, findings]))


def _item(finding: dict[str, Any]) -> str:
    """Return a finding as an item of a list, with the rows to look at."""
    rows = ", ".join(example["row"] for example in finding["examples"])
    where = f" Rows: {rows}." if rows else ""
    return f"- **{NAMES[finding['level']]}** {escaped(finding['message'])}. {finding['fix']}{where}"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is: labels come from the data."""
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in text)
