"""The setting a job runs with: of all that leave what the user wrote as it is, the fastest that fits the cards.

What a study does not set is planned: the DeepSpeed file, gradient checkpointing, how the global batch is cut into
ranks, micro-batches and accumulation. The global batch stays, and with it what is learnt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.board import Request
from launcher.cards import Card, Node
from launcher.expand import StudyJob
from launcher.fit import explain, request
from launcher.schedule import room_for
from launcher.settings import Setting, expected_seconds, settings
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
    """Expected, without start-up."""
    lost: tuple[Lost, ...] = ()
    """The other settings, the fastest first."""
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
            slower = [search.not_tried(other, option) for other in options[place + 1 :]]
            return replace(choice, lost=(*search.lost, *slower))
        # Before the many sizes between are asked about: does the smallest of this file and these ranks fit at all?
        alike = [other for other in options if other.setting.pair == option.setting.pair]
        search.rule_out_unless_fits(min(alike, key=lambda other: other.setting.smallness))
    return search.refuse()


@dataclass(frozen=True, kw_only=True)
class Option:
    """A setting that a job could run with."""

    setting: Setting
    spec: JobSpec
    """The job under it."""
    seconds: float
    """Expected, without start-up."""


class _Search:
    """The options of a job that have been tried."""

    def __init__(
        self, job: StudyJob, ask: Ask, cards: Sequence[Card], nodes: Mapping[str, Node], *, on_card: bool
    ) -> None:
        self.job, self.ask, self.cards, self.nodes, self.on_card = job, ask, cards, nodes, on_card
        self.num_equal = max(Counter(card.size for card in cards).values(), default=0)
        """Cards of one size there are at most."""
        self.lost: list[Lost] = []
        self.least: Choice | None = None
        """The one that needs least of those that fit no card."""
        self.refused: UserError | None = None
        self.too_large: dict[Setting, str] = {}
        """Setting that was found not to fit -> why."""
        self.hopeless: dict[tuple[int, str], str] = {}
        """Pair of which not even the smallest option fits -> why."""
        self.hopeful: set[tuple[int, str]] = set()
        """Pairs of which the smallest fits."""

    def try_option(self, option: Option) -> Choice | None:
        """Return an option that fits as a choice; note why one does not."""
        why = self.too_large.get(option.setting) or self.hopeless.get(option.setting.pair)
        if why is None:
            choice, why = self._forecast(option)
            if why is None:
                return choice
        self.lost.append(Lost(setting=option.setting, why=why))
        return None

    def not_tried(self, option: Option, taken: Option) -> Lost:
        """Return why an option that comes after the one taken is not: it does not fit either, or is no faster."""
        why = self.too_large.get(option.setting) or self.hopeless.get(option.setting.pair)
        if why is None and option.setting.num_ranks > self.num_equal:
            why = self.too_wide
        if why is not None:
            return Lost(setting=option.setting, why=why)
        return Lost(setting=option.setting, why=_longer(option.seconds / taken.seconds), too_large=False)

    @property
    def too_wide(self) -> str:
        """Return why more ranks than equal cards do not run."""
        return f"no more than {self.num_equal} of the cards are of one size"

    def rule_out_unless_fits(self, smallest: Option) -> None:
        """Rule out a pair where its smallest option does not fit."""
        if smallest.setting.pair in self.hopeless or smallest.setting.pair in self.hopeful:
            return
        why = self.too_large.get(smallest.setting)
        if why is None:
            _, why = self._forecast(smallest)
        if why is None:
            self.hopeful.add(smallest.setting.pair)
        else:
            self.hopeless[smallest.setting.pair] = f"{why}, or more" if why.startswith("needs") else why

    def refuse(self) -> Choice:
        """Return the choice that needs least, with why it does not fit. Raises what the trainer refuses all for."""
        if self.least is None:
            assert self.refused is not None
            raise self.refused
        least = self.least
        reason = explain(least.spec, least.asked, self.cards, self.nodes)
        return replace(least, lost=tuple(self.lost), refusal=reason)

    def _forecast(self, option: Option) -> tuple[Choice | None, str | None]:
        """Return an option as a choice, and why it does not fit if so."""
        choice, why = self._try(option)
        if why is not None:
            self.too_large[option.setting] = why
        return choice, why

    def _try(self, option: Option) -> tuple[Choice | None, str | None]:
        too_wide = option.setting.num_ranks > self.num_equal
        why = self.too_wide
        if too_wide and self.least is not None:  # seconds saved: no forecast would make it fit
            return None, why
        forecast = self.ask(option.spec, option.setting.deepspeed)
        if isinstance(forecast, UserError):
            self.refused = forecast
            return None, str(forecast)
        asked = request(self.job.name, option.spec, forecast.memory, option.seconds, on_card=self.on_card)
        choice = Choice(
            setting=option.setting, spec=option.spec, forecast=forecast, asked=asked, seconds=option.seconds
        )
        if room_for(asked, self.cards, self.nodes):
            return choice, None
        if self.least is None or self._need(choice) < self._need(self.least):
            self.least = choice
        if not too_wide:
            in_host = room_for(replace(asked, host_gib=0.0), self.cards, self.nodes)
            gib, where = (asked.host_gib, " of host memory") if in_host else (asked.card_gib, "")
            why = f"needs {gib:.2f} GiB{where} a rank"
        return choice, why

    def _need(self, choice: Choice) -> tuple[bool, float]:
        """Return what orders those that fit no card: more ranks than equal cards are what a study need not have."""
        return (choice.setting.num_ranks > self.num_equal, choice.asked.card_gib)


def _longer(ratio: float) -> str:
    """Return how much longer a setting takes, in words."""
    if ratio < 0.995:
        return f"takes {ratio:.2f} x as long, on cards that the other jobs need"
    return f"takes {ratio:.2f} x as long" if ratio >= 1.005 else "takes as long"
