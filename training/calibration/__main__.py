"""Measures this machine's CPU or card, in a process of its own; the launcher shows how far it is.

    python -m training.calibration [--short | --card]

Prints one JSON a line: {"of": parts} first, {"part": text} as each part begins, {"record": CardRecord as a dict} last,
or {"error": text}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from training.errors import ShoalError


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer settings: rougher, in a quarter of the time")
    parser.add_argument("--card", action="store_true", help="the one card that CUDA_VISIBLE_DEVICES names, by number")
    options = parser.parse_args(arguments)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    def tell(part: str) -> None:
        say(part=part)

    try:
        if options.card:
            from training.calibration.card import measure_card
            from training.calibration.card import num_tellings as num_parts

            say(of=num_parts())
            record = measure_card(tell)
        else:
            from training.calibration.cpu import measure_cpu, num_tellings

            say(of=num_tellings(short=options.short))
            record = measure_cpu(tell, short=options.short)
    except ShoalError as error:
        say(error=str(error))
        return 1
    record.save()
    say(record=record.to_dict())
    return 0


if __name__ == "__main__":
    sys.exit(main())
