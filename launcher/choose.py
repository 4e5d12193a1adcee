"""The setting a job runs with: of all that leave what the user wrote as it is, the fastest that fits the cards.

What a study does not set is planned: the DeepSpeed file, gradient checkpointing, how the global batch is cut into
ranks, micro-batches and accumulation. The global batch stays, and with it what is learnt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.board import Request
from launcher.cards import Card, Node
from launcher.cost import CARD, CPU, amounts, seconds
from launcher.expand import CHECKOUT, StudyJob
from launcher.fit import explain, request
from launcher.schedule import room_for
from training.errors import UserError
from training.forecast.memory_estimate import JobForecast, Work
from training.spec import JobSpec

ONE_RANK = ("zero1", "zero2_offload", "zero3_offload_param")
MORE_RANKS = ("zero1", "zero3", "zero3_offload", "zero3_offload_param")
"""Files of ds_configs/ that are tried where the study names none."""

Ask = Callable[[JobSpec], JobForecast | UserError]
"""Returns the forecast of a job, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is planned of a job."""

    deepspeed: str
    """Name of its DeepSpeed file."""
    gradient_checkpointing: bool
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    num_ranks: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return asdict(self)

    def __str__(self) -> str:
        ranks = f"{self.num_ranks} ranks" if self.num_ranks > 1 else "one rank"
        sizes = f"{self.per_device_train_batch_size} x {self.gradient_accumulation_steps}"
        recompute = ", gradient checkpointing" if self.gradient_checkpointing else ""
        file = self.deepspeed.removeprefix("ds_configs/").removesuffix(".json")
        return f"{file}, batch {sizes}, {ranks}{recompute}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting, and why it is not another."""

    setting: Setting
    spec: JobSpec
    """The job under it."""
    forecast: JobForecast
    asked: Request
    seconds: float
    """Expected, without start-up."""
    lost: tuple[tuple[Setting, str], ...] = ()
    """The other settings and why each is not taken."""
    refusal: str | None = None
    """Why it fits no card, where none does; the setting is then the one that needs least."""

    def of(self, job: StudyJob) -> Choice:
        """Return the same for a job that differs in its seed."""
        spec = replace(self.spec, seed=job.spec.seed, name=job.name, output_dir=job.spec.output_dir)
        return replace(self, spec=spec, asked=replace(self.asked, job=job.name))


