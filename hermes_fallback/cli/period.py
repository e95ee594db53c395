"""What `--since` means: a time back from now as people write it, in hours, or from the beginning of a local day."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

_AGO = re.compile(r"(\d{1,6})([hdw])", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 24 * 7}
_MOST_DAYS = 3660


@dataclass(frozen=True, slots=True)
class Since:
    """`12h`: so many hours. `30d`, `8w`: so many whole local days, today among them. `2026-11-01`: from that day on."""

    hours: int | None = None
    days: int | None = None
    first_day: date | None = None

    def before(self, now: datetime) -> datetime:
        """Return when the period that ends now began, in local time."""
        if self.hours is not None:
            # By way of UTC, for the clocks may have changed since; whole seconds, as the journal has them.
            return (now.astimezone(UTC) - timedelta(hours=self.hours)).astimezone().replace(microsecond=0)
        first = self.first_day or now.astimezone().date() - timedelta(days=(self.days or 1) - 1)
        # Through a naive local time: the offset then may be another one than now (daylight saving).
        return datetime.combine(first, time.min).astimezone()


def hours(text: str) -> int:
    """Return how many hours `12h`, `30d` or `8w` are.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    match = _AGO.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"“{text}” is no time; write for example 12h, 30d or 8w")
    return int(match[1]) * _HOURS[match[2]]


def since(text: str) -> Since:
    """Return what `12h`, `30d`, `8w` or `2026-11-01` say.

    Raises:
        argparse.ArgumentTypeError: it is none of these, nothing at all, in the future, or more than ten years.
    """
    today = datetime.now().astimezone().date()
    chosen = _from_date(text, today) if _DATE.fullmatch(text) else _from_ago(text)
    back = today - chosen.first_day if chosen.first_day else timedelta(hours=chosen.hours or 24 * (chosen.days or 0))
    if back > timedelta(days=_MOST_DAYS):
        raise argparse.ArgumentTypeError(f"“{text}” is too long ago; ten years is the most")
    return chosen


def _from_date(text: str, today: date) -> Since:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"“{text}” is no day of the calendar") from None
    if day > today:
        raise argparse.ArgumentTypeError(f"“{text}” is in the future; name a day that has begun")
    return Since(first_day=day)


def _from_ago(text: str) -> Since:
    try:
        count = hours(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"“{text}” is no time; write for example 12h, 30d, 8w or 2026-11-01") from None
    if not count:
        raise argparse.ArgumentTypeError(f"“{text}” is no time at all; write for example 12h, 30d, 8w or 2026-11-01")
    return Since(hours=count) if text.endswith("h") else Since(days=count // 24)
