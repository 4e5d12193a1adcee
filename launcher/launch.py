"""Run a study: `python launcher/launch.py STUDY.yaml [--address ...]`, the same as `shoal run`."""

from __future__ import annotations

import sys
from pathlib import Path

# Python puts launcher/ first on the path, where our modules would shadow libraries: put the checkout there instead.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]

from launcher.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
