"""Parts of README.md that commands write: what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

from pathlib import Path


def read_part(name: str, path: Path) -> str:
    """Return what stands in the part."""
    return _cut(name, path)[1]


def write_part(name: str, content: str, path: Path) -> None:
    """Put `content`, whole lines, in the place of what stands in the part."""
    before, _, after = _cut(name, path)
    path.write_text(before + content + after, encoding="utf-8")


def _cut(name: str, path: Path) -> tuple[str, str, str]:
    """Return what stands before the part, its marker included, the part, and what stands after it."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    part, after = rest.split(end)
    return before + begin, part, end + after
