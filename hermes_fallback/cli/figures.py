"""Numbers and names of the journal as people read them; what is unknown is said, never shown as nothing."""

from __future__ import annotations

from .. import explain
from ..explain import calls

UNKNOWN = "unknown"
_SMALLEST_USD = 0.00005


def money(usd: float | None, unknown_costs: int = 0) -> str:
    """Say dollars, with four digits below one; `unknown_costs` is how many calls are not in it."""
    if usd is None:
        return UNKNOWN
    return _dollars(usd) + (f" + {calls(unknown_costs)} of unknown cost" if unknown_costs else "")


def _dollars(usd: float) -> str:
    if usd == 0:
        return "$0"
    if usd < _SMALLEST_USD:
        return "under $0.0001"
    return explain.usd(usd)


def count(number: int | None, unknown: int = 0) -> str:
    """Say how many; `unknown` is how many calls are not in it."""
    if number is None:
        return UNKNOWN
    return f"{number:,}" + (f" + {calls(unknown)} unknown" if unknown else "")


def share(part: float | None) -> str:
    """Say a share; only all of it is 100%, only nothing is 0%."""
    if part is None:
        return UNKNOWN
    if 0 < part < 0.01:  # the percent sign says it
        return "under 1%"
    return "over 99%" if 0.99 < part < 1 else f"{part:.0%}"
