"""The files memory_forecast.py writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_results(rows: list[dict[str, Any]], folder: Path) -> int:
    good = [r for r in rows if "error" not in r]
    errors = sorted(abs(r["forecast"]["bytes"] / r["measured"]["bytes"] - 1) for r in good)
    print(len(rows), len(good), "median", errors[len(errors) // 2], "p95", errors[int(0.95 * len(errors))])
    (folder / "memory_forecast.json").write_text(json.dumps(rows))
    return 0
