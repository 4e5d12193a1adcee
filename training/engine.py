"""The DeepSpeed engine around the classifier, and the few things Shoal asks of it in every ZeRO stage."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from training.card_memory.cap import limit_card_memory
from training.card_memory.pinned import pin_layers, pins_parameters, unpinned
from training.cuda.visible import let_deepspeed_read_uuids
from training.deepspeed_config import blames_settings, fit_buckets, offloads_optimizer, zero_stage
from training.errors import UserError
from training.loss_scale import scaler_of
from training.memory import OutOfMemory
from training.network.interface import network_variables
from training.network.limits import NoWay, join
from training.network.shared_memory import free_mib, why_too_small
from training.packing import PackedClassifier
from training.ranks import Ranks
from training.spec import TrainingSpec


def start_process_group(ranks: Ranks) -> torch.device:
    """Join the job's ranks and return this rank's device. NCCL on cards, gloo on CPUs."""
    # torch compiles CPUAdam with ninja, which stands beside the interpreter; a venv need not be activated for it.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.update(ranks.environment())
    os.environ.update(network_variables(ranks, os.environ))
    if torch.cuda.is_available():
        # Under Ray a rank sees its own card only; under the deepspeed launcher it sees them all. DeepSpeed, too, takes
        # LOCAL_RANK for the number of a card.
        os.environ["LOCAL_RANK"] = str(ranks.local_rank % torch.cuda.device_count())
    import deepspeed

    let_deepspeed_read_uuids()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    torch.set_num_threads(ranks.num_threads)
    # Gradients that have all but vanished are denormal numbers, which make a CPU ten times slower.
    torch.set_flush_denormal(True)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        limit_card_memory(ranks)
        refuse_small_shared_memory(ranks)
        join(ranks, device, "nccl")
    else:
        device = torch.device("cpu")
        # DeepSpeed would compile a shared-memory all-reduce here (most of a minute) that only its inference uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        join(ranks, device, "gloo")
    return device


def refuse_small_shared_memory(ranks: Ranks) -> None:
    """Raise UserError where NCCL would find no room to connect this job's cards of this PC."""
    if ranks.local_world_size > 1 and (why := why_too_small(free_mib(), os.environ)):
        raise UserError(why)


@contextmanager
def process_group(ranks: Ranks) -> Iterator[torch.device]:
    """Be in the job's group within this context; yields this rank's device.

    A rank that is out of memory stays in: the others wait for it in a collective call, and leaving would wait for them.
    So does one that has no way to the others.
    """
    leaves = True
    try:
        yield start_process_group(ranks)
    except (OutOfMemory, NoWay):
        leaves = False
        raise
    finally:
        if leaves and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return adapter and head, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def build_optimizer(
    model: nn.Module, training: TrainingSpec, config: dict[str, Any], report: Callable[[str], None]
) -> torch.optim.Optimizer:
    """Return AdamW over adapter and head; the learning rate is set before each step.

    All of it is decayed, as in Hugging Face's Trainer: adapter and head have neither biases nor norms. One group, for
    DeepSpeed with an offloaded optimizer makes no state for a second one of vectors (DoRA's magnitudes).
    """
    parameters = list(trainable_parameters(model).values())
    rate, decay = training.learning_rate, training.weight_decay
    if offloads_optimizer(config):
        reason = cpu_adam_obstacle()
        if reason is None:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            report("optimizer: DeepSpeedCPUAdam in host memory")
            return DeepSpeedCPUAdam(parameters, lr=rate, weight_decay=decay, adamw_mode=True)  # type: ignore[no-any-return]
        report(f"optimizer: torch.optim.AdamW in host memory, since DeepSpeedCPUAdam does not build here ({reason})")
    else:
        report("optimizer: torch.optim.AdamW")
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)


def cpu_adam_obstacle() -> str | None:
    """Build DeepSpeed's CPUAdam (about a minute, once a machine); return why it cannot be, or None."""
    from deepspeed.ops.op_builder import CPUAdamBuilder
    from torch.utils.cpp_extension import _get_build_directory

    try:
        folder = Path(_get_build_directory(CPUAdamBuilder.NAME, False))
        # torch's own lock is a file that a killed process leaves behind, and all later ones wait for. Whoever holds
        # ours, which ends with its process, knows that nobody is building.
        with _quiet_output(), FileLock(folder.with_name(f"{folder.name}.shoal.lock")):
            (folder / "lock").unlink(missing_ok=True)
            CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # a compiler can fail in any way, and none of them is a reason to stop
        return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return None


