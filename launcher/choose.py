"""The setting a job runs with: of all that leave what the user wrote as it is, the fastest that fits the cards.

What a study does not set is planned: the DeepSpeed file, gradient checkpointing, how the global batch is cut into
ranks, micro-batches and accumulation. The global batch stays, and with it what is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.board import Request, placed_alone, room_for
from launcher.cards import Card, CardKind, Node
from launcher.cost import expected_seconds, measured_costs, records_of
from launcher.expand import StudyJob
from launcher.fit import equal_cards, explain, request
from launcher.links import link_of_ranks
from launcher.settings import Setting, settings
from training.calibration.record import CardRecord
from training.errors import UserError
from training.forecast.memory_estimate import JobForecast, Work
from training.spec import JobSpec

Ask = Callable[[JobSpec, str], JobForecast | UserError]
"""Returns the forecast of a job, in seconds; messages call its DeepSpeed settings by the name given."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A setting that is not taken."""

    setting: Setting
    why: str
    too_large: bool = True
    """Whether it does not fit; of a slower one that is not known."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting, and why it is not another."""

    setting: Setting
    spec: JobSpec
    """The job under it."""
    forecast: JobForecast
    asked: Request
    seconds: float
    """Expected, from its start to its end, on the cards it gets when nothing else runs."""
    card: CardKind | None = None
    """Which these are; None where it fits none."""
    is_measured: bool = False
    """Whether that is by what `shoal calibrate` has measured; else by guesses."""
    lost: tuple[Lost, ...] = ()
    """The other settings, the fastest first."""
    refusal: str | None = None
    """Why it fits no card, where none does; the setting is then the one that needs least."""
    instead: tuple[Choice, ...] = ()
    """How it runs on cards of other precisions; `asked` holds what it asks for there."""

    def of(self, job: StudyJob) -> Choice:
        """Return the same for a job that differs in its seed."""
        spec = replace(self.spec, seed=job.spec.seed, name=job.name, output_dir=job.spec.output_dir)
        asked = self.asked.renamed(job.name, self.asked.priority)
        return replace(self, spec=spec, asked=asked, instead=tuple(other.of(job) for other in self.instead))

    def on(self, given: Request) -> Choice:
        """Return how the job runs with what it was given of what it asked for."""
        return next((other for other in self.instead if other.asked.precision == given.precision), self)

    def or_else(self, others: Sequence[Choice]) -> Choice:
        """Return the same for a job that may run in another way, on cards of other precisions."""
        asked = replace(self.asked, instead=tuple(other.asked for other in others))
        return replace(self, asked=asked, instead=tuple(others))


def choose(
    job: StudyJob,
    work: Work,
    ask: Ask,
    cards: Sequence[Card],
    nodes: Mapping[str, Node],
    *,
    on_card: bool,
    most_ranks: int,
    least: bool = False,
    precision: str = "",
) -> Choice:
    """Return the fastest setting of a job that fits these cards, fastest on the kind of them where it ends soonest.

    Where the cards decide on its `precision`, it is given; it must be that of all these cards.

    `most_ranks` is how many cards it may spread over for speed; over more only where memory asks for it. With `least`
    the question is whether any fits: of each DeepSpeed file and number of ranks only the smallest is tried, and what
    fits first is returned. Raises UserError for what the trainer refuses under every setting.
    """
    search = _Search(job, ask, cards, nodes, on_card=on_card, precision=precision)
    records = records_of(cards, on_card=on_card)
    options = [
        Option(
            setting=setting,
            spec=spec,
            seconds_on=_seconds_on(spec, work, cards, on_card=on_card, records=records),
            is_measured=all(measured_costs(spec, work, record) is not None for record in records.values()),
        )
        for setting, spec in settings(job, len(cards))
    ]
    widest = max(most_ranks, job.spec.num_ranks)
    options.sort(key=lambda option: (option.setting.num_ranks > widest, option.seconds))
    for place, option in enumerate(options):
        alike = _smallest_of_each_batch(options, option.setting.pair)
        choice = search.smallest(alike).choice if least else search.try_option(option)
        if choice is not None and least:
            return choice
        if choice is not None:
            slower = [search.not_tried(other, option) for other in options[place + 1 :]]
            return replace(choice, lost=(*search.lost, *slower))
        # Before the many sizes between are asked about: does the smallest of this file and these ranks fit at all?
        search.rule_out_unless_fits(alike)
    return search.refuse()


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting that a job could run with."""

    setting: Setting
    spec: JobSpec
    """The job under it."""
    seconds_on: dict[str, float]
    """Kind of card, as text -> what is expected there, from its start to its end."""
    is_measured: bool
    """Whether that is by what was measured."""

    @property
    def seconds(self) -> float:
        """Return what is expected on the fastest of the cards."""
        return min(self.seconds_on.values())


def _seconds_on(
    spec: JobSpec, work: Work, cards: Sequence[Card], *, on_card: bool, records: Mapping[str, CardRecord | None]
) -> dict[str, float]:
    """Return kind of card, as text -> how long a job is expected to take there."""
    link = link_of_ranks(spec.num_ranks, cards)
    return {
        str(card.kind): expected_seconds(
            spec, work, on_card=on_card, record=records[card.name], link=link, kind=card.kind
        )
        for card in {card.kind: card for card in cards}.values()
    }


def _smallest_of_each_batch(options: Sequence[Option], pair: tuple[int, str]) -> list[Option]:
    """Return the options of a pair that need least, one for each micro-batch, the smallest first."""
    found: dict[int, Option] = {}
    for option in sorted(options, key=lambda option: option.setting.smallness):
        if option.setting.pair == pair:
            found.setdefault(option.setting.per_device_train_batch_size, option)
    return list(found.values())


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What came of an option."""

    choice: Choice | None = None
    """Where it fits."""
    why_not: str = ""
    """Where it does not."""
    is_refused: bool = False
    """By the trainer, and not for its memory."""