def choose(
    job: StudyJob,
    work: Work,
    ask: Ask,
    cards: Sequence[Card],
    nodes: Mapping[str, Node],
    *,
    on_card: bool,
    most_ranks: int,
) -> Choice:
    """Return the fastest setting of a job that fits these cards.

    `most_ranks` is how many cards it may spread over for speed; over more only where memory asks for it. Raises
    UserError for what the trainer refuses under every setting.
    """
    search = _Search(job, ask, cards, nodes, on_card=on_card)
    options = [
        Option(setting=setting, spec=spec, seconds=expected_seconds(spec, work, on_card=on_card))
        for setting, spec in settings(job, len(cards))
    ]
    widest = max(most_ranks, job.spec.num_ranks)
    options.sort(key=lambda option: (option.setting.num_ranks > widest, option.seconds))
    for place, option in enumerate(options):
        choice = search.try_option(option)
        if choice is not None:
            slower = [(o.setting, f"{o.seconds / option.seconds:.2f} x as long") for o in options[place + 1 :]]
            return replace(choice, lost=(*search.lost, *slower))
        # Before the many sizes between are asked about: does the smallest of this file and these ranks fit at all?
        search.rule_out_unless_fits(min((o for o in options if o.pair == option.pair), key=lambda o: o.smallness))
    return search.refuse()


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting that a job could run with."""

    setting: Setting
    spec: JobSpec
    """The job under it."""
    seconds: float
    """Expected, without start-up."""

    @property
    def pair(self) -> tuple[int, str]:
        """Return ranks and DeepSpeed file: what decides how the base is held."""
        return (self.setting.num_ranks, self.setting.deepspeed)

    @property
    def smallness(self) -> tuple[int, bool]:
        """Return what orders the options of a pair by the memory they need."""
        return (self.setting.per_device_train_batch_size, not self.setting.gradient_checkpointing)


class _Search:
    """The options of a job that have been tried."""

    def __init__(
        self, job: StudyJob, ask: Ask, cards: Sequence[Card], nodes: Mapping[str, Node], *, on_card: bool
    ) -> None:
        self.job, self.ask, self.cards, self.nodes, self.on_card = job, ask, cards, nodes, on_card
        self.num_equal = max(Counter(card.size for card in cards).values(), default=0)
        """Cards of one size there are at most."""
        self.lost: list[tuple[Setting, str]] = []
        self.least: Choice | None = None
        """The one that needs least of those that fit no card."""
        self.refused: UserError | None = None
        self.hopeless: dict[tuple[int, str], str] = {}
        """Pair of which not even the smallest option fits -> why."""
        self.hopeful: set[tuple[int, str]] = set()
        """Pairs of which the smallest fits."""

    def try_option(self, option: Option) -> Choice | None:
        """Return an option that fits as a choice; note why one does not."""
        why = self.hopeless.get(option.pair)
        if why is None:
            choice, why = self._forecast(option)
            if why is None:
                return choice
        self.lost.append((option.setting, why))
        return None

    def rule_out_unless_fits(self, smallest: Option) -> None:
        """Rule out a pair where its smallest option does not fit."""
        if smallest.pair in self.hopeless or smallest.pair in self.hopeful:
            return
        why = dict(self.lost).get(smallest.setting)
        if why is None:
            _, why = self._forecast(smallest)
        if why is None:
            self.hopeful.add(smallest.pair)
        else:
            self.hopeless[smallest.pair] = why

    def refuse(self) -> Choice:
        """Return the choice that needs least, with why it does not fit. Raises what the trainer refuses all for."""
        if self.least is None:
            assert self.refused is not None
            raise self.refused
        least = self.least
        reason = explain(self.job, least.spec, least.asked, self.cards, self.nodes)
        return replace(least, lost=tuple(self.lost), refusal=reason)

    def _forecast(self, option: Option) -> tuple[Choice | None, str | None]:
        """Return an option as a choice, and why it does not fit if so."""
        too_wide = option.setting.num_ranks > self.num_equal
        why = f"no more than {self.num_equal} of the cards are of one size"
        if too_wide and self.least is not None:  # seconds saved: no forecast would make it fit
            return None, why
        forecast = self.ask(option.spec)
        if isinstance(forecast, UserError):
            self.refused = forecast
            return None, str(forecast)
        asked = request(self.job.name, option.spec, forecast.memory, option.seconds, on_card=self.on_card)
        choice = Choice(
            setting=option.setting, spec=option.spec, forecast=forecast, asked=asked, seconds=option.seconds
        )
        if room_for(asked, self.cards, self.nodes):
            return choice, None
        if self.least is None or asked.card_gib < self.least.asked.card_gib:
            self.least = choice
        if not too_wide:
            in_host = room_for(replace(asked, host_gib=0.0), self.cards, self.nodes)
            gib, where = (asked.host_gib, " of host memory") if in_host else (asked.card_gib, "")
            why = f"needs {gib:.2f} GiB{where} a rank, or more"
        return choice, why


def expected_seconds(spec: JobSpec, work: Work, *, on_card: bool) -> float:
    """Return how long a job takes, without its start-up, by the costs of a kind of card."""
    content = spec.deepspeed if isinstance(spec.deepspeed, dict) else {}
    zero = content.get("zero_optimization") or {}

    def offloads(key: str) -> bool:
        return str((zero.get(key) or {}).get("device", "none")) != "none"

    of_job = amounts(
        spec, work, int(zero.get("stage", 0)),
        offloads_optimizer=offloads("offload_optimizer"), offloads_base=on_card and offloads("offload_param"),
    )  # fmt: skip
    return seconds(CARD if on_card else CPU, of_job)


def settings(job: StudyJob, num_cards: int) -> Iterator[tuple[Setting, JobSpec]]:
    """Yield the settings that keep what the study fixed, its own first."""
    training, fixed = job.spec.training, job.fixed
    recompute = [training.gradient_checkpointing]
    if "training.gradient_checkpointing" not in fixed:
        recompute = [False, True]
    for num_ranks, per_device, accumulation in cuts(job, num_cards):
        for name, content in files(job, num_ranks):
            for checkpointing in recompute:
                setting = Setting(
                    deepspeed=name, gradient_checkpointing=checkpointing, per_device_train_batch_size=per_device,
                    gradient_accumulation_steps=accumulation, num_ranks=num_ranks,
                )  # fmt: skip
                sizes = replace(
                    training, gradient_checkpointing=checkpointing, per_device_train_batch_size=per_device,
                    gradient_accumulation_steps=accumulation,
                )  # fmt: skip
                yield setting, replace(job.spec, training=sizes, deepspeed=content, num_ranks=num_ranks)


def cuts(job: StudyJob, num_cards: int) -> Iterator[tuple[int, int, int]]:
    """Yield (ranks, texts of a micro-batch, micro-batches of a step) that give the job's global batch."""
    training, fixed = job.spec.training, job.fixed
    global_batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * job.spec.num_ranks
    ranks = [job.spec.num_ranks] if "num_ranks" in fixed else [n for n in (1, 2, 4, 8) if n <= num_cards]
    for num_ranks in ranks or [1]:
        size = training.per_device_train_batch_size
        sizes = [size]
        if "training.per_device_train_batch_size" not in fixed:
            sizes = [size // cut for cut in (1, 2, 4, 8, 16, 32) if size >= cut and size % cut == 0]
        for per_device in sizes:
            accumulation, rest = divmod(global_batch, num_ranks * per_device)
            as_written = accumulation == training.gradient_accumulation_steps
            if accumulation and not rest and (as_written or "training.gradient_accumulation_steps" not in fixed):
                yield num_ranks, per_device, accumulation


def files(job: StudyJob, num_ranks: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of the DeepSpeed files to try."""
    assert isinstance(job.spec.deepspeed, dict)
    if "deepspeed" in job.fixed:
        written = job.written.deepspeed
        yield (written if isinstance(written, str) else "its own DeepSpeed settings"), job.spec.deepspeed
        return
    for name in ONE_RANK if num_ranks == 1 else MORE_RANKS:
        path = f"ds_configs/{name}.json"
        yield path, json.loads((CHECKOUT / path).read_text(encoding="utf-8"))
