"""What must hold after a soak, and while it runs: each check returns what violates it, in sentences.

The journal is read with SQL of its own, not through our module; the bills are those of the paid endpoint.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.soak.endpoints import Bill

_TINY_USD = 1e-9
_FAULTS = (
    "hermes-fallback failed in",
    "cannot be loaded",
    "could not be written",
    "cannot be written",
    "cannot be read",
    "is missing in the report",
    "the journal was corrupt",
    "Middleware 'llm_execution' callback",
    "Hook '",
    "told to a user",
)
"""What no log may say: faults of ours, and data that was lost."""


@dataclass(frozen=True, slots=True)
class Call:
    """A row of the journal's calls, with its escalation's session."""

    id: int
    session_id: str
    turn_id: str
    task_id: str
    state: str
    reserved_usd: float | None
    cost_usd: float | None
    input_tokens: int | None
    output_tokens: int | None

    @property
    def usd(self) -> float:
        """What it counts with: what it cost, or what is reserved for it."""
        return self.cost_usd if self.cost_usd is not None else self.reserved_usd or 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration allows; `total_usd` is the day's or the month's, which a soak does not outlive."""

    task_usd: float
    session_usd: float
    total_usd: float
    escalations: int


def bills_in(path: Path) -> list[Bill]:
    """Return what the paid endpoint has written down so far."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Bill(**json.loads(line)) for line in lines if line.endswith("\n")]


def calls_in(path: Path) -> list[Call]:
    """Return the calls of a journal."""
    query = (
        "SELECT c.id, e.session_id, c.turn_id, c.task_id, c.state, c.reserved_usd, c.cost_usd, c.input_tokens,"
        " c.output_tokens FROM calls c JOIN escalations e ON e.id = c.escalation ORDER BY c.id"
    )
    return [Call(*row) for row in rows(path, query)]


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what a reader of the file sees."""
    # Not read-only: who looks first after a kill undoes what was half written.
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        return connection.execute(query).fetchall()


def tag_of(turn_id: str) -> str:
    """Return the tag of a turn by its id: Hermes's whole agent makes one of the session's."""
    session, colon, _ = turn_id.partition(":")
    return f"{session}.0" if colon else turn_id


def account_of(tag: str) -> str:
    """Return the session that pays for a turn."""
    return tag.partition(".")[0]


def task_of(tag: str) -> str:
    """Return the turn that pays for a turn: a sub-agent's parent."""
    return tag.partition("+")[0]


def budget_by_bills(bills: Sequence[Bill], limits: Limits) -> Iterator[str]:
    """No task, no session, and all together cost more than allowed, by what the provider asks for."""
    yield from _over("billed", ((bill.tag, bill.usd) for bill in bills), limits)


def budget_by_journal(calls: Sequence[Call], limits: Limits) -> Iterator[str]:
    """The same by our own books, reservations included."""
    yield from _over("journaled", ((tag_of(call.turn_id), call.usd) for call in calls), limits)


def _over(word: str, amounts: Iterable[tuple[str, float]], limits: Limits) -> Iterator[str]:
    tasks: defaultdict[str, float] = defaultdict(float)
    sessions: defaultdict[str, float] = defaultdict(float)
    for tag, usd in amounts:
        tasks[task_of(tag)] += usd
        sessions[account_of(tag)] += usd
    for what, sums, limit in (("task", tasks, limits.task_usd), ("session", sessions, limits.session_usd)):
        for name, usd in sums.items():
            if usd > limit + _TINY_USD:
                yield f"{what} {name} {word} ${usd:.6f}, and its limit is ${limit:.6f}"
    total = sum(sessions.values())
    if total > limits.total_usd + _TINY_USD:
        yield f"all together {word} ${total:.6f}, and the limit is ${limits.total_usd:.6f}"


def escalations(journal: Path, limits: Limits) -> Iterator[str]:
    """No session had more escalations than allowed; those that gave nothing do not count."""
    query = (
        "SELECT session_id, count(*) FROM escalations e WHERE EXISTS (SELECT 1 FROM calls c"
        " WHERE c.escalation = e.id AND c.state <> 'failed') GROUP BY session_id"
    )
    for session_id, count in rows(journal, query):
        if count > limits.escalations:
            yield f"session {session_id} had {count} escalations, and its limit is {limits.escalations}"


def bills_have_rows(bills: Sequence[Bill], calls: Sequence[Call]) -> Iterator[str]:
    """What the provider asks for stands in the journal, request by request; an answer that was paid is an answer."""
    billed = Counter(bill.tag for bill in bills)
    journaled = Counter(tag_of(call.turn_id) for call in calls)
    answered = Counter(tag_of(call.turn_id) for call in calls if call.state == "answered")
    for tag in billed.keys() | journaled.keys():
        if billed[tag] > journaled[tag]:
            yield f"turn {tag}: {billed[tag]} requests were billed, and {journaled[tag]} calls are journaled"
        if answered[tag] > billed[tag]:
            yield f"turn {tag}: {answered[tag]} calls are journaled as answered, and {billed[tag]} were billed"


