"""Adds up the live bytes of all tensors while a program runs on fake ones."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Place = tuple[str, str]
"""Device type and cause."""

_SCALARS = {torch.bool: False, torch.uint8: 0, torch.float32: 1.0, torch.float64: 1.0, torch.bfloat16: 1.0}
"""What a fake tensor's only value is taken for; other integers are 1. A byte is a flag, as a bool is."""

GLOO_COPIES = {torch.ops.c10d._allgather_base_}
"""Collective operations that gloo, on a CPU, receives in a buffer of its own before it copies to the output."""


@dataclass(kw_only=True)
class _Storage:
    """What is counted of one storage."""

    device: str
    cause: str
    size: int
    alive: weakref.ref[Any] | None = None
    shown: Any = None
    """The storage that this one, a view's, really is."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context every tensor that an operation makes is counted until its storage dies.

    Enter it after FakeTensorMode. `stand_ins` maps a kernel to the operations it is made of, `causes` an operation to
    what its outputs are counted under.
    """

    def __init__(self, stand_ins: dict[Any, Callable[..., Any]], causes: dict[Any, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stand_ins, self.causes = stand_ins, causes
        self.cause = "other"
        self.live: Counter[Place] = Counter()
        self.site = ""
        """What runs; each site has peaks of its own."""
        self.peaks: dict[tuple[str, str], Counter[Place]] = {}
        """Device type and site -> what was alive when the device's total was largest there."""
        self._totals: Counter[str] = Counter()
        self._most: Counter[tuple[str, str]] = Counter()
        self._storages: dict[int, _Storage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return _SCALARS.get(args[0].dtype, 1)
        parts = self.stand_ins.get(func.overloadpacket) or _parts(func)
        if parts is not None:
            with self:
                return parts(*args, **kwargs)
        output = func(*args, **kwargs)
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                if isinstance(leaf, FakeTensor):
                    leaf.constant = None  # torch would compute with known values for real
                if func.is_view and args and isinstance(args[0], Tensor):
                    self._take_for(leaf, args[0])
                cause = self.causes.get(func.overloadpacket)
                self.note(leaf, cause)
                if func.overloadpacket in GLOO_COPIES and leaf.device.type == "cpu":
                    self._touch(cause or self.cause, leaf.untyped_storage().nbytes())
        if torch.Tag.pointwise in func.tags:
            self._convert(args, output)
        return output

    def note(self, tensor: Tensor, cause: str | None = None) -> None:
        """Count a tensor's storage, or move it to another cause."""
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is None:
            if tensor.device.type != "meta":
                self._begin(storage, tensor.device.type, cause or self.cause, storage.nbytes())
        elif cause is not None:
            self.live[known.device, known.cause] -= known.size
            self.live[known.device, cause] += known.size
            known.cause = cause

    def because(self, cause: str) -> _Within:
        """Return a context, to be entered as often as need be, in which what is made is counted under `cause`."""
        return _Within(self, "cause", cause)

    def at(self, site: str) -> _Within:
        """Return a context, to be entered as often as need be, whose peaks are those of `site`."""
        return _Within(self, "site", site)

    def enter(self, site: str) -> None:
        """Count what follows as that of `site`."""
        self.site = site

    def restart(self) -> None:
        """Forget the peaks; what is alive stays."""
        self.peaks.clear()
        self._most.clear()
        for device in list(self._totals):
            self._add(device, "other", 0)

    def _take_for(self, view: Tensor, base: Tensor) -> None:
        """Take a view's storage for that of what it shows: FakeTensorMode at times gives it one of its own."""
        own, shown = view.untyped_storage(), base.untyped_storage()
        if own._cdata != shown._cdata and own._cdata not in self._storages:
            self._begin(own, view.device.type, self.cause, 0, shown)

    def _convert(self, inputs: Any, output: Any) -> None:
        """Count the copies in a common type that element-wise operations make of their operands on a CPU."""
        operands = [value for value in inputs if isinstance(value, Tensor) and value.dim()]
        if not operands or not isinstance(output, Tensor) or output.device.type != "cpu":
            return
        common = reduce(torch.promote_types, (value.dtype for value in operands))
        sized = [*operands, output] if output.dtype.is_floating_point else operands
        size = sum(value.numel() * common.itemsize for value in sized if value.dtype != common)
        if size:
            self._touch(self.cause, size)

    def _touch(self, cause: str, size: int) -> None:
        """Count what is alive in host memory during an operation only."""
        self._add("cpu", cause, size)
        self._subtract("cpu", cause, size)

    def _begin(self, storage: Any, device: str, cause: str, size: int, shown: Any = None) -> None:
        """Count a storage from now on until it dies."""
        entry = _Storage(device=device, cause=cause, size=size, shown=shown)
        key = storage._cdata

        def dies(_: Any) -> None:
            self._subtract(entry.device, entry.cause, entry.size)
            entry.shown = None
            if self._storages.get(key) is entry:
                del self._storages[key]

        entry.alive = weakref.ref(storage, dies)
        self._storages[key] = entry
        self._add(device, cause, size)

    def _add(self, device: str, cause: str, size: int) -> None:
        self.live[device, cause] += size
        self._totals[device] += size
        key = (device, self.site)
        if self._totals[device] >= self._most[key]:
            self._most[key] = self._totals[device]
            self.peaks[key] = self.live.copy()

    def _subtract(self, device: str, cause: str, size: int) -> None:
        self.live[device, cause] -= size
        self._totals[device] -= size


@cache
def _parts(func: Any) -> Callable[..., Any] | None:
    """Return an operation as smaller ones where it has no kernel of its own; it may return its input as it is."""

    def has(key: str) -> bool:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key))

    composite = func.namespace == "aten" and has("CompositeImplicitAutograd") and not has("CPU")
    return func.decompose if composite else None


class _Within:
    """Sets an attribute of a LiveBytes, and back."""

    def __init__(self, live: LiveBytes, name: str, value: str) -> None:
        self.live, self.name, self.value = live, name, value
        self.before: list[str] = []

    def __enter__(self) -> None:
        self.before.append(getattr(self.live, self.name))
        setattr(self.live, self.name, self.value)

    def __exit__(self, *_: object) -> None:
        setattr(self.live, self.name, self.before.pop())
