"""The training loop, top to bottom: plan a step, add up its micro-batches, update, now and then evaluate and save."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.batches import StepPlan, plan_step
from training.checkpoint_writer import CheckpointWriter
from training.energy import EnergyMeter
from training.engine import copy_trainable
from training.evaluation import compute_metrics, is_better, to_device
from training.loss_scale import forget_gradients, overflowed, read_loss_scale, require_finite, require_lower_scale
from training.memory import memory_watched
from training.meter import StepMeter, any_rank_stops
from training.progress import TrainingProgress
from training.result import Metrics
from training.run import TrainingRun, TrainingState
from training.saving import save
from training.schedule import learning_rate
from training.stop import Stopped


def train(run: TrainingRun, state: TrainingState) -> None:
    """Train from `state.step` to the last step, or until early stopping."""
    patience = run.spec.training.early_stopping_patience
    eval_steps, save_steps = run.spec.training.eval_steps, run.spec.training.save_steps
    meter = StepMeter(run, state)
    energy = EnergyMeter(run.device, run.ranks)
    progress = TrainingProgress(run.num_steps, enabled=run.ranks.is_main)
    if state.step == 0:
        state.untrained = evaluate(run, state, progress)
    with progress, run.stop.deferred(), CheckpointWriter() as writer:
        while state.step < run.num_steps and not (patience and state.stale_evaluations >= patience):
            plan = plan_step(
                state.step,
                run.train.lengths,
                seed=run.spec.seed,
                global_batch_size=run.global_batch_size,
                rank=run.ranks.rank,
                world_size=run.ranks.world_size,
                token_budget=run.token_budget,
            )
            rate = learning_rate(state.step, run.num_steps, run.spec.training)
            meter.start()
            with memory_watched("training", state.step):
                loss_sum = optimizer_step(run, plan, state.step, rate)
            state.step += 1
            state.loss_scale = read_loss_scale(run.engine)
            epoch_ends = state.step % run.steps_per_epoch == 0 or state.step == run.num_steps
            evaluates = epoch_ends or bool(eval_steps and state.step % eval_steps == 0)
            saves = evaluates or bool(save_steps and state.step % save_steps == 0)
            # Before a save in any case: what has diverged must not take a good checkpoint's place.
            meter.add(loss_sum, plan, rate, progress, due=saves)
            if evaluates:
                note_evaluation(run, state, evaluate(run, state, progress))
            if meter.stop_agreed or saves:
                state.energy_joules += energy.taken()
                save(run, state, writer)
                run.meeting.meet()  # a full disk keeps the first rank until there is room
            if meter.stop_agreed or (evaluates and any_rank_stops(run)):
                writer.wait()
                run.meeting.meet()  # the others wait for the first rank's write: a rank that ends has all ended
                raise Stopped(f"after step {state.step} of {run.num_steps}, which is saved")
    run.meeting.meet()  # the first rank has written its last checkpoint


def optimizer_step(run: TrainingRun, plan: StepPlan, step: int, rate: float) -> Tensor:
    """Make one update; return the summed loss of this rank's texts (a detached scalar).

    In fp16 a step whose gradients overflow changes nothing, and is made again with a lower loss scale.
    """
    while True:
        before = read_loss_scale(run.engine)
        total = try_step(run, plan, step, rate)
        if not overflowed(run.engine):
            return total
        forget_gradients(run.engine)
        message = require_lower_scale(run.engine, before, total, step, run.ranks)
        if run.ranks.is_main:
            run.recorder.event("log", message=message)


def try_step(run: TrainingRun, plan: StepPlan, step: int, rate: float) -> Tensor:
    """Make one update unless a gradient overflows fp16; return the summed loss of this rank's texts.

    DeepSpeed averages gradients over ranks, so each text's loss is weighted by world_size / N to make the update
    that of the mean over the N texts of the global batch, however they are spread.
    """
    engine, ranks = run.engine, run.ranks
    seed_random(run.spec.seed, step, ranks.rank)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    total = torch.zeros((), device=run.device)
    for number, indices in enumerate(plan.micro_batches, start=1):
        targets = run.loss.targets([run.train.labels[i] for i in indices or [0]], run.num_labels)
        inputs, (there,) = to_device(run.train, indices, run.device, targets)
        logits = engine(*inputs)
        loss = run.loss.sum(logits, there) * (1.0 if indices else 0.0)
        engine.set_gradient_accumulation_boundary(number == len(plan.micro_batches))
        engine.backward(loss * (ranks.world_size / plan.num_samples), scale_wrt_gas=False)
        total += loss.detach()
        del logits, loss  # bitsandbytes' int8 layers keep their inputs as long as the graph is there
    engine.step()
    return total


def seed_random(seed: int, step: int, rank: int) -> None:
    """Seed dropout by place, so that a resumed run draws what an undisturbed one would."""
    value = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    torch.default_generator.manual_seed(value)  # torch.manual_seed seeds all kinds of devices and takes a millisecond
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(value)


def evaluate(run: TrainingRun, state: TrainingState, progress: TrainingProgress) -> Metrics:
    """Return the metrics on validation. All ranks must call it and all get the same."""
    with memory_watched("evaluation", state.step):
        logits = run.logits(run.validation)
    require_finite(logits, run.dtype)
    metrics = compute_metrics(logits, run.validation.labels, run.loss.problem_type)
    if run.ranks.is_main:
        epoch = round(state.step / run.steps_per_epoch, 4)
        run.recorder.event("evaluation", split="validation", step=state.step, epoch=epoch, **metrics)
        progress.say(
            f"epoch {epoch:g}: validation accuracy {metrics['accuracy']:.4f}  "
            f"macro F1 {metrics['macro_f1']:.4f}  loss {metrics['loss']:.4f}"
        )
    return metrics


def note_evaluation(run: TrainingRun, state: TrainingState, metrics: Metrics) -> None:
    """Keep the weights if they are the best so far. All ranks must call it."""
    if is_better(metrics, state.best, run.spec.training.metric_for_best_model):
        state.best = metrics
        state.best_epoch = round(state.step / run.steps_per_epoch, 4)
        state.best_weights = copy_trainable(run.engine.module)
        state.stale_evaluations = 0
    else:
        state.stale_evaluations += 1
