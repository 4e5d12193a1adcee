"""The training loss against written-out formulas, torch and scikit-learn; and that no cut of a batch changes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from training.batches import plan_step
from training.errors import UserError
from training.loss import TrainingLoss, class_weights, require_fitting
from training.spec import TrainingSpec

NAMES = ["a", "b", "c"]
WEIGHTS = torch.tensor([0.5, 4.0, 1.5])


def draw(seed: int, texts: int = 40, classes: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(texts, classes, generator=generator, dtype=dtype) * 3
    return logits.requires_grad_(), torch.randint(classes, (texts,), generator=generator)


def test_the_default_is_cross_entropy_to_the_bit() -> None:
    loss = TrainingLoss.of(TrainingSpec(), NAMES, [0, 1, 2], "cpu")
    for seed in range(20):
        logits, labels = draw(seed)
        (found,) = torch.autograd.grad(loss.sum(logits, labels), logits)
        (expected,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
        assert loss.sum(logits, labels).equal(F.cross_entropy(logits, labels, reduction="sum"))
        assert found.equal(expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_loss_is_that_of_the_formula(gamma: float, weights: Tensor | None) -> None:
    logits, labels = draw(7)
    log_p = log_softmax(logits.detach().double().numpy(), axis=1)[np.arange(len(labels)), labels.numpy()]
    each = (1 - np.exp(log_p)) ** gamma * -log_p
    each *= 1.0 if weights is None else weights.numpy()[labels.numpy()]
    found = TrainingLoss(weights=weights, focal_gamma=gamma).sum(logits, labels)
    assert found.item() == pytest.approx(each.sum(), rel=1e-5)


def test_weights_are_those_of_torch() -> None:
    logits, labels = draw(3)
    found = TrainingLoss(weights=WEIGHTS).sum(logits, labels)
    # torch's mean is over the weights, ours over the texts.
    mean = F.cross_entropy(logits, labels, weight=WEIGHTS)
    assert found.item() == pytest.approx((mean * WEIGHTS[labels].sum()).item(), rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS.double()])
def test_focal_gradients_are_those_of_finite_differences(weights: Tensor | None) -> None:
    logits, labels = draw(5, texts=6, dtype=torch.float64)
    for gamma in (0.5, 2.0):
        loss = TrainingLoss(weights=weights, focal_gamma=gamma)
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss.sum(x, labels), (logits,))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_nears_cross_entropy_as_gamma_nears_zero(weights: Tensor | None) -> None:
    logits, labels = draw(11)
    small, none = (TrainingLoss(weights=weights, focal_gamma=gamma).sum(logits, labels) for gamma in (1e-7, 0.0))
    assert small.item() == pytest.approx(none.item(), rel=1e-5)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (small, none)))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_what_is_certain_has_no_gradient_but_a_finite_one(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    loss = TrainingLoss(focal_gamma=gamma).sum(logits, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(200.0) and gradient.isfinite().all() and not gradient[0].any()


def test_balanced_weights_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        classes = int(generator.integers(2, 7))
        labels = generator.choice(classes, size=int(generator.integers(2, 60)), p=generator.dirichlet(np.ones(classes)))
        occurring = np.unique(labels)
        names = [str(index) for index in range(classes)]
        found = class_weights(TrainingSpec(class_weights="balanced"), names, labels.tolist())
        assert found is not None
        expected = compute_class_weight("balanced", classes=occurring, y=labels)
        np.testing.assert_allclose(np.array(found)[occurring], expected, rtol=1e-12)
        assert np.array(found)[labels].mean() == pytest.approx(1.0)  # the learning rate means what it did


def test_weights_by_name_are_one_where_none_is_given() -> None:
    spec = TrainingSpec(class_weights={"b": 3.0})
    require_fitting(spec, NAMES)
    assert class_weights(spec, NAMES, [0, 1]) == [1.0, 3.0, 1.0]
    assert class_weights(TrainingSpec(), NAMES, [0, 1]) is None


def test_a_weight_of_no_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"class_weights names 'spamm'.*did you mean 'spam'.*'ham', 'spam'"):
        require_fitting(TrainingSpec(class_weights={"spamm": 3.0}), ["ham", "spam"])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("token_budget", [16, 40, 1000])
def test_ranks_and_cuts_add_up_to_the_same_step(world_size: int, token_budget: int) -> None:
    """What optimizer_step does, and the mean over ranks that DeepSpeed takes, against one batch."""
    logits, labels = draw(13, texts=30)
    lengths = [(3 + index % 14,) for index in range(30)]
    loss = TrainingLoss(weights=WEIGHTS, focal_gamma=2.0)
    total = torch.zeros_like(logits)
    batch: list[int] = []
    for rank in range(world_size):
        plan = plan_step(
            1, lengths, seed=0, global_batch_size=13, rank=rank, world_size=world_size, token_budget=token_budget
        )
        for indices in filter(None, plan.micro_batches):
            part = loss.sum(logits[indices], labels[indices]) * (world_size / plan.num_samples)
            total += torch.autograd.grad(part, logits)[0] / world_size
            batch += indices
    assert len(batch) == 13
    (expected,) = torch.autograd.grad(loss.sum(logits[batch], labels[batch]) / 13, logits)
    torch.testing.assert_close(total, expected)
