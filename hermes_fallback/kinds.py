"""Which of the user's `task_types` a task is of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .config import Config, Match, TaskType

_PATIENCE_SECONDS = 0.2
"""How long a pattern may be looked for: one like `(a+)+$` takes longer than anybody lives."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a task when it starts; `toolsets` are those of the tools that the model is offered."""

    message: str
    platform: str
    toolsets: frozenset[str]
    cwd: str


def kind_of(config: Config, facts: Facts) -> tuple[TaskType, str] | None:
    """Return the first type that matches, and why, in words without anything of the message."""
    for kind in config.task_types:
        reasons = _reasons(kind.match, facts)
        if reasons is not None:
            return kind, " and ".join(reasons) or "it matches every task"
    return None


def _reasons(match: Match, facts: Facts) -> list[str] | None:
    checked = list(_checked(match, facts))
    return None if None in checked else [reason for reason in checked if reason]


def _checked(match: Match, facts: Facts) -> Iterator[str | None]:
    """Say of each condition why it holds, or None where it does not."""
    if match.message is not None:
        yield "the message matches" if _is_found(match.message, facts.message) else None
    if match.platform:
        yield f"the platform is {facts.platform}" if facts.platform in match.platform else None
    if match.toolsets:
        found = sorted(facts.toolsets.intersection(match.toolsets))
        yield f"it has the toolset {found[0]}" if found else None
    if match.cwd:
        found = [pattern for pattern in match.cwd if _is_in(facts.cwd, pattern)]
        yield f"the folder is in {found[0]}" if found else None


def _is_found(pattern: str, message: str) -> bool:
    # Not `re`, which cannot be stopped, and lets no other thread run meanwhile.
    import regex  # noqa: PLC0415  # only for who has such a pattern

    try:
        return regex.search(pattern, message, timeout=_PATIENCE_SECONDS) is not None
    except TimeoutError:
        words = (
            "%r in `task_types` is given up after %s s, and does not match: write it without a repetition in another"
        )
        logger.warning(words, pattern, _PATIENCE_SECONDS)
        return False


def _is_in(folder: str, pattern: str) -> bool:
    """Tell whether a folder is one that the pattern names, or below one: `~/code` and `~/code/**` mean the same."""
    wanted = str(Path(pattern).expanduser()).removesuffix("/**").rstrip("/") or "/"
    path = Path(folder)
    return any(fnmatchcase(str(one), wanted) for one in (path, *path.parents))
