"""Changes to a library that wait until somebody imports it: no process loads torch for a stand-in it does not need."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _AfterImport(MetaPathFinder):
    """Finds the modules that are to be changed, and changes each once it has been loaded."""

    def __init__(self) -> None:
        self.changes: dict[str, list[Callable[[ModuleType], None]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        changes = self.changes.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if changes else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Changing(spec.loader, changes or [])
        return spec


class _Changing(Loader):
    """A module's own loader, followed by the changes."""

    def __init__(self, loader: Loader, changes: Sequence[Callable[[ModuleType], None]]) -> None:
        self.loader, self.changes = loader, changes

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        for change in self.changes:
            change(module)

    def __getattr__(self, name: str) -> object:  # what inspect and importlib.resources ask of the loader
        return getattr(self.loader, name)


_finder = _AfterImport()


def after_import(name: str, change: Callable[[ModuleType], None]) -> None:
    """Have `change` called with module `name` once it is imported; at once where it is already."""
    if name in sys.modules:
        change(sys.modules[name])
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.changes.setdefault(name, []).append(change)
