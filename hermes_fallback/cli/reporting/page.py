"""The report as one page that needs neither network nor script: charts are drawn here, report.html lays them out.

Lengths across are percent of a chart's width and lengths down are pixels, so that a chart fits a phone and its text
keeps its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from math import ceil, floor, log10

from jinja2 import Environment, StrictUndefined

from ... import explain
from .. import figures
from . import summary
from .report import By, Group, Report

Maker = Callable[..., Report]

_MOST_DAYS = 62
_MOST_WEEKS = 62
_TOP, _BOTTOM = 14, 164
_BAR_SHARE = 0.72
_LEAST_BAR = 1.5


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar, and whether a call of unknown cost is missing in it; `title` says it in words."""

    x: float
    width: float
    y: float
    height: float
    is_shadow: bool
    is_short: bool
    title: str

    @property
    def middle(self) -> float:
        """Where its question mark stands."""
        return self.x + self.width / 2


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the scale."""

    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Spend:
    """The chart of dollars over time."""

    bars: tuple[Bar, ...]
    lines: tuple[Line, ...]
    dates: tuple[str, ...]
    words: str


@dataclass(frozen=True, slots=True)
class Row:
    """A trigger's bars, as percent of the longest."""

    name: str
    escalations: int
    paid: str
    percent: float
    shadow: int
    would: str
    shadow_percent: float


def page(make: Maker, *, by: By) -> str:
    """Return the page; `make(by=…)` gives the period's report by what it is asked for."""
    report = make(by=by)
    spans = make(by=_span(report.since, report.until))
    triggers = make(by="trigger")
    local = report.totals.local
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": explain.plain, "count": figures.count, "share": figures.share}
    environment.globals |= {
        "money": figures.money,
        "about": summary.about,
        "label": summary.label,
        "calls": explain.calls,
    }
    template = environment.from_string(files(__package__).joinpath("report.html").read_text("utf-8"))
    return template.render(
        report=report,
        period=summary.period(report),
        facts=summary.facts(report),
        notes=tuple(summary.notes(report)),
        would=summary.shadow(report),
        headings=summary.HEADINGS,
        spans=spans,
        spend=_spend(spans),
        triggers=triggers,
        rows=tuple(_rows(triggers.groups)),
        local=local,
        shows_groups=by not in {"day", "trigger"},
    )


def _span(since: datetime, until: datetime) -> By:
    """Return days, unless there are so many that nobody could tell them apart."""
    days = (until.astimezone().date() - since.astimezone().date()).days + 1
    if days <= _MOST_DAYS:
        return "day"
    return "week" if days <= 7 * _MOST_WEEKS else "month"


def _spend(report: Report) -> Spend:
    groups = report.groups
    has_shadow = bool(report.would)
    costs = [cost for group in groups for cost in (group.sums.paid.cost_usd, group.sums.shadow.cost_usd) if cost]
    top = _round_up(max(costs, default=0.0)) if costs else 0.0
    lines = [(0.0, "$0")] if not top else [(0.0, "$0"), (top / 2, _tick(top / 2)), (top, _tick(top))]
    last = len(groups) - 1
    places = sorted({0, last // 2, last}) if last > 1 else [0, last][: last + 1]
    return Spend(
        tuple(_bars(groups, top, has_shadow=has_shadow)),
        tuple(Line(_height(usd, top), text) for usd, text in lines),
        tuple(groups[place].key for place in places),
        _spend_words(report),
    )


def _bars(groups: Sequence[Group], top: float, *, has_shadow: bool) -> Iterator[Bar]:
    slot = 100 / len(groups)
    width = slot * _BAR_SHARE / (2 if has_shadow else 1)
    for number, group in enumerate(groups):
        left = (number + (1 - _BAR_SHARE) / 2) * slot
        paid, shadow = group.sums.paid, group.sums.shadow
        both = ((paid, False, left), (shadow, True, left + width))
        for calls, is_shadow, x in both:
            if not calls.calls:
                continue
            y = min(_height(calls.cost_usd or 0.0, top), _BOTTOM - _LEAST_BAR if calls.cost_usd else _BOTTOM)
            words = (
                f"shadow, not paid: {summary.about(calls)}"
                if is_shadow
                else figures.money(calls.cost_usd, calls.unknown_costs)
            )
            title = f"{group.key}: {words}"
            yield Bar(x, width, y, _BOTTOM - y, is_shadow, bool(calls.unknown_costs), title)


def _height(usd: float, top: float) -> float:
    return _BOTTOM - (usd / top * (_BOTTOM - _TOP) if top else 0.0)


def _round_up(usd: float) -> float:
    """Return the next 1, 2, 4 or 5 of its power of ten: halves of these are short."""
    power = 10.0 ** floor(log10(usd))
    return next(step for step in (1, 2, 4, 5, 10) if step * power >= usd * (1 - 1e-9)) * power


def _tick(usd: float) -> str:
    return f"${usd:,.{max(0, ceil(-log10(usd)) + 1) if usd < 1 else 0 if usd == int(usd) else 1}f}"


def _spend_words(report: Report) -> str:
    paid = [group for group in report.groups if group.sums.paid.calls]
    noun = str(report.by)
    if not paid:
        words = f"Nothing was paid in the {len(report.groups)} {noun}s."
    else:
        dearest = max(paid, key=lambda group: group.sums.paid.cost_usd or 0.0)
        total = report.totals.paid
        words = (
            f"{figures.money(total.cost_usd, total.unknown_costs)} was paid on {len(paid)} of {len(report.groups)} "
            f"{noun}s; most on {dearest.key}: {figures.money(dearest.sums.paid.cost_usd)}."
        )
    if report.would:
        words += f" In shadow, not paid: {summary.about(report.totals.shadow)}."
    return words


def _rows(groups: Sequence[Group]) -> Iterator[Row]:
    most = max((max(group.sums.paid.escalations, group.sums.shadow.escalations) for group in groups), default=0) or 1
    for group in sorted(groups, key=lambda one: (-one.sums.paid.escalations, -one.sums.shadow.escalations, one.key)):
        paid, shadow = group.sums.paid, group.sums.shadow
        yield Row(
            summary.label(group),
            paid.escalations,
            figures.money(paid.cost_usd, paid.unknown_costs),
            100 * paid.escalations / most,
            shadow.escalations,
            summary.about(shadow),
            100 * shadow.escalations / most,
        )
