"""Which batch is the largest that trains under each memory cap, in few runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

SLACK = 1.05
"""A batch whose predicted peak is above the cap by more than this is not tried."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most memory a run held."""

    allocated_bytes: int
    """In tensors."""
    reserved_bytes: int
    """Taken from the card. Up to this a cap is never felt: the run would go just the same under it."""


Run = Callable[[int, int], Peak | None]
"""(batch, cap in bytes) -> the peak, or None where memory ran out."""


class Search:
    """Remembers what each run has shown."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.peaks: dict[int, Peak] = {}
        self.failed: dict[int, int] = {}
        """Batch -> the largest cap under which memory ran out."""

    def fits(self, batch: int, cap: int) -> Peak | None:
        """Return the peak of a batch that trains under the cap; run it only where that is not known yet."""
        known = self.peaks.get(batch)
        if known is not None and known.reserved_bytes <= cap:
            return known
        if known is not None and known.allocated_bytes > cap:
            return None
        if self.failed.get(batch, 0) >= cap or self.predicted(batch) > SLACK * cap:
            return None
        peak = self.run(batch, cap)
        if peak is None:
            self.failed[batch] = max(cap, self.failed.get(batch, 0))
        else:
            self.peaks[batch] = peak
        return peak

    def predicted(self, batch: int) -> float:
        """Return what a batch allocates at its peak: measured, or on the straight line through two others."""
        if batch in self.peaks:
            return self.peaks[batch].allocated_bytes
        if len(self.peaks) < 2:
            return 0.0
        (one, low), (two, high) = sorted(self.peaks.items())[:2]
        slope = (high.allocated_bytes - low.allocated_bytes) / (two - one)
        return low.allocated_bytes + slope * (batch - one)


def largest_batches(caps: Sequence[int], batches: Sequence[int], run: Run) -> dict[int, tuple[int, Peak] | None]:
    """Return cap -> (largest batch that trains under it, its peak), or None where not even the smallest does."""
    search = Search(run)
    most = max(caps)
    for batch in sorted(batches)[:2]:
        if search.fits(batch, most) is None:
            break
    found: dict[int, tuple[int, Peak] | None] = {}
    for cap in sorted(caps, reverse=True):
        found[cap] = None
        for batch in sorted(batches, reverse=True):
            peak = search.fits(batch, cap)
            if peak is not None:
                found[cap] = (batch, peak)
                break
    return found
