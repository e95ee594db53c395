"""Which of the user's `task_types` a task is of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .config import Config, Match, TaskType


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
        yield "the message matches" if re.search(match.message, facts.message) else None
    if match.platform:
        yield f"the platform is {facts.platform}" if facts.platform in match.platform else None
    if match.toolsets:
        found = sorted(facts.toolsets.intersection(match.toolsets))
        yield f"it has the toolset {found[0]}" if found else None
    if match.cwd:
        found = [pattern for pattern in match.cwd if _is_in(facts.cwd, pattern)]
        yield f"the folder is in {found[0]}" if found else None


def _is_in(folder: str, pattern: str) -> bool:
    """Tell whether a folder is one that the pattern names, or below one: `~/code` and `~/code/**` mean the same."""
    wanted = str(Path(pattern).expanduser()).removesuffix("/**").rstrip("/") or "/"
    path = Path(folder)
    return any(fnmatchcase(str(one), wanted) for one in (path, *path.parents))
