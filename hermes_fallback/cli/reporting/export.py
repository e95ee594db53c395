"""The report for scripts: as JSON and as the rows of a CSV file. What these hold is documented in docs/report.md."""

from __future__ import annotations

from collections.abc import Mapping

from ..tables import cell
from .report import Calls, Local, Report, Sums

JSON_VERSION = 1
"""Raised when a field goes or changes its meaning; new ones may come."""


def as_object(report: Report) -> dict[str, object]:
    """Return the report for JSON; null is unknown, or the local side of a division that it does not have."""
    return {
        "version": JSON_VERSION,
        "by": report.by,
        "since": report.since.isoformat(timespec="seconds"),
        "until": report.until.isoformat(timespec="seconds"),
        "time_zone": report.zone,
        "estimate_by_prices_of": report.tier,
        "totals": _sums(report.totals),
        "forgotten_usd": report.forgotten_usd,
        "groups": [{"key": group.key, **_sums(group.sums)} for group in report.groups],
        "shadow_escalations": [
            {"model": would.model, "trigger": would.trigger, **_shadow(would.calls)} for would in report.would
        ],
    }


def as_rows(report: Report) -> list[list[str]]:
    """Return a header and a row for each group, with the fields of the JSON; what is unknown is empty."""
    names = [report.by.replace("-", "_"), *_columns(report.totals)]
    rows = [[cell(group.key), *_columns(group.sums).values()] for group in report.groups]
    return [names, *rows]


def _sums(sums: Sums) -> dict[str, object]:
    return {
        "paid": _paid(sums.paid),
        "shadow": _shadow(sums.shadow),
        "local": None if sums.local is None else _local(sums.local),
        "all_paid_usd": sums.all_paid_usd,
        "saved_usd": sums.saved_usd,
    }


def _paid(paid: Calls) -> dict[str, object]:
    return {
        "escalations": paid.escalations,
        "calls": paid.calls,
        "answered": paid.answered,
        "failed": paid.failed,
        "interrupted": paid.interrupted,
        "expired": paid.expired,
        "started": paid.started,
        "success": paid.success,
        **_used(paid),
    }


def _shadow(shadow: Calls) -> dict[str, object]:
    return {"escalations": shadow.escalations, "calls": shadow.calls, **_used(shadow)}


def _used(used: Calls) -> dict[str, object]:
    return {
        "input_tokens": used.input_tokens,
        "calls_with_unknown_input_tokens": used.unknown_input,
        "output_tokens": used.output_tokens,
        "calls_with_unknown_output_tokens": used.unknown_output,
        "cost_usd": used.cost_usd,
        "calls_with_unknown_cost": used.unknown_costs,
    }


def _local(local: Local) -> dict[str, object]:
    return {
        "tasks": local.tasks,
        "tasks_stayed": local.stayed,
        "share_stayed": local.share,
        "tasks_would_escalate": local.would_escalate,
        "calls": local.calls,
        "calls_with_unknown_tokens": local.untold_calls,
        "input_tokens": local.input_tokens,
        "output_tokens": local.output_tokens,
        "paid_usd": local.paid_usd,
    }


def _columns(sums: Sums) -> dict[str, str]:
    local = _local(sums.local or Local(0, 0, 0, 0, 0, 0, 0, None))
    if sums.local is None:
        local = dict.fromkeys(local)
    parts: Mapping[str, Mapping[str, object]] = {
        "": _paid(sums.paid),
        "shadow_": _shadow(sums.shadow),
        "local_": local,
        "estimate_": {"all_paid_usd": sums.all_paid_usd, "saved_usd": sums.saved_usd},
    }
    return {prefix + name: cell(value) for prefix, part in parts.items() for name, value in part.items()}
