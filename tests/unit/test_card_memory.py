"""A rank's part of a card: how much it may take, what it asks for when that was too little, what it really took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from launcher.board import Board, Placement, Request
from launcher.cards import Card, Node
from launcher.running import RunningJob, asked_again, limit_of
from training import rank, resume
from training.card_memory import cap, measured
from training.card_memory.allocator import EXPANDABLE, settings_name, use_expandable_segments
from training.card_memory.cap import CardSpace, limit_card_memory, more_gib, share_of_pytorch
from training.forecast.memory_estimate import CUDA_CONTEXT, GIB, NCCL_BUFFERS
from training.memory import OutOfMemory, is_out_of_memory, peak_memory_bytes
from training.plan import Plan, RetryWith
from training.ranks import Ranks
from training.spec import DataSpec, JobSpec

MIB = 1 << 20
PLAN = Plan.of(JobSpec(data=DataSpec(train_file="t.csv")))


def ranks_of(card_gib: float | None = None, card_most_gib: float | None = None, world_size: int = 1) -> Ranks:
    return Ranks(world_size=world_size, master_port=1, num_threads=1, card_gib=card_gib, card_most_gib=card_most_gib)


def test_what_lies_beside_the_tensors_is_taken_off_the_limit() -> None:
    """Two jobs of two ranks, each on half of two cards: with NCCL's buffers they must not over-book them."""
    assert share_of_pytorch(5.0, 1) == 5 * GIB - CUDA_CONTEXT
    assert share_of_pytorch(5.0, 2) + CUDA_CONTEXT + NCCL_BUFFERS == 5 * GIB
    assert share_of_pytorch(0.1, 1) == 0