class _Search:
    """The options of a job that have been tried."""

    def __init__(
        self,
        job: StudyJob,
        ask: Ask,
        cards: Sequence[Card],
        nodes: Mapping[str, Node],
        *,
        on_card: bool,
        precision: str,
    ) -> None:
        self.job, self.ask, self.cards, self.nodes, self.on_card = job, ask, cards, nodes, on_card
        self.precision = precision
        self.num_equal = max(map(len, equal_cards(cards).values()), default=0)
        """Equal cards there are at most."""
        self.lost: list[Lost] = []
        self.least: Choice | None = None
        """The one that needs least of those that fit no card."""
        self.refused: UserError | None = None
        """What the trainer said first."""
        self.tried: dict[Setting, _Tried] = {}
        self.hopeless: dict[tuple[int, str], str] = {}
        """Pair of which not even the smallest option fits -> why."""
        self.hopeful: set[tuple[int, str]] = set()
        """Pairs of which the smallest fits."""

    def try_option(self, option: Option) -> Choice | None:
        """Return an option that fits as a choice; note why one does not."""
        why_not = self._known_not(option)
        if not why_not:
            tried = self._forecast(option)
            if tried.choice is not None:
                return tried.choice
            why_not = tried.why_not
        self.lost.append(Lost(setting=option.setting, why=why_not))
        return None

    def not_tried(self, option: Option, taken: Option) -> Lost:
        """Return why an option that comes after the one taken is not: it does not fit either, or is no faster."""
        why_not = self._known_not(option)
        if not why_not and option.setting.num_ranks > self.num_equal:
            why_not = self.too_wide
        if why_not:
            return Lost(setting=option.setting, why=why_not)
        return Lost(setting=option.setting, why=_longer(option.seconds / taken.seconds), too_large=False)

    @property
    def too_wide(self) -> str:
        """Return why more ranks than equal cards do not run."""
        return f"no more than {self.num_equal} of the cards are equal"

    def smallest(self, options: Sequence[Option]) -> _Tried:
        """Return what came of the smallest of these options, of one pair, that the trainer does not refuse.

        It may take one micro-batch alone, which a DeepSpeed file names; what it refuses two for it refuses all for.
        """
        reasons: set[str] = set()
        for option in options:
            tried = self._forecast(option)
            if not tried.is_refused or tried.why_not in reasons:
                break
            reasons.add(tried.why_not)
        return tried

    def rule_out_unless_fits(self, options: Sequence[Option]) -> None:
        """Rule out a pair where the smallest of its options does not fit."""
        pair = options[0].setting.pair
        if pair in self.hopeless or pair in self.hopeful:
            return
        tried = self.smallest(options)
        if tried.choice is not None:
            self.hopeful.add(pair)
        else:
            needs = tried.why_not.startswith("needs")
            self.hopeless[pair] = f"{tried.why_not}, or more" if needs else tried.why_not

    def refuse(self) -> Choice:
        """Return the choice that needs least, with why it does not fit. Raises what the trainer refuses all for."""
        if self.least is None:
            assert self.refused is not None
            raise self.refused
        least = self.least
        reason = explain(least.spec, least.asked, self.cards, self.nodes)
        return replace(least, lost=tuple(self.lost), refusal=reason)

    def _known_not(self, option: Option) -> str:
        """Return why an option is known not to fit; empty where that is not known."""
        tried = self.tried.get(option.setting)
        return tried.why_not if tried is not None else self.hopeless.get(option.setting.pair, "")

    def _forecast(self, option: Option) -> _Tried:
        """Return what came of an option, asked for once."""
        tried = self.tried.get(option.setting)
        if tried is None:
            tried = self.tried[option.setting] = self._try(option)
        return tried

    def _try(self, option: Option) -> _Tried:
        too_wide = option.setting.num_ranks > self.num_equal
        if too_wide and self.least is not None:  # seconds saved: no forecast would make it fit
            return _Tried(why_not=self.too_wide)
        forecast = self.ask(option.spec, option.setting.deepspeed)
        if isinstance(forecast, UserError):
            self.refused = self.refused or forecast
            return _Tried(why_not=str(forecast), is_refused=True)
        asked = request(self.job.name, option.spec, forecast.memory, option.seconds_on, on_card=self.on_card)
        asked = replace(asked, precision=self.precision)
        choice = Choice(
            setting=option.setting, spec=option.spec, forecast=forecast, asked=asked, seconds=option.seconds,
            is_measured=option.is_measured,
        )  # fmt: skip
        if placement := placed_alone(asked, self.cards, self.nodes):
            return _Tried(choice=replace(choice, seconds=placement.seconds, card=placement.cards[0].kind))
        if self.least is None or self._need(choice) < self._need(self.least):
            self.least = choice
        if too_wide:
            return _Tried(why_not=self.too_wide)
        in_host = room_for(replace(asked, host_gib=0.0), self.cards, self.nodes)
        gib, where = (asked.host_gib, " of host memory") if in_host else (asked.card_gib, "")
        return _Tried(why_not=f"needs {gib:.2f} GiB{where} a rank")

    def _need(self, choice: Choice) -> tuple[bool, float]:
        """Return what orders those that fit no card: more ranks than equal cards are what a study need not have."""
        return (choice.setting.num_ranks > self.num_equal, choice.asked.card_gib)


def _longer(ratio: float) -> str:
    """Return how much longer a setting takes, in words."""
    if ratio < 0.995:
        return f"takes {ratio:.2f} x as long, on cards that the other jobs need"
    return f"takes {ratio:.2f} x as long" if ratio >= 1.005 else "takes as long"