@contextmanager
def _quiet_output() -> Iterator[None]:
    """Keep what compilers and DeepSpeed print off the terminal."""
    stdout = sys.stdout
    with Path(os.devnull).open("w") as sink:
        sys.stdout = sink
        try:
            yield
        finally:
            sys.stdout = stdout


def start_engine(
    model: PackedClassifier,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
    report: Callable[[str], None] = lambda _: None,
) -> Any:
    """Return the DeepSpeed engine; ZeRO-3 partitions what is still whole here. `report` hears what is amiss."""
    import deepspeed

    parameters = list(trainable_parameters(model).values())
    config = fit_buckets(config, sum(parameter.numel() for parameter in parameters))
    if zero_stage(config) == 3:
        gather_layer_by_layer(model)
    if "fp16" in config:
        allow_fp16()
    with _refusals(), _quiet_output():  # DeepSpeed prints the memory in use at each stage of its start
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, model_parameters=parameters, config=unpinned(config)
        )
    if pins_parameters(config) and not pin_layers(model) and torch.cuda.is_available():
        report("some offloaded weights are not in pinned memory, of which this system gives no more: steps are slower")
    scaler = scaler_of(engine)
    if scaler is not None:
        scaler.raise_error_at_min_scale = False  # training.loss_scale says what to do
    engine.train()  # bases are loaded for evaluation, in which nothing is recomputed
    return engine


def allow_fp16() -> None:
    """Have DeepSpeed take fp16 on a CPU without instructions for it: PyTorch multiplies it there, if slowly."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() != "cuda":
        accelerator.is_fp16_supported = lambda: True


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what DeepSpeed raises about its configuration into a UserError; all else it raises stays what it is."""
    try:
        yield
    except (ValueError, AssertionError, NotImplementedError) as error:
        if not blames_settings(error):
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"DeepSpeed refuses the settings of the deepspeed file: {reason}. Mend or remove them."
        ) from error


def zero3_partition(config: dict[str, Any]) -> Callable[[nn.Parameter], None] | None:
    """Return what cuts a frozen parameter to this rank's slice under ZeRO-3, or None in the other stages."""
    import deepspeed

    if zero_stage(config) != 3:
        return None
    with _refusals():
        zero = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=unpinned(config))

    def partition(parameter: nn.Parameter) -> None:
        # What zero.Init does with a module's parameters, but for the broadcast of rank 0's values: it would make each
        # rank hold the whole tensor, and all have read the same file.
        parameter.data = parameter.data.to(zero.local_device)
        zero._convert_to_deepspeed_param(parameter)
        parameter.partition()  # type: ignore[attr-defined]

    return partition


def gather_layer_by_layer(model: PackedClassifier) -> None:
    """Have ZeRO-3 gather a whole layer at once: few large transfers, and a layer may use its parts' weights itself."""
    from deepspeed.utils import set_z3_leaf_modules

    classes = {type(part) for part in model.modules() if isinstance(part, GradientCheckpointingLayer)}
    if classes:
        set_z3_leaf_modules(model, list(classes))
        # DeepSpeed lets a layer's weights go once the gradient of its input is there, and the first layer of a frozen
        # embedding would have none to wait for.
        model.inner.enable_input_require_grads()


def gathered(parameters: list[nn.Parameter], *, write: bool = False) -> Any:
    """Return a context in which ZeRO-3's partitioned parameters are whole; with `write`, rank 0's changes stay."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)


def release_gathered(engine: Any) -> None:
    """Let go of all weights that ZeRO-3 has gathered or is about to. All ranks must call it after an evaluation.

    A forward pass has it fetch ahead for the backward pass, which an evaluation lacks; what is still on its way could
    be neither read nor replaced, and DeepSpeed would end the job.
    """
    engine.empty_partition_cache()  # nothing under other stages


def copy_trainable(model: nn.Module) -> dict[str, Tensor]:
    """Return adapter and head as whole CPU tensors, on every rank. All ranks must call it."""
    parameters = trainable_parameters(model)
    with gathered(list(parameters.values())):
        return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def load_trainable(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole tensors back. All ranks must call it with the same state; no optimizer step may follow."""
    parameters = trainable_parameters(model)
    with gathered(list(parameters.values()), write=True), torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