@pytest.mark.parametrize(("card_gib", "fractions"), [(6.0, [(6 * GIB - CUDA_CONTEXT) / (12 * GIB)]), (None, [])])
def test_a_rank_is_limited_where_it_shares_its_card(
    card_gib: float | None, fractions: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float] = []
    monkeypatch.setattr(cap, "card_space", lambda: CardSpace(free=11 * GIB, total=12 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    limit_card_memory(ranks_of(card_gib))
    assert limits == pytest.approx(fractions)


@pytest.mark.parametrize(
    ("had", "most", "free_mib", "more"),
    [
        (1.0, 11.7, 9000, 1.5),
        (8.0, 11.7, 3000, 9.2),
        (11.0, 11.7, 3000, 11.7),
        (11.69, 11.7, 3000, None),  # all that any job can have
        (8.0, 11.7, 10, None),  # the card is full
        (None, 11.7, 3000, None),  # nothing limited it
    ],
)
def test_more_is_asked_for_while_the_card_has_it(
    had: float | None, most: float, free_mib: int, more: float | None
) -> None:
    found = more_gib(ranks_of(had, most), CardSpace(free=free_mib * MIB, total=12 * GIB))
    assert found == (None if more is None else pytest.approx(more))


@pytest.mark.parametrize("phase", ["loading the model", "training", "evaluation"])
def test_out_of_memory_at_the_limit_asks_for_more_of_the_card_and_keeps_the_batch(
    phase: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rank, "card_space", lambda: CardSpace(free=6 * GIB, total=12 * GIB))
    error = OutOfMemory(phase, 7, RuntimeError("CUDA out of memory"))
    retry = rank.retry_or_give_up(PLAN, error, ranks_of(4.0, 11.7))
    assert isinstance(retry, RetryWith) and "card_gib 4.0 -> 4.6" in str(retry)
    assert retry.plan == replace(PLAN, card_gib=4710 / 1024, retries=retry.plan.retries)
    assert retry.plan.retries[0]["changes"] == {"card_gib": [4.0, 4710 / 1024]}
    # With all of the card it is the batch that gets smaller; a base that does not load is given up.
    last = rank.retry_or_give_up(PLAN, error, ranks_of(11.7, 11.7))
    if phase == "loading the model":
        assert "Nothing is left to make smaller" in str(last)
    else:
        assert isinstance(last, RetryWith) and last.plan.card_gib == 0.0


def card_of(**changes: Any) -> Card:
    content: dict[str, Any] = {"node_id": "a", "host": "a", "index": 0, "size": 11.7, "gib": 11.7, "num_threads": 4}
    return Card(**content | changes)


def placed(card: Card, *gib: float) -> tuple[list[Placement], Board]:
    """Return jobs that have these parts of a card, and the board with all of them on it."""
    node = Node(node_id="a", host="a", total_gib=64.0, host_gib=64.0, cores=8)
    board = Board([card], {"a": node})
    placements = [
        Placement(request=Request(job=str(number), card_gib=each), cards=(card,)) for number, each in enumerate(gib)
    ]
    for placement in placements:
        board.take(placement)
    return placements, board


def test_a_limit_holds_where_another_job_has_or_could_have_a_part_of_the_card() -> None:
    (first, second), board = placed(card_of(), 8.0, 3.5)
    assert [limit_of(each, each.cards[0], board) for each in (first, second)] == [8.0, 3.5]
    (alone,), board = placed(card_of(), 8.0)
    assert limit_of(alone, alone.cards[0], board) == 8.0  # another may come
    (alone,), board = placed(card_of(), 11.3)
    assert limit_of(alone, alone.cards[0], board) is None
    (with_another_studys,), board = placed(card_of(gib=8.0), 7.8)
    assert limit_of(with_another_studys, with_another_studys.cards[0], board) == 7.8


def test_a_job_that_needs_more_of_a_card_waits_for_more() -> None:
    (placement,), _ = placed(card_of(), 4.0)
    running = RunningJob(
        job=None,
        spec=None,
        placement=placement,
        workdir="",
        group=None,
        reservation=None,
        give_up_at=0.0,  # type: ignore[arg-type]
    )
    assert asked_again(running) == placement.request
    plan = PLAN.with_more("training", 3, "out of memory", 4.0, 4.6)
    running.outcomes[0] = {"ok": False, "error": "", "plan": plan.__dict__}
    assert asked_again(running) == replace(placement.request, card_gib=4710 / 1024)
    # All of a card of 12,005 MiB is no more than that, and the job stays in the precision it has trained in.
    size = 12005 / 1024
    assert PLAN.with_more("training", 3, "out of memory", 11.0, size).card_gib == size
    cards = tuple(replace(card, size=size, gib=size) for card in placement.cards)
    request = replace(placement.request, instead=(replace(placement.request, precision="fp16"),))
    running.placement = Placement(request=request, cards=cards)
    plan = PLAN.with_more("training", 3, "out of memory", 11.0, 12.0)
    running.outcomes[0] = {"ok": False, "error": "", "plan": plan.__dict__}
    assert asked_again(running) == replace(placement.request, card_gib=size)


def test_segments_expand_unless_the_user_says_otherwise() -> None:
    assert settings_name("2.8.0") == "PYTORCH_CUDA_ALLOC_CONF"
    assert settings_name("2.13.0+cu130") == "PYTORCH_ALLOC_CONF"
    environment: dict[str, str] = {}
    use_expandable_segments(environment)
    assert environment == {settings_name(torch.__version__): EXPANDABLE}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        environment = {name: "max_split_size_mb:128"}
        use_expandable_segments(environment)
        assert environment == {name: "max_split_size_mb:128"}


@pytest.mark.parametrize(
    ("message", "is_memory"),
    [
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx( handle, opa, opb, m, n, k)`", False),
    ],
)
def test_what_a_full_card_says_is_known(message: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) is is_memory


def test_the_checkpoint_is_shared_by_way_of_host_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL would send it through the card, three fp32 copies of what is trained; running out there is watched."""
    said: list[Any] = []

    def broadcast(found: list[Any], src: int, group: Any) -> None:
        said.append(group)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(resume, "dist", SimpleNamespace(
        get_backend=lambda: "nccl", new_group=lambda backend: backend, broadcast_object_list=broadcast,
        destroy_process_group=lambda _: None,
    ))  # fmt: skip
    with pytest.raises(OutOfMemory):
        resume.shared_start(
            JobSpec(data=DataSpec(train_file="t.csv")), ranks_of(world_size=2), tmp_path, "", lambda _: None
        )
    assert said == ["gloo"]


def test_what_a_rank_holds_is_counted_by_allocator_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([(900, 2000), (1200, 1500)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 700)
    monkeypatch.setattr(measured, "reserved_bytes", lambda: 800)
    monkeypatch.setattr(measured, "driver_bytes", lambda: next(used))
    monkeypatch.setattr(measured, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr("training.memory.peaks_of_process", measured.CardPeaks())
    peak_memory_bytes()
    assert peak_memory_bytes() | {"host_bytes": 0} == {
        "gpu_bytes": 700, "host_bytes": 0, "gpu_reserved_bytes": 800, "gpu_process_bytes": 1200, "gpu_used_bytes": 2000
    }  # fmt: skip
