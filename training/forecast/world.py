"""A world for a forecast: ranks that are not there, a card that is not there, and no tensor with memory.

For a process that does nothing else: torch, DeepSpeed and the trainer stay changed.
"""

from __future__ import annotations

import importlib
import mmap
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from training.forecast import card_kernels
from training.ranks import Ranks

CARD = "card"
"""The device type of a fake card; a real one's cannot be used by a torch that was built without CUDA."""
CHECKED_BY = ("stage3", "partition_parameters", "partitioned_param_coordinator")
"""DeepSpeed's modules in which ranks compare notes, which a fake group cannot answer."""


PINNED: list[int] = []
"""Bytes of each tensor that DeepSpeed has pinned in host memory, for good, in this process."""


@contextmanager
def fake_world(world_size: int, *, on_card: bool, has_varlen: bool = True) -> Iterator[tuple[Ranks, torch.device]]:
    """Be rank 0 of a job in which tensors have shapes only; yields the rank and its device.

    Cards before Ampere lack the variable-length kernel (`has_varlen`).
    """
    import deepspeed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    ranks = Ranks(
        rank=0, world_size=world_size, local_rank=0, local_world_size=world_size, master_port=1, num_threads=1
    )
    os.environ.update(ranks.environment())
    _change_libraries()
    _use_accelerator(on_card)
    card_kernels.HAS_VARLEN = has_varlen
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    try:
        deepspeed.init_distributed("fake", verbose=False)
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
            warnings.simplefilter("ignore")  # DeepSpeed asks fake tensors for their addresses
            yield ranks, torch.device(CARD, 0) if on_card else torch.device("cpu")
    finally:
        dist.destroy_process_group()


@cache
def _change_libraries() -> None:
    """Change what looks at values, addresses or other ranks."""
    import deepspeed

    import training.engine
    from training.card_memory import pinned

    for name in CHECKED_BY:
        importlib.import_module(f"deepspeed.runtime.zero.{name}").assert_ints_same_as_other_ranks = _agree  # type: ignore[attr-defined]
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    nn.Module._apply = _apply_in_place  # type: ignore[method-assign]
    # torch's AdamW keeps what CPUAdam keeps, which reads memory by its address.
    training.engine.cpu_adam_obstacle = lambda: "memory is forecast"
    pinned.locked_pages = _pages


def _pages(size: int) -> tuple[Tensor, bool]:
    """Stand in for pages that CUDA has locked: whole ones."""
    return torch.empty(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE, dtype=torch.uint8)[:size], True


def _agree(_values: list[int]) -> None:
    """Other ranks have the same."""


def _apply_in_place(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Do what Module._apply does to real tensors. Fake ones it would swap, which hooks forbid."""
    for module in self.children() if recurse else ():
        module._apply(fn)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, parameter in self._parameters.items():
            if parameter is None:
                continue
            applied = fn(parameter.data)
            if applied.device == parameter.device:
                parameter.data = applied
                continue
            moved = nn.Parameter(applied, requires_grad=parameter.requires_grad)
            own = moved.__dict__  # among it what a fake tensor knows of itself
            own.update({key: value for key, value in parameter.__dict__.items() if key not in own})
            self._parameters[name] = moved
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _use_accelerator(on_card: bool) -> None:
    """Have DeepSpeed put its tensors on the fake card, or on the CPU."""
    import deepspeed.accelerator.real_accelerator as chosen
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if on_card:
        _register_card()
    chosen.ds_accelerator = _card_accelerator() if on_card else CPU_Accelerator()


@cache
def _register_card() -> None:
    """Make a device type without a kernel known to torch; FakeTensorMode needs none."""
    import torch.nn.attention.varlen
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    import training.fused
    import training.packing
    import training.sdpa

    module = _DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # type: ignore[attr-defined]
    _setup_privateuseone_for_python_backend(CARD, backend_module=module)
    torch.tensor = _by_way_of_cpu(torch.tensor)
    packing: Any = training.packing
    fused: Any = training.fused
    kernel: Any = torch.nn.attention.varlen
    packing.varlen_obstacle = card_kernels.varlen_obstacle
    kernel.varlen_attn = wraps(kernel.varlen_attn)(card_kernels.varlen_attn)  # with the signature it has here
    sdpa: Any = training.sdpa
    sdpa.attention_on_card = card_kernels.efficient_attention
    fused.rms_norm_on_card = card_kernels.rms_norm
    own = torch.nn.functional.scaled_dot_product_attention

    def attention(query: Tensor, *arguments: Any, **options: Any) -> Tensor:
        fits = query.device.type == CARD and not torch.is_grad_enabled()
        return (card_kernels.attention if fits else own)(query, *arguments, **options)

    torch.nn.functional.scaled_dot_product_attention = attention


def _by_way_of_cpu(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return torch.tensor for the card, where it would want a kernel."""

    @wraps(create)
    def tensor(*arguments: Any, device: Any = None, **options: Any) -> Tensor:
        made = create(*arguments, **options)
        return made if device is None else made.to(device)

    return tensor


def _card_accelerator() -> Any:
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class Card(CPU_Accelerator):  # type: ignore[misc]
        """DeepSpeed's view of the fake card."""

        def device_name(self, device_index: int | None = None) -> str:
            return CARD if device_index is None else f"{CARD}:{device_index}"

        def current_device_name(self) -> str:
            return f"{CARD}:0"

        def current_device(self) -> int:
            return 0

        def device(self, device_index: int | None = None) -> Any:
            return nullcontext()

        def on_accelerator(self, tensor: Tensor) -> bool:
            return tensor.device.type == CARD

        def pin_memory(self, tensor: Tensor, align_bytes: int = 1) -> Tensor:
            """Note the size: what PyTorch's allocator rounds it up by is added once the whole model's is known."""
            PINNED.append(tensor.numel() * tensor.element_size())
            return tensor.clone()

        def is_pinned(self, tensor: Tensor) -> bool:
            return tensor.device.type == "cpu"

        def available_memory(self, device_index: int | None = None) -> int:
            return 1 << 50

    return Card()
