"""Installs the stand-ins named in SHOAL_STAND_INS, before anything else runs in a process."""

import importlib
import os
import sys
from pathlib import Path

_names = [name for name in os.environ.get("SHOAL_STAND_INS", "").split(",") if name]
if _names:
    sys.path.append(str(Path(__file__).resolve().parents[2]))  # tests/, as the package `stand_ins`' home
    for _name in _names:
        _module, _, _argument = _name.partition("=")
        importlib.import_module(f"stand_ins.{_module}").install(_argument)
