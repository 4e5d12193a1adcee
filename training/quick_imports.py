"""Keeps libraries from importing what Shoal never uses of them: each rank, forecast and prediction starts sooner.

Imported by training/__init__.py, before any of them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Leave functions as they are where torch.compile decorates them, which loads the whole compiler (2 s).

    In bitsandbytes these are fallbacks for devices that have no kernels of their own; CPUs and CUDA have them. In
    DeepSpeed they are Muon's, an optimizer that nothing here uses and that ZeRO imports to ask whether it does.
    """
    import torch

    compiler = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def _as_it_is(function: Callable[..., object], **options: object) -> Callable[..., object]:
    return function


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """Have MLflow look uninstalled (2 s); DeepSpeed's autotuner, which nobody calls here, would import it."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # how Python marks a module that cannot be imported
    try:
        yield
    finally:
        del sys.modules["mlflow"]


@contextmanager
def _models_listed_once() -> Iterator[None]:
    """Have transformers look through its 550 folders of models once (0.5 s), not twice: its own cache holds 128."""
    yield
    utils: Any = sys.modules["transformers.utils.import_utils"]
    look: Any = getattr(utils, "create_import_structure_from_path", None)
    if hasattr(look, "__wrapped__"):
        utils.create_import_structure_from_path = functools.cache(look.__wrapped__)


AROUND: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bitsandbytes.backends.default.ops": _without_compiler,
    "deepspeed.autotuning.autotuner": _without_mlflow,
    "deepspeed.runtime.zero.muon.original_muon": _without_compiler,
    "transformers.utils.import_utils": _models_listed_once,
}
"""What holds while a module is imported."""


class _Finder(MetaPathFinder):
    """Finds modules as Python does, and has those of `AROUND` imported in their context."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        context = AROUND.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if context else None
        if context is None or spec is None or spec.loader is None:
            return None  # Python goes on by itself
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with context():
                execute(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
    sys.meta_path.insert(0, _Finder())
