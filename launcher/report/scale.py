"""From values to places on a chart, and the round numbers at its axes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear axis."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def fraction(self, value: float) -> float:
        """Return where a value stands, 0 at `low` and 1 at `high`; beyond them it is moved to the end."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def scale_of(values: Iterable[float], *, low: float | None = None, high: float | None = None, most: int = 5) -> Scale:
    """Return an axis with round ends that holds all finite values, about `most` ticks; `low` and `high` fix an end."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    first = min(finite) if low is None else low
    last = max(finite) if high is None else high
    if last <= first:
        last = first + (abs(first) or 1.0)
    step = round_step((last - first) / most)
    start = math.floor(first / step + 1e-9) if low is None else math.ceil(first / step - 1e-9)
    end = math.ceil(last / step - 1e-9) if high is None else math.floor(last / step + 1e-9)
    ticks = tuple(round(index * step, 10) for index in range(start, end + 1))
    return Scale(low=ticks[0] if low is None else low, high=ticks[-1] if high is None else high, ticks=ticks)


def round_step(step: float) -> float:
    """Return the next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))


def tick_texts(scale: Scale, *, percent: bool = False) -> list[str]:
    """Return the ticks as text, all with as many decimals as the finest needs."""
    factor = 100 if percent else 1
    step = (scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 1 else 1.0) * factor
    decimals = next(count for count in range(10) if abs(round(step, count) - step) < 1e-6 * step)
    return [f"{tick * factor:.{decimals}f}" for tick in scale.ticks]


def seconds_step(span: float, most: int = 5) -> float:
    """Return the seconds between ticks of a time axis of `span` seconds: whole seconds, minutes, hours or days."""
    steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400]
    days = math.ceil(span / most / 86400) * 86400
    return float(next((step for step in steps if span / step <= most), days))


def duration(seconds: float) -> str:
    """Return "42 s", "3 min 20 s", "1 h 5 min" or "2 d 3 h"."""
    whole = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"