def sums_agree(bills: Sequence[Bill], calls: Sequence[Call]) -> Iterator[str]:
    """Where all calls of a turn were answered and told their usage, journal and bills agree to the token."""
    billed: defaultdict[str, list[Bill]] = defaultdict(list)
    journaled: defaultdict[str, list[Call]] = defaultdict(list)
    for bill in bills:
        billed[bill.tag].append(bill)
    for call in calls:
        journaled[tag_of(call.turn_id)].append(call)
    for tag, of_turn in journaled.items():
        if any(call.state != "answered" for call in of_turn):
            continue
        if any(bill.fault == "tells no usage" for bill in billed[tag]):
            continue
        asked = sorted((bill.input_tokens, bill.output_tokens) for bill in billed[tag])
        written = sorted((call.input_tokens or 0, call.output_tokens or 0) for call in of_turn)
        usd = [sum(bill.usd for bill in billed[tag]), sum(call.usd for call in of_turn)]
        if asked != written or abs(usd[0] - usd[1]) > _TINY_USD:
            yield f"turn {tag}: billed {asked} (${usd[0]:.6f}), journaled {written} (${usd[1]:.6f})"


def rows_without_an_end(calls: Sequence[Call], killed: Iterable[str]) -> Iterator[str]:
    """A call without an end is one of a process that was killed in the middle of it; `killed` are its sessions."""
    sessions = set(killed)
    for call in calls:
        if call.state in {"started", "expired"} and account_of(tag_of(call.turn_id)).partition("w")[0] not in sessions:
            yield f"call {call.id} of turn {call.turn_id} is {call.state}, and nobody was killed there"


def sound(journal: Path) -> Iterator[str]:
    """The file is one that SQLite finds no fault with."""
    found = [str(row[0]) for row in rows(journal, "PRAGMA integrity_check")]
    if found != ["ok"]:
        yield f"integrity_check: {found[:3]}"
    broken = rows(journal, "PRAGMA foreign_key_check")
    if broken:
        yield f"foreign_key_check: {broken[:3]}"


def references(journal: Path) -> Iterator[str]:
    """Every escalation came with a call: they are written in one transaction."""
    for (row,) in rows(journal, "SELECT id FROM escalations WHERE id NOT IN (SELECT escalation FROM calls)"):
        yield f"escalation {row} has no call"


def turns_are_journaled(journal: Path, done: Iterable[str]) -> Iterator[str]:
    """Every turn that ended stands in the journal with the local calls that it had; `done` are lines of the workers."""
    journaled = dict(rows(journal, "SELECT turn_id, local_calls FROM tasks"))
    for line in done:
        tag, replies = line.split()
        found = journaled.get(tag, 0)
        if found != int(replies):
            yield f"turn {tag} had {replies} local replies, and {found} are journaled"


def nobody_off_paid(bills: Sequence[Bill]) -> Iterator[str]:
    """A session that was left with /escalate off paid nothing, also in the process that took it over."""
    for bill in bills:
        if "!" in bill.tag:
            yield f"turn {bill.tag} is one of a session that is off, and was billed"


def bills_are_of_turns(bills: Sequence[Bill]) -> Iterator[str]:
    """Nothing was paid for that no turn asked for."""
    for bill in bills:
        if not bill.tag:
            yield f"a request of no turn was billed: {bill}"


def logs_are_clean(logs: Iterable[Path]) -> Iterator[str]:
    """No fault of ours was logged, and nothing that was lost."""
    found: Counter[str] = Counter()
    for path in logs:
        for line in path.read_text(errors="replace").splitlines():
            if any(words in line for words in _FAULTS):
                found[re.sub(r"^\S+ \S+ |\d+", "", line)[:200]] += 1
    for line, count in found.most_common(20):
        yield f"logged {count} times: {line}"


def nothing_leaks(statuses: Sequence[dict[str, Any]], *, growth_mb: float) -> Iterator[str]:
    """A process that lived long holds at its end what it held when it was warm; with all sessions over, nothing."""
    if not statuses:
        yield "the worker that is never killed has told nothing of itself"
        return
    last = statuses[-1]
    if not last["final"]:
        yield "the worker that is never killed has not ended by itself"
        return
    kept = {name: size for name, size in last["kept"].items() if size and name not in _KEPT_ON_PURPOSE}
    if kept:
        yield f"with all sessions over, there is kept: {kept}"
    running = {name: count for name, count in last["names"].items() if name.startswith(_OUR_THREADS)}
    if running:
        yield f"with all sessions over, there run: {running}"
    warm = warm_part(statuses)
    if not warm:
        yield "the worker that is never killed was not there long enough to tell"
        return
    half = len(warm) // 2
    for name, most in (("rss_mb", growth_mb), ("files", 40), ("threads", 40)):
        early = max(status[name] for status in warm[: half or 1])
        late = max(status[name] for status in warm[half:])
        if late > early + most:
            yield f"{name} grew from {early:.0f} to {late:.0f}"


_OUR_THREADS = ("hermes-fallback", "person")
"""Hermes has threads that watch and clean up, and litellm a pool; those stay."""
_KEPT_ON_PURPOSE = frozenset({"adapter.told", "guard.told"})
"""What was said once is not said again: one entry for each kind, however often it happens."""


def warm_part(statuses: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a process told of itself after the first fifth of its turns, and before it let go."""
    done = [status["done"] for status in statuses]
    from_ = done[0] + (done[-1] - done[0]) / 5
    return [status for status in statuses if status["done"] >= from_ and not status["final"]]
