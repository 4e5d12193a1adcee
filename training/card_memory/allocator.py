"""How PyTorch's allocator of card memory is set up in the ranks of a job. Light: torch reads it when it starts."""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib.metadata import version

SETTINGS, OLD_SETTINGS = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
"""The variable that holds the allocator's settings, since torch 2.9 and before."""
EXPANDABLE = "expandable_segments:True"


def use_expandable_segments(environment: MutableMapping[str, str]) -> None:
    """Have segments grow where they are: micro-batches of ever other lengths would leave gaps between fixed ones.

    Call it before torch makes its first tensor on a card. What the user has set stays.
    """
    if not any(environment.get(name) for name in (SETTINGS, OLD_SETTINGS)):
        environment[settings_name(version("torch"))] = EXPANDABLE


def settings_name(torch_version: str) -> str:
    """Return the variable that a version of torch reads."""
    major, minor = (int(part) for part in torch_version.split(".")[:2])
    return SETTINGS if (major, minor) >= (2, 9) else OLD_SETTINGS
