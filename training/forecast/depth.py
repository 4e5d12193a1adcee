"""Forecasts of deep models from shallow ones: a model whose layers are alike needs no simulation of each.

At any moment of a job its bytes are linear in the number of layers: so much for the model around them, so much for each
layer that is loaded, has run forward, or has its gradients. The largest of several moments is not linear, so each is
followed by itself: moments are told apart by their site, what runs and in which of the first and last layers. Those of
the layers between lie between theirs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from training.deepspeed_config import AUTO
from training.forecast.live import LiveBytes

ENDS = 2
"""Layers at either end that have sites of their own."""
BETWEEN, FORWARD = "between", "forward"
DEEPER = 2
"""Layers that the second simulation has more than the first."""


def tells_layers_apart(target_modules: str | list[str]) -> bool:
    """Whether adapters are, or may be, in some layers only: paths with a layer's number, or a regular expression."""
    if isinstance(target_modules, str):
        return target_modules != "all-linear"
    return any(part.isdigit() for name in target_modules for part in name.split("."))


def depths(config: Any, dtype_bytes: int, quantization: str, zero: dict[str, Any]) -> tuple[int, int] | None:
    """Return how many layers to simulate for a model of `config`; None where it is as well to simulate it itself.

    ZeRO-3 holds up to a number of gathered values, and what is bounded is linear only where the bound is reached.
    """
    layers = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or [""]
    first = 2 * ENDS
    if zero.get("stage") == 3:
        if not getattr(config, "intermediate_size", None):
            return None
        first += -(-_most_gathered(zero) // _fewest_values(config, dtype_bytes, quantization))
    pair = (first, first + DEEPER)
    return pair if len(set(kinds)) == 1 and 3 * sum(pair) <= 2 * layers else None


def _most_gathered(zero: dict[str, Any]) -> int:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    read = DeepSpeedZeroConfig(**{key: value for key, value in zero.items() if value != AUTO})
    return max(int(each) for each in (read.max_live_parameters, read.max_reuse_distance, read.prefetch_bucket_size))


def bucket_of(zero: dict[str, Any]) -> float:
    """Return how many gradients DeepSpeed collects before it reduces them; all, where the file does not say."""
    size = zero.get("reduce_bucket_size", AUTO)
    return float("inf") if size == AUTO else float(size)


def _fewest_values(config: Any, dtype_bytes: int, quantization: str) -> int:
    """Return a number of values that each layer's weights have at least, as DeepSpeed counts them."""
    hidden = int(config.hidden_size)
    values = 2 * hidden * (hidden + int(config.intermediate_size))
    return values // (2 * dtype_bytes) if quantization == "nf4" else values


def of_depth(config: Any, layers: int) -> Any:
    """Return the configuration of the same model with so many layers."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def mark_layers(live: LiveBytes, model: Any, layers: list[Any]) -> None:
    """Have what is alive in each layer's forward and backward pass counted under a site of its own."""
    direction = FORWARD

    def begin(_: Any, __: Any) -> None:
        nonlocal direction
        direction = FORWARD

    def mark(layer: Any, name: str) -> None:
        def enter(_: Any, __: Any) -> None:
            live.enter(f"{direction} {name}")

        def leave(_: Any, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if direction == FORWARD and hidden.requires_grad:
                hidden.register_hook(turn)

        def turn(_: Any) -> None:
            nonlocal direction
            direction = "recompute"
            live.enter(f"backward {name}")

        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave)

    model.register_forward_pre_hook(begin)
    for number, layer in enumerate(layers):
        from_end = len(layers) - number
        mark(layer, str(number) if number < ENDS else f"-{from_end}" if from_end <= ENDS else BETWEEN)


Peaks = dict[str, dict[str, dict[str, dict[str, int]]]]
"""Phase -> site -> "card" or "host" -> cause -> bytes at that memory's peak there."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What was alive while a job ran on fake tensors."""

    peaks: Peaks
    """Of rank 0."""
    trained: int
    """Values of adapter and head."""
    largest_trained: int
    """Values of the largest of their parameters."""
    base_on_card: int
    """Bytes of the base that stay on the card."""
    pinned: tuple[int, ...] = ()
    """Bytes of each tensor that DeepSpeed pins itself, in its order."""

    def largest(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return phase -> "card" or "host" -> cause -> bytes of the site that has most there."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for phase, sites in self.peaks.items():
            found[phase] = {}
            for place in sorted({place for site in sites.values() for place in site}):
                there = [dict(site[place]) for site in sites.values() if place in site]
                found[phase][place] = max(there, key=lambda causes: sum(causes.values()))
        return found


def extrapolate(
    shallow: Simulation, deep: Simulation, depth: int, layers: int, bucket: float = float("inf")
) -> Simulation | None:
    """Return what a model of `layers` shows, from models of `depth` and `depth` + DEEPER.

    None where they have no sites of layers, or others, or bytes that become fewer than none: a site's peak is of
    another moment then. None, too, where gradients are more values than DeepSpeed's `bucket` holds.
    """
    trained = _line(shallow.trained, deep.trained, depth, layers)
    if trained > bucket or not any(FORWARD in site for site in shallow.peaks["training"]):
        return None
    if len(shallow.pinned) != len(deep.pinned):
        return None
    peaks: Peaks = {}
    for phase, sites in shallow.peaks.items():
        ends = {site for site in sites if BETWEEN not in site}
        if ends != {site for site in deep.peaks[phase] if BETWEEN not in site}:
            return None
        peaks[phase] = {}
        for site in sorted(ends):
            few, more = sites[site], deep.peaks[phase][site]
            peaks[phase][site] = {
                place: {
                    cause: _line(few.get(place, {}).get(cause, 0), more.get(place, {}).get(cause, 0), depth, layers)
                    for cause in few.get(place, {}).keys() | more.get(place, {}).keys()
                }
                for place in few.keys() | more.keys()
            }
            if any(size < 0 for causes in peaks[phase][site].values() for size in causes.values()):
                return None
    return Simulation(
        peaks=peaks,
        trained=trained,
        largest_trained=shallow.largest_trained,
        base_on_card=_line(shallow.base_on_card, deep.base_on_card, depth, layers),
        pinned=tuple(_line(few, more, depth, layers) for few, more in zip(shallow.pinned, deep.pinned, strict=True)),
    )


def _line(few: int, more: int, depth: int, layers: int) -> int:
    """Return what is at `layers` on the line through what is at `depth` and at `depth` + DEEPER."""
    return few + round((more - few) * (layers - depth) / DEEPER)
