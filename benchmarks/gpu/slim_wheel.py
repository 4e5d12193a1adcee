"""Take the shared libraries of other back ends out of a bitsandbytes wheel: 8 MB instead of 60.

python -m benchmarks.gpu.slim_wheel wheels/bitsandbytes-*.whl cpu cuda130
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path

LIBRARY = re.compile(r"bitsandbytes/libbitsandbytes_(\w+)\.so")


def is_kept(name: str, back_ends: list[str]) -> bool:
    library = LIBRARY.fullmatch(name)
    return library is None or library[1] in back_ends


def slim(wheel: Path, back_ends: list[str]) -> None:
    """Rewrite the wheel with these back ends alone, and the list of its files (RECORD) to match."""
    temporary = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as target:
        names = source.namelist()
        missing = {f"bitsandbytes/libbitsandbytes_{back_end}.so" for back_end in back_ends} - set(names)
        if missing:
            there = ", ".join(match[1] for name in names if (match := LIBRARY.fullmatch(name)))
            raise SystemExit(f"{wheel.name} holds no {', '.join(sorted(missing))}. Choose from {there}.")
        for item in source.infolist():
            if not is_kept(item.filename, back_ends):
                continue
            content = source.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if is_kept(line.split(",")[0], back_ends)).encode()
            target.writestr(item, content, zipfile.ZIP_DEFLATED)
    temporary.replace(wheel)


if __name__ == "__main__":
    slim(Path(sys.argv[1]), sys.argv[2:])
