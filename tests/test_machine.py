"""What is promised about money, against all that users, models, providers, disks and Hermes may do, in any order.

Hypothesis plays them; the plugin is the real one, behind Hermes's own plugin manager, middleware and approval gate, with
its journal on disk and litellm before a strict endpoint. What must hold is said anew here, naively, from the user's side:
no function of the plugin is asked for it. The witnesses are the endpoint's requests and its own bill, the journal's file
at the moment of each request, the calls of the local model, and what comes out of the middleware.

`make machine` looks for longer, at random, and shrinks what it finds.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from hermes_fallback import host
from hermes_fallback.adapter import Adapter
from hermes_fallback.handoff import STEER_CLOSE, STEER_OPEN
from hermes_fallback.journal import Journal
from tests.endpoints import Answer, fail, say
from tests.test_escalation import JOURNAL
from tests.world import HOME, MODEL, World

BERLIN = ZoneInfo("Europe/Berlin")
# Two days before the end of a month, and the day before the clocks change.
BEGINNING = datetime(2026, 3, 28, 9, tzinfo=BERLIN)

# A price in dollars per million tokens; `big` is another model on the local endpoint.
TIERS: dict[str, dict[str, Any]] = {
    "mini": {"provider": "openai", "max_tokens": 150, "price": (10, 50)},
    "large": {"provider": "openai", "max_tokens": 300, "price": (20, 100)},
    "open": {"provider": "openai", "price": (5, 10)},
    "big": {"provider": "primary", "max_tokens": 100, "price": (1, 2)},
}
ALL = frozenset({"repeated_tool_failure", "invalid_output", "no_progress", "task_timeout", "user_request"}) | {
    "provider_error",
    "silent_failure",
    "risk",
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
    for name in ("read_file", "terminal", "delegate_task")
]
STEERED = f"\n\n{STEER_OPEN}\nescalate{{}}\n{STEER_CLOSE}"
MESSAGES = (
    *("do it", "read notes.txt and tell me what is in it", "/escalate", "/escalate off", "/escalate auto"),
    *(f"a {kind} one" for kind in ("hard", "free", "tried", "kept", "cheap", "other")),
)
KINDS = [
    {"name": "hard", "start_on": "fallback"},
    {"name": "free", "enabled": False},
    {"name": "tried", "enabled": "shadow"},
    {"name": "kept", "hold": "session"},
    {"name": "cheap", "hold": 1, "budget": {"per_task_usd": 0.03}},
    {"name": "other", "fallback": ["large"], "max_local_attempts": 1},
]
GARBAGE = '<tool_call>\n{"name": "read_file", "arguments": {"path": "a.txt"}}\n</tool_call>'

OFF = "never paid while off"
ONE = "never two tiers in one call"
BACK = "back on the local model, unless there is a reason"
ROW = "no paid request without its row"
BUDGET = "spent is within the budget"
CONSENT = "no money without a yes, and never silently"
ANSWER = "the answer is the local model's, the tier's, or the words of a stop"
HELP = "what can be escalated is"

# What comes about dozens of times in a run; a run without it would show nothing.
WORTH = (
    *("back in the same task", "held for task", "stopped", "refused: too many", "stuck in shadow", "stuck while off"),
    *("stuck while the journal is locked", "sub-agent", "taken after another tier failed", "taken though off", "left"),
    *("taken by repeated_tool_failure", "taken by user_request", "a person says yes", "a person says no"),
    *("tier answers", "tier works", "tier empty", "tier hiccup", "tier 500", "tier 401", "tier 429", "tier broken"),
    "tier useless",
    *("left for broken calls", "beside", "steered off", "steered auto"),
)


@dataclass(frozen=True)
class Rules:
    """The user's configuration as it reads for one message."""

    ladder: tuple[str, ...]
    enabled: bool | str
    triggers: frozenset[str]
    attempts: int
    hold: str | int
    confirm: str
    limits: Mapping[str, float]
    most: int | None
    on_exceeded: str
    starts_up: bool

    @property
    def is_free(self) -> bool:
        """Nothing but the user's word and the tiers themselves stands in an escalation's way."""
        return self.enabled is True and not self.limits and self.most is None and self.confirm == "never"


def rules_for(block: Mapping[str, Any], message: str) -> Rules:
    """The configuration for a message: the first kind of task whose word is in it overrides what it names."""
    kind: Mapping[str, Any] = next((kind for kind in block["task_types"] if kind["name"] in message), {})
    policy = {**block["fallback_policy"], **kind}
    budget = {**block["fallback_policy"]["budget"], **kind.get("budget", {})}
    return Rules(
        ladder=tuple(kind.get("fallback", block["fallback"])),
        enabled=policy["enabled"],
        triggers=frozenset(policy.get("trigger_on", ALL)),
        attempts=policy["max_local_attempts"],
        hold=policy["hold"],
        confirm=policy["confirm"],
        limits={key: value for key, value in budget.items() if key.startswith("per_")},
        most=budget.get("max_escalations_per_session"),
        on_exceeded=budget["on_exceeded"],
        starts_up=policy.get("start_on") == "fallback",
    )


def written(block: Mapping[str, Any]) -> str:
    """The block as it stands in config.yaml."""

    def tier(name: str) -> dict[str, Any]:
        dollars = TIERS[name]["price"]
        price = {"input_per_million_usd": dollars[0], "output_per_million_usd": dollars[1]}
        return {**TIERS[name], "model": name, "price": price}

    def with_tiers(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {**entry, **({"fallback": list(map(tier, entry["fallback"]))} if "fallback" in entry else {})}

    kinds = [{**with_tiers(kind), "match": {"message": kind["name"]}} for kind in block["task_types"]]
    return yaml.safe_dump({"model_routing": {**with_tiers(block), "task_types": kinds}})


@dataclass(frozen=True)
class Local:
    """What the local model does when it is asked: it says `text`, calls a tool, or raises `status`."""

    text: str = ""
    tool: str = ""
    status: int = 0


@dataclass(frozen=True)
class Move:
    """What the world does meanwhile: the tiers, one after the other, the person, and the disk.

    `greedy`: the tiers bill all that they may.
    """

    tiers: tuple[str, ...]
    person: str
    greedy: bool
    fault: str


@dataclass
class Facts:
    """What was seen in a task since the model that has it took it."""

    failures: int = 0
    has_just_failed: bool = False
    results: Counter[str] = field(default_factory=Counter)
    useless: int = 0
    garbled: bool = False
    raised: int = 0
    is_gone: bool = False
    doubtful: bool = False
    trouble: bool = False


@dataclass(eq=False)
class Turn:
    """One message of the user's and what came of it; `task` is the turn that pays."""

    id: str
    text: str
    rules: Rules
    since: float
    opened: bool
    asked: bool = False
    """The user said /escalate for it, and no tier has taken it since."""
    despite_off: bool = False
    """The user said /escalate for it after /escalate off."""
    parent: Turn | None = None
    spoken: bool = False
    forged: bool = False
    """A tool pretended to be the user, so that nothing steered is heeded any more."""
    moved: bool = False
    is_moving: bool = False
    """Its session has a new id, and the next model call brings it."""
    taken: bool = False
    refused: bool = False
    lifted: set[str] = field(default_factory=set)
    """The limits that a person let it go beyond."""
    calls: int = 0
    retries: int = 0
    failed: set[str] = field(default_factory=set)
    facts: Facts = field(default_factory=Facts)

    @property
    def task(self) -> Turn:
        """The turn that pays: of a sub-agent's, its parent's."""
        return self if self.parent is None else self.parent.task


@dataclass
class Hold:
    """A tier that took a task."""

    tier: str
    index: int
    trigger: str
    turn: Turn
    rule: str | int
    replies: int = 1
    is_sure: bool = True
    is_broken: bool = False
    """Its last reply asked for a call that cannot be made."""


@dataclass(eq=False)
class Chat:
    """A session, under whatever id; `paid` are its escalations that were answered."""

    id: str
    parent: Chat | None = None
    is_beside: bool = False
    """Whether it does a task of its own, by /background."""
    old_id: str = ""
    messages: list[dict[str, Any]] = field(default_factory=lambda: [{"role": "system", "content": "You help."}])
    turn: Turn | None = None
    off: bool = False
    off_on_disk: bool = False
    asked: bool = False
    consented: bool = False
    is_known: bool = False
    """This process has read its switch, or heard it."""
    is_left: bool = False
    """Its last turn broke off, and what the user said since may be taken for said in it."""
    is_unread: bool = False
    """Its switch could not be read when it was needed, so that it may be taken for off."""
    hold: Hold | None = None
    paid: set[int] = field(default_factory=set)

    @property
    def account(self) -> Chat:
        """The session that pays: of a sub-agent's, its parent's."""
        return self if self.parent is None else self.parent.account

    @property
    def platform(self) -> str:
        """Where it is seen, as Hermes tells."""
        return "cli" if self.parent is None or self.is_beside else "subagent"

    @property
    def known_id(self) -> str:
        """Its id as far as anybody was told: of a new one, Hermes tells with the next model call."""
        return self.old_id if self.turn is not None and self.turn.is_moving else self.id


@dataclass
class Request:
    """A request as a tier got it."""

    tier: str
    row: int | None
    escalation: int | None
    trigger: str
    is_new: bool
    does: str
    said: str = ""
    usd: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether it got a whole answer."""
        return self.does in {"answers", "works", "broken"}


@dataclass
class Call:
    """One model call of Hermes's."""

    chat: Chat
    turn: Turn
    local: Local
    move: Move
    held: bool
    plan: list[str]
    requests: list[Request] = field(default_factory=list)
    local_calls: int = 0
    response: Any = None
    error: Exception | None = None
    yes: bool = False
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bill:
    """What a tier wants for a request, by its own count."""

    row: int
    usd: float
    turn: Turn
    chat: Chat
    at: datetime
    state: str


class LocalError(Exception):
    """The local endpoint's own."""

    def __init__(self, status: int) -> None:
        super().__init__(f"Error code: {status}")
        self.status_code = status


class ClockedAdapter(Adapter):
    """The adapter in a time that is not ours."""

    def __init__(self, wall: Callable[[], datetime], **options: Any) -> None:
        super().__init__(**options)
        self._wall = wall

    @property
    def journal(self) -> Journal:
        """The journal, whose days are the machine's."""
        return Journal(HOME / "hermes-fallback", now=self._wall)


class Agent:
    """What Hermes keeps in a turn, as far as we look for it: the screen, and the road to the local endpoint."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def _emit_status(self, line: str) -> None:
        if self._machine.call is not None:
            self._machine.call.notices.append(line)

    def _interruptible_streaming_api_call(self, request: dict[str, Any]) -> Any:
        return self._machine.local_endpoint(request)


def cost(tier: str, tokens_in: int, tokens_out: int) -> float:
    """What a tier's provider wants."""
    dollars = TIERS[tier]["price"]
    return float((tokens_in * dollars[0] + tokens_out * dollars[1]) / 1e6)


def response_of(answer: Answer) -> Any:
    """An answer as Hermes's client gives it."""
    calls = [
        SimpleNamespace(id=f"c{n}", type="function", function=SimpleNamespace(name=name, arguments=arguments))
        for n, (name, arguments) in enumerate(answer.calls)
    ]
    message = SimpleNamespace(role="assistant", content=answer.text, tool_calls=calls or None)
    choice = SimpleNamespace(index=0, message=message, finish_reason="tool_calls" if calls else "stop")
    usage = SimpleNamespace(prompt_tokens=answer.usage[0], completion_tokens=answer.usage[1])
    return SimpleNamespace(id="local", model=MODEL, choices=[choice], usage=usage)


def said_by(response: Any) -> str:
    """What a response says, or the arguments that it calls a tool with."""
    message = response.choices[0].message
    return str(message.tool_calls[0].function.arguments if message.tool_calls else message.content or "")


def in_journal(query: str) -> list[sqlite3.Row]:
    """Rows of the file, as anybody may read them."""
    if not JOURNAL.exists() or not JOURNAL.stat().st_size:
        return []
    with closing(sqlite3.connect(f"file:{JOURNAL}?mode=ro", uri=True, timeout=0)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(query).fetchall()


CALLS = (
    "SELECT c.id, c.escalation, c.state, c.cost_usd, c.reserved_usd, c.turn_id, c.task_id, e.session_id, e.to_model,"
    " e.trigger FROM calls c JOIN escalations e ON e.id = c.escalation WHERE NOT e.is_shadow ORDER BY c.id"
)

NAMED = {
    "for this task is left": "per_task_usd",
    "for this session is left": "per_session_usd",
    "today is left": "per_day_usd",
    "this month is left": "per_month_usd",
    "this session has had its": "max_escalations_per_session",
}
"""By what words a question names a limit."""

LIMITS = {
    "per_task_usd": (0.0, 0.02, 0.06),
    "per_session_usd": (0.03, 0.1),
    "per_day_usd": (0.04, 0.15),
    "per_month_usd": (0.06, 0.25),
    "max_escalations_per_session": (0, 1, 2),
}


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    """A configuration: mostly one in which something can happen."""
    policy: dict[str, Any] = {
        "enabled": draw(st.sampled_from([True] * 8 + [False, "shadow"])),
        "max_local_attempts": draw(st.sampled_from([1, 1, 2, 3])),
        "hold": draw(st.sampled_from(["task", "task", "session", 1, 2])),
        "confirm": draw(st.sampled_from(["never"] * 4 + ["first_in_session", "always"])),
    }
    if draw(st.booleans()) and draw(st.booleans()):
        policy["trigger_on"] = sorted(draw(st.sets(st.sampled_from(sorted(ALL)), min_size=1)))
    limits = draw(st.lists(st.sampled_from(sorted(LIMITS)), max_size=2, unique=True)) if draw(st.booleans()) else []
    policy["budget"] = {
        "on_exceeded": draw(st.sampled_from(["local", "local", "ask", "stop"])),
        **{name: draw(st.sampled_from(LIMITS[name])) for name in limits},
    }
    ladder = draw(st.lists(st.sampled_from(sorted(TIERS)), min_size=1, max_size=3, unique=True))
    return {"fallback": ladder, "fallback_policy": policy, "task_types": KINDS if draw(st.booleans()) else []}


WHICH = st.integers(0, 3)
FAULTS = st.sampled_from([""] * 12 + ["locked", "locked at the end"])
MOVES = st.builds(
    Move,
    tiers=st.lists(
        st.sampled_from(
            ["answers"] * 2
            + ["works"] * 5
            + ["500", "429", "401", "cut", "empty", "useless", "hiccup"]
            + ["broken"] * 2
        ),
        max_size=3,
    ).map(tuple),
    person=st.sampled_from(["yes", "yes", "no", "absent"]),
    greedy=st.booleans(),
    fault=FAULTS,
)
ACTS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *[Local(tool="fails")] * 5,
                *[Local(tool="repeats")] * 4,
                *(Local(tool=tool) for tool in ("gets on", "finds nothing", "forges")),
                *[Local(text="Here it is: 42.")] * 2,
                *(Local(text=text) for text in ("I cannot do that.", "Let me check the file now.", GARBAGE, "")),
                *(Local(status=status) for status in (503, 404)),
            ]
        ),
        MOVES,
    ),
    min_size=1,
    max_size=4,
)
HAPPENINGS = ["new session", "resumed", "left", "compressed", "compressed", "process ends", "deleted", "corrupt"]


class Machine(RuleBasedStateMachine):
    """Two sessions that a user types into, their sub-agents, and all that may happen to them."""

    def __init__(self, world: World, reached: Counter[str]) -> None:
        super().__init__()
        self.world, self.reached = world, reached
        self.now = 0.0
        self.count = 0
        self.call: Call | None = None
        self.broken: dict[str, list[str]] = {}
        self.bills: list[Bill] = []
        self.known: set[int] = set()
        self.is_corrupt = False
        self.lock: sqlite3.Connection | None = None
        self.children: list[Chat] = []
        self.ended: list[Chat] = []
        shutil.rmtree(HOME / "hermes-fallback", ignore_errors=True)
        for left in HOME.glob("state.db*"):
            left.unlink()
        self.slots = [Chat(self.name("session")), Chat(self.name("session"))]
        world.paid.script = self.serve
        self.process_starts()

    def name(self, what: str) -> str:
        """A name that nothing else has."""
        self.count += 1
        return f"{what}-{self.count}"

    def clock(self) -> float:
        """Seconds that never stand still."""
        self.now += 0.001
        return self.now

    def wall(self) -> datetime:
        """What the clock on the wall shows."""
        return (BEGINNING + timedelta(seconds=self.now)).astimezone(UTC)

    def process_starts(self) -> None:
        """A new process of Hermes's, in the same home."""
        self.world.plugin._adapter = ClockedAdapter(  # noqa: SLF001
            self.wall, read_config=host.read_config, home=host.hermes_home, manager=self.world.manager, clock=self.clock
        )

    def breaks(self, promise: str, how: str) -> None:
        """Keep what must not happen."""
        self.broken.setdefault(promise, []).append(how)

    @property
    def running(self) -> list[Chat]:
        """The sessions in which a turn runs."""
        return [chat for chat in (*self.slots, *self.children) if chat.turn is not None]

    @property
    def delegating(self) -> list[Chat]:
        """The sessions whose model may just have called for a sub-agent."""
        return [chat for chat in self.running if chat.turn and chat.turn.calls and not chat.turn.is_moving]

    def family(self, chat: Chat) -> list[Chat]:
        """A session and the sub-agents that work for it, and for these."""
        children = [one for child in self.children if child.parent is chat for one in self.family(child)]
        return [chat, *children]

    # What the user does.

    @initialize(block=blocks())
    def user_configures(self, block: dict[str, Any]) -> None:
        """The first configuration."""
        self.user_changes_the_configuration(block)

    @rule(block=blocks())
    def user_changes_the_configuration(self, block: dict[str, Any]) -> None:
        """It counts from the next message on."""
        self.block = block
        self.world.configure(written(block))

    @rule(which=WHICH, text=st.sampled_from(MESSAGES), fault=FAULTS, acts=ACTS)
    def user_says(self, which: int, text: str, fault: str, acts: list[tuple[Local, Move]]) -> None:
        """A turn starts, and goes on as far as it goes."""
        chat = self.slots[which % 2]
        if chat.turn is None:
            self.starts(chat, text, fault)
        self.works(chat, acts)

    def starts(self, chat: Chat, text: str, fault: str = "", *, parent: Turn | None = None) -> None:
        """A message comes to a session, from its user or from the agent that has it as its sub-agent."""
        if parent is not None and not parent.opened:
            # Its parent works without us, and began when it was so configured; this one begins now.
            parent = None
        rules = parent.rules if parent is not None else rules_for(self.block, text)
        enabled = [
            self.block["fallback_policy"]["enabled"],
            *(kind.get("enabled") for kind in self.block["task_types"]),
        ]
        turn = Turn(self.name("turn"), text, rules, self.now, opened=any(enabled), parent=parent)
        turn.asked = turn.despite_off = chat.asked and turn.opened
        chat.asked = False
        chat.turn = turn
        chat.is_unread = bool(fault) or self.is_corrupt or chat.is_left
        chat.is_left = False
        chat.messages.append({"role": "user", "content": text})
        with self.faulty(fault):
            self.hook(
                "pre_llm_call",
                chat,
                turn_id=turn.id,
                user_message=text,
                conversation_history=list(chat.messages),
                is_first_turn=len(chat.messages) < 3,
                sender_id="",
            )
        chat.is_known = chat.is_known or not (fault or self.is_corrupt)
        turn.since = self.now
        if not turn.opened or not text.startswith("/"):
            return
        word = text.removeprefix("/escalate").strip()
        triggers = self.block["fallback_policy"].get("trigger_on", ALL)
        if word == "off":
            self.is_off(chat)
        elif word == "auto":
            self.is_auto(chat)
        elif "user_request" in triggers:
            self.is_asked(chat)
        # What is left of the turn is the command's answer.
        turn.spoken = bool(word) or "user_request" not in triggers

    @rule(which=WHICH, word=st.sampled_from(["", "", "off", "off", "auto", "status", "why"]), fault=FAULTS)
    def user_types_escalate(self, which: int, word: str, fault: str) -> None:
        """A command, between turns or in one; what it answers is what counts for the user."""
        chat = self.slots[which % 2]
        if chat.turn is not None and chat.turn.moved:
            return  # the surfaces of Hermes know the new id when the turn is over
        self.look_at(chat)
        chat.is_unread = chat.is_unread or bool(fault) or self.is_corrupt
        with self.faulty(fault):
            reply = self.world.command(word)
            is_read = not (fault or self.is_corrupt or reply.startswith("hermes-fallback is"))
            chat.is_known = chat.is_known or is_read
        if ("takes over" in reply and not word) or reply.startswith("Noted"):
            self.is_asked(chat)
        elif reply.startswith("Off:"):
            self.is_off(chat)
            if "Only until" not in reply and not chat.off_on_disk:
                self.breaks(ANSWER, f"this is not kept: {reply}")
        elif reply.startswith("Auto:"):
            self.is_auto(chat)

    def look_at(self, chat: Chat) -> None:
        """The CLI shows this session."""
        self.world.manager._cli_ref = SimpleNamespace(session_id=chat.id)  # noqa: SLF001

    def is_asked(self, chat: Chat) -> None:
        """The user said /escalate: for the task that runs, or for the next message."""
        turn = chat.turn
        if turn is None or not turn.opened:
            chat.asked = True
            return
        turn.asked = turn.despite_off = True
        turn.refused = False
        turn.failed.clear()

    def is_off(self, chat: Chat) -> None:
        """The user said /escalate off, which ends whatever holds, for sub-agents as well."""
        for one in self.family(chat):
            one.off, one.is_known, one.hold, one.asked = True, True, None, False
            if one.turn is not None:
                one.turn.asked = one.turn.despite_off = False
        chat.off_on_disk = self.is_off_on_disk(chat)

    def is_auto(self, chat: Chat) -> None:
        """The user said /escalate auto."""
        for one in self.family(chat):
            one.off = False
        chat.off_on_disk = self.is_off_on_disk(chat)

    def is_off_on_disk(self, chat: Chat) -> bool:
        """Whether the file says that the session is off."""
        try:
            rows = in_journal("SELECT session_id FROM switches WHERE is_off")
        except sqlite3.Error:
            return False
        return chat.id in [row["session_id"] for row in rows]

    @rule(
        which=WHICH,
        word=st.sampled_from(["", "", " off", " auto"]),
        act=st.tuples(st.just(Local(tool="gets on")), MOVES),
    )
    def user_steers(self, which: int, word: str, act: tuple[Local, Move]) -> None:
        """`/steer escalate`: Hermes appends it to the last result, after the tool's hook."""
        chat = self.slots[which % 2]
        if chat.turn is not None and chat.messages[-1]["role"] == "tool":
            chat.messages[-1]["content"] += STEERED.format(word)
            if chat.turn.opened and not word:
                self.is_asked(chat)
            elif chat.turn.opened and not chat.turn.forged:
                {" off": self.is_off, " auto": self.is_auto}[word](chat)
                self.reached[f"steered{word}"] += 1
        self.works(chat, [act])
        if word:
            chat.off_on_disk = self.is_off_on_disk(chat)

    def begins_anew(self, chat: Chat, other: Chat) -> None:
        """`/new` or `/resume`: a session is over, but may be resumed; a resumed one has what is on disk."""
        self.hook("on_session_finalize", chat, reason="session_boundary")
        self.hook("on_session_reset", other, reason="new_session")
        self.forgets(chat)
        self.ended.append(chat)
        self.slots[self.slots.index(chat)] = other

    def forgets(self, chat: Chat) -> None:
        """What is not on disk is gone."""
        chat.turn = chat.hold = None
        chat.asked = chat.consented = False
        chat.off, chat.is_known = chat.off_on_disk, False

    # What the models do.

    @rule(which=WHICH, acts=ACTS)
    def models_work(self, which: int, acts: list[tuple[Local, Move]]) -> None:
        """One of the sessions goes on, a sub-agent's perhaps."""
        chats = [*self.slots, *self.children]
        self.works(chats[which % len(chats)], acts)

    @rule(which=WHICH, move=MOVES)
    def local_model_gets_stuck(self, which: int, move: Move) -> None:
        """It looks for one file after the other, until someone helps or it has failed three times."""
        chats = [*self.slots, *self.children]
        self.works(chats[which % len(chats)], [(Local(tool="fails"), move)] * 4)

    @rule(which=WHICH, acts=ACTS)
    def sub_agent_starts(self, which: int, acts: list[tuple[Local, Move]]) -> None:
        """It works for its parent's task, with its parent's money."""
        if not self.delegating or len(self.children) == 2:
            return
        parent = self.delegating[which % len(self.delegating)]
        turn = parent.turn
        assert turn is not None
        child = Chat(self.name("child"), parent)
        child.off, child.is_known, child.consented = parent.off, True, parent.consented
        by_request = parent.hold is not None and parent.hold.trigger == "user_request" and self.holds(parent)
        child.asked = turn.asked or turn.despite_off or by_request
        self.children.append(child)
        self.hook("subagent_start", parent, parent_session_id=parent.id, child_session_id=child.id)
        self.starts(child, "the goal", parent=turn)
        self.works(child, acts)
        self.reached["sub-agent"] += 1

    @rule(which=WHICH, text=st.sampled_from(MESSAGES), acts=ACTS)
    def user_has_work_done_beside(self, which: int, text: str, acts: list[tuple[Local, Move]]) -> None:
        """`/background`: a task of its own in a session of its own, with the money of the one that it is typed in."""
        parent = self.slots[which % 2]
        if (parent.turn is not None and parent.turn.moved) or len(self.children) == 2 or text.startswith("/"):
            return
        self.count += 1
        beside = Chat(f"bg_{self.count:06x}", parent, is_beside=True)
        beside.off, beside.is_known, beside.consented = parent.off, True, parent.consented
        self.children.append(beside)
        self.look_at(parent)
        self.starts(beside, text)
        # What it was left with is looked at for what runs beside it, too.
        parent.is_known = parent.is_known or not self.is_corrupt
        parent.is_unread = parent.is_unread or self.is_corrupt
        self.works(beside, acts)
        self.reached["beside"] += 1

    def works(self, chat: Chat, acts: list[tuple[Local, Move]]) -> None:
        """A turn goes on, if need be from its beginning; it may end before all that could happen has happened."""
        if chat.turn is None:
            self.starts(chat, "do it")
        for local, move in acts:
            self.asks_model(chat, local, move)
            if chat.turn is None:
                return

    # What Hermes, the machine and the disk do.

    @rule(which=WHICH, what=st.sampled_from(HAPPENINGS))
    def something_happens(self, which: int, what: str) -> None:
        """Sessions come and go, get another id, break off; processes end; the journal is lost."""
        slot = self.slots[which % 2]
        chats = self.running
        match what:
            case "new session" if slot.turn is None:
                self.begins_anew(slot, Chat(self.name("session")))
            case "resumed" if slot.turn is None and self.ended:
                self.begins_anew(slot, self.ended.pop(which % len(self.ended)))
            case "left" if chats:
                self.is_left(chats[which % len(chats)])
            case "compressed" if chats:
                self.is_compressed(chats[which % len(chats)])
            case "process ends":
                self.process_ends()
            case "deleted" | "corrupt" if JOURNAL.exists():
                self.journal_is_lost(what)
            case _:
                return
        self.reached[what] += 1

    def is_left(self, chat: Chat) -> None:
        """Hermes leaves a turn without a word."""
        chat.turn = None
        chat.is_left = True
        if chat.parent is not None:
            self.stops(chat)

    def is_compressed(self, chat: Chat) -> None:
        """The session goes by another id from here on."""
        from hermes_state import SessionDB  # noqa: PLC0415  # after HERMES_HOME is set

        assert chat.turn is not None
        old_id = chat.id
        if not chat.turn.is_moving:
            chat.old_id = old_id
        chat.id = self.name("compressed")
        with closing(SessionDB()) as database:  # as Hermes does it
            if database.get_session(old_id) is None:
                database.create_session(old_id, "cli", model=MODEL)
            database.end_session(old_id, "compression")
            database.create_session(chat.id, "cli", model=MODEL, parent_session_id=old_id)
        chat.turn.moved = chat.turn.is_moving = True
        self.reached["compressed while held"] += self.holds(chat)

    def process_ends(self) -> None:
        """Nothing but the disk is left."""
        for chat in self.slots:
            self.forgets(chat)
        self.children.clear()
        self.process_starts()
        self.reached["restarted while off"] += any(chat.off for chat in self.slots)

    def journal_is_lost(self, how: str) -> None:
        """With it, all that was spent and switched is forgotten, and nothing else."""
        if how == "deleted":
            JOURNAL.unlink()
        else:
            JOURNAL.write_bytes(b"x" * 5000)
        self.is_corrupt = how == "corrupt"
        self.bills.clear()
        self.known.clear()
        for chat in (*self.slots, *self.children, *self.ended):
            chat.paid.clear()
            chat.off_on_disk = False
            chat.off = chat.off and chat.is_known

    @rule(how_long=st.sampled_from([5, 61, 61, 901, 901, 7200, "tomorrow", "next month"]))
    def time_passes(self, how_long: int | str) -> None:
        """Seconds, or to ten past midnight of the next day or month."""
        if isinstance(how_long, int):
            self.now += how_long
            return
        today = self.wall().astimezone(BERLIN).date()
        day = today + timedelta(days=1)
        while how_long == "next month" and day.day != 1:
            day += timedelta(days=1)
        self.now += (datetime(day.year, day.month, day.day, 0, 10, tzinfo=BERLIN) - self.wall()).total_seconds()

    # One model call of Hermes's, and what the endpoints see of it.

    def asks_model(self, chat: Chat, local: Local, move: Move) -> None:
        """Hermes calls its model, through the middleware, and does with the response what it does."""
        turn = chat.turn
        assert turn is not None
        call = self.call = Call(chat, turn, local, move, held=self.holds(chat), plan=list(move.tiers))
        is_due, first = self.is_due(call), not turn.calls
        turn.calls += 1
        turn.is_moving = False
        error: Exception | None = None
        response: Any = None
        with self.faulty(move.fault), self.person(move.person):
            try:
                response = self.through_middleware(chat, turn)
            except Exception as raised:  # noqa: BLE001  # whatever it is must be the local endpoint's own
                error = raised
        self.release()
        self.looks_at(call, response, error)
        if is_due and not call.requests and not call.turn.refused:
            self.breaks(HELP, f"{first=} {turn} {chat.hold}")
        self.goes_on(call, response, error)

    def through_middleware(self, chat: Chat, turn: Turn) -> Any:
        """Hermes's own way to the local endpoint."""
        from hermes_cli.middleware import run_llm_execution_middleware  # noqa: PLC0415  # after HERMES_HOME is set

        agent = Agent(self)

        def perform(request: dict[str, Any]) -> Any:
            return agent._interruptible_streaming_api_call(request)  # noqa: SLF001

        self.look_at(chat.account)
        request = {"model": MODEL, "messages": [*chat.messages], "tools": TOOLS}
        return run_llm_execution_middleware(
            request,
            perform,
            original_request=request,
            session_id=chat.id,
            task_id="task",
            turn_id=turn.id,
            api_request_id=self.name("request"),
            platform=chat.platform,
            model=MODEL,
            provider="custom",
            base_url="http://127.0.0.1:9/v1",
            api_mode="chat_completions",
            api_call_count=turn.calls,
            middleware_trace=[],
        )

    def hook(self, name: str, chat: Chat, **arguments: Any) -> None:
        """Hermes calls its plugins."""
        if chat.parent is None:
            self.look_at(chat)
        self.world.manager.invoke_hook(
            name, session_id=chat.id, task_id="task", model=MODEL, platform=chat.platform, **arguments
        )

    def local_endpoint(self, request: dict[str, Any]) -> Any:
        """The local endpoint gets a request: for the local model, or for the bigger one beside it."""
        call = self.call
        assert call is not None
        if request["model"] != MODEL:
            answer = self.serve(request, 0)
            if answer.status != 200 or answer.cut_after is not None:
                raise LocalError(answer.status) if answer.status != 200 else ConnectionError("gone")
            return response_of(answer)
        call.local_calls += 1
        facts, local = call.turn.facts, call.local
        if local.status:
            facts.raised += 1
            facts.is_gone = facts.is_gone or local.status == 404
            call.error = LocalError(local.status)
            raise call.error
        facts.raised = 0
        answer = say(local.text, usage=(50, 7))
        if local.tool:
            arguments = {"command": "echo same"} if local.tool == "repeats" else {"path": self.name("/nowhere")}
            answer = call_of("terminal" if local.tool == "repeats" else "read_file", arguments)
        elif local.text in {"", GARBAGE}:
            facts.useless += 1
            facts.garbled = facts.garbled or local.text == GARBAGE
        else:
            refuses = local.text != "Here it is: 42."
            # What is in a file can be told by a tool alone.
            facts.doubtful = refuses or "notes.txt" in call.turn.text
            facts.trouble = facts.trouble or refuses
        call.response = response_of(answer)
        return call.response

    def serve(self, body: dict[str, Any], _index: int) -> Answer:
        """A tier gets a request; this runs on the endpoint's thread."""
        try:
            return self.served(body)
        except Exception as error:  # noqa: BLE001  # in that thread, nobody would see it
            self.breaks(ROW, f"the witness itself failed: {error!r}")
            return fail(400)

    def served(self, body: dict[str, Any]) -> Answer:
        """Look at the journal, hold the request against the promises, and answer as the move says."""
        call, tier = self.call, body["model"]
        if call is None:
            self.breaks(ROW, f"{tier} was asked outside of a model call")
            return fail(400)
        again = bool(call.requests) and call.requests[-1].does == "hiccup" and call.requests[-1].tier == tier
        does = "answers" if again or not call.plan else call.plan.pop(0)
        if tier == "big" and does == "hiccup":
            does = "answers"
        # A second try stands in the same row, and another program may have the file by then.
        request = replace(call.requests[-1], does=does) if again else self.request_of(call, tier, does)
        tokens_in = sum(len(str(message.get("content"))) for message in body["messages"]) // 6 + 200 * call.move.greedy
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        self.holds_against_promises(call, request, again=again)
        self.holds_against_budget(call, request, tokens_in, most)
        call.requests.append(request)
        if call.move.fault == "locked at the end":
            self.take_lock()
        return self.answered(call, request, tokens_in, (most or 300) if call.move.greedy else 5)

    def request_of(self, call: Call, tier: str, does: str) -> Request:
        """A request with what the journal says of it."""
        row = self.row_of(call, tier)
        if row is None:
            return Request(tier, None, None, "", is_new=False, does=does)
        is_new = row["escalation"] not in self.known
        return Request(tier, row["id"], row["escalation"], row["trigger"], is_new, does)

    def row_of(self, call: Call, tier: str) -> sqlite3.Row | None:
        """The journal's row for a request, as the file has it now."""
        name = tier if TIERS[tier]["provider"] == "primary" else f"openai/{tier}"
        try:
            rows = in_journal(CALLS)
        except sqlite3.Error as error:
            self.breaks(ROW, f"the journal cannot be read at the time of a request: {error}")
            return None
        row = rows[-1] if rows else None
        should = (call.turn.id, call.turn.task.id, call.chat.account.known_id, name, "started")
        found = row and tuple(row[key] for key in ("turn_id", "task_id", "session_id", "to_model", "state"))
        if found != should:
            self.breaks(ROW, f"{found} for {should}")
        return row

    def holds_against_promises(self, call: Call, request: Request, *, again: bool) -> None:
        """Whether the request may be, by what the user, the models and the clock did."""
        chat, turn, rules = call.chat, call.turn, call.turn.rules
        if not turn.opened or rules.enabled is not True:
            self.breaks(OFF, f"{request} while `enabled` is {rules.enabled}")
        if chat.off and not (turn.despite_off or call.held):
            self.breaks(OFF, f"{request} in {chat.id}")
        if any(one.answered for one in call.requests):
            self.breaks(ONE, f"{request} after {call.requests}")
        if not again and request.tier in [one.tier for one in call.requests]:
            self.breaks(ONE, f"{request} once more, after {call.requests}")
        if request.tier not in rules.ladder:
            self.breaks(BACK, f"{request} is not in {rules.ladder}")
        if not self.is_explained(call, request):
            self.breaks(BACK, f"{request} in {turn}, held by {chat.hold}")
        self.holds_against_consent(call, request, again=again)

    def holds_against_consent(self, call: Call, request: Request, *, again: bool) -> None:
        """Whether nobody said no, who was to be asked said yes, and it is on the screen."""
        chat, turn, rules = call.chat, call.turn, call.turn.rules
        refused = turn.refused or (turn.parent is not None and chat.parent is not None and turn.parent.refused)
        if refused and (turn.parent is None or chat.parent is None or chat.parent.turn is turn.parent):
            self.breaks(CONSENT, f"{request} after a no")
        if again or not request.is_new or call.held:
            return
        consented = call.yes or (chat.consented and rules.confirm == "first_in_session")
        if rules.confirm != "never" and not consented:
            self.breaks(CONSENT, f"{request} without a yes, though `confirm: {rules.confirm}`")
        if not any(f"→ {'' if request.tier == 'big' else 'openai/'}{request.tier}: " in line for line in call.notices):
            self.breaks(CONSENT, f"{request} is not on the screen: {call.notices}")

    def is_explained(self, call: Call, request: Request) -> bool:
        """Whether there is a reason to ask a tier: one that holds the task, or something that went wrong in it."""
        chat, turn, facts = call.chat, call.turn, call.turn.facts
        if not request.is_new:
            return call.held and chat.hold is not None and chat.hold.tier == request.tier
        if call.held and chat.hold is not None and chat.hold.trigger == request.trigger:
            return True  # it failed, and the next one takes over, or its row was lost
        attempts = turn.rules.attempts
        reasons = {
            "user_request": turn.asked,
            "task_type": turn.rules.starts_up and not turn.taken,
            "repeated_tool_failure": facts.failures >= attempts,
            "invalid_output": facts.garbled or facts.useless >= min(attempts, 3),
            "no_progress": max(facts.results.values(), default=0) > attempts,
            "provider_error": facts.is_gone or facts.raised >= min(attempts, 3),
            "silent_failure": facts.doubtful,
            "risk": facts.trouble,
            "task_timeout": self.now - turn.since >= 899,
        }
        wanted = turn.rules.triggers | ({"task_type"} if turn.rules.starts_up else set())
        return request.trigger in wanted and reasons[request.trigger]

    def holds_against_budget(self, call: Call, request: Request, tokens_in: int, most: int | None) -> None:
        """Whether it stays within each limit, even if the tier writes all that it may."""
        turn, rules, account = call.turn, call.turn.rules, call.chat.account
        today = self.wall().astimezone(BERLIN).date()
        spent = {
            "per_task_usd": sum(bill.usd for bill in self.bills if bill.turn is turn.task),
            "per_session_usd": sum(bill.usd for bill in self.bills if bill.chat is account),
            "per_day_usd": sum(bill.usd for bill in self.bills if bill.at.date() == today),
            "per_month_usd": sum(
                bill.usd for bill in self.bills if bill.at.date().replace(day=1) == today.replace(day=1)
            ),
        }
        for name, limit in rules.limits.items():
            worst = cost(request.tier, tokens_in, most) if most is not None else float("inf")
            if spent[name] + worst <= limit + 1e-9:
                continue
            self.reached["over the budget with a yes"] += name in turn.lifted
            if name not in turn.lifted:
                self.breaks(BUDGET, f"{request}: {spent[name]} spent, {worst} more may be, of {limit} {name}")
        # In a journal that begins anew, what holds the session has a new row.
        goes_on = call.held and call.chat.hold is not None and call.chat.hold.tier == request.tier
        is_over = request.is_new and not goes_on and rules.most is not None and len(account.paid) >= rules.most
        if is_over and "max_escalations_per_session" not in turn.lifted:
            self.breaks(BUDGET, f"{request}: escalation {len(account.paid) + 1} of {rules.most}")

    def answered(self, call: Call, request: Request, tokens_in: int, tokens_out: int) -> Answer:
        """Do what the move says, and bill it."""
        words = self.name("paid")
        usage = (tokens_in, tokens_out)
        state = "answered" if request.answered else "failed"
        match request.does:
            case "answers":
                answer = say(words, usage=usage)
            case "works":
                answer = call_of("read_file", {"path": words}, usage=usage)
            case "broken":
                answer = Answer(calls=(("read_file", f'{{"path": "{words}'),), usage=usage)
            case "cut":
                # What it had written by then is ten words, or fewer.
                answer, usage = say("word " * 30, cut_after=60), (tokens_in - 200 * call.move.greedy, 10)
            case "empty" | "useless":
                answer = say("" if request.does == "empty" else GARBAGE, usage=usage)
            case "hiccup":
                answer, usage = fail(500), (0, 0)
            case status:
                # So long that it is not worth waiting for.
                answer, usage = fail(int(status), headers=(("retry-after", "60"),)), (0, 0)
        request.said = answer.calls[0][1] if answer.calls else answer.text or ""
        request.usd = cost(request.tier, *usage)
        if request.row is not None:
            at = self.wall().astimezone(BERLIN)
            self.bills.append(Bill(request.row, request.usd, call.turn.task, call.chat.account, at, state))
        if request.escalation is not None and request.answered:
            self.known.add(request.escalation)
            call.chat.account.paid.add(request.escalation)
        return answer

    def holds(self, chat: Chat) -> bool:
        """Whether the user's `hold` lets the tier that took a task keep what is done now."""
        hold, turn = chat.hold, chat.turn
        if hold is None or turn is None or turn.rules.ladder[hold.index : hold.index + 1] != (hold.tier,):
            return False
        if hold.turn is not turn:
            return hold.rule == turn.rules.hold == "session"
        return isinstance(turn.rules.hold, str) or hold.replies < turn.rules.hold

    def is_due(self, call: Call) -> bool:
        """Whether a tier must be asked now, for there is a reason and nothing in its way."""
        chat, turn = call.chat, call.turn
        if not turn.rules.is_free or not turn.opened or turn.failed or turn.spoken or turn.forged:
            return False
        # A sub-agent of a session that may be taken for off is, too.
        if call.move.fault or self.is_corrupt or chat.is_unread or chat.account.is_unread:
            return False
        if call.held and chat.hold is not None and chat.hold.is_sure:
            return True
        rules, facts = turn.rules, turn.facts
        failed = (
            facts.has_just_failed and facts.failures >= rules.attempts and "repeated_tool_failure" in rules.triggers
        )
        asked = turn.asked and "user_request" in rules.triggers and chat.parent is None
        return (
            asked
            or (rules.starts_up and not turn.taken and not chat.off and chat.parent is None)
            or (failed and not chat.off)
        )

    def looks_at(self, call: Call, response: Any, error: Exception | None) -> None:
        """What came out of the middleware must be somebody's; who has the task now follows from who answered."""
        self.counts(call)
        self.is_somebodys(call, response, error)
        paid = next((one for one in call.requests if one.answered), None)
        if paid is not None and response is not None:
            self.takes(call, paid)
        if call.move.fault or self.is_corrupt:
            call.turn.failed.add("the journal")
        call.turn.failed.update(one.tier for one in call.requests if not one.answered and one.does != "hiccup")
        if call.turn.rules.enabled == "shadow" and call.chat.hold is not None:
            call.chat.hold.is_sure = False

    def is_somebodys(self, call: Call, response: Any, error: Exception | None) -> None:
        """The answer, or the exception, is that of who was asked."""
        paid = next((one for one in call.requests if one.answered), None)
        if call.local_calls > 1:
            self.breaks(ANSWER, f"the local model was asked {call.local_calls} times")
        if error is not None:
            if error is not call.error or paid is not None:
                self.breaks(ANSWER, f"{error!r} was raised, {call.requests}")
        elif response is None:
            self.breaks(ANSWER, "None")
        elif paid is not None:
            if said_by(response) != paid.said:
                self.breaks(ANSWER, f"{said_by(response)!r}, though {paid} was paid")
        elif response is not call.response:
            said, rules = said_by(response), call.turn.rules
            stopped = said.startswith("⚡ The task stops here") and rules.on_exceeded == "stop"
            has_limit = bool(rules.limits) or rules.most is not None
            self.reached["stopped"] += stopped
            # What came through the host's own call stands for it to Hermes, where asking the same endpoint again failed
            # (0.19 hermes_cli/middleware.py).
            is_left = call.error is not None and any(
                one.tier == "big" and one.does in {"empty", "useless"} and one.said == said for one in call.requests
            )
            if not (call.turn.spoken or is_left or (stopped and has_limit)):
                self.breaks(ANSWER, f"{said!r} is nobody's")

    def takes(self, call: Call, paid: Request) -> None:
        """A tier answered: it has the task now, or goes on with it."""
        chat, turn = call.chat, call.turn
        is_broken = paid.does == "broken"
        if call.held and chat.hold is not None and not paid.is_new:
            chat.hold.replies += 1
            if is_broken and chat.hold.is_broken:
                turn.failed.add(paid.tier)
                self.reached["left for broken calls"] += 1
            chat.hold.is_broken = is_broken
            if self.holds(chat):
                return
        else:
            rule_of = (
                chat.hold.rule
                if call.held and chat.hold is not None and chat.hold.tier == paid.tier
                else turn.rules.hold
            )
            chat.hold = Hold(paid.tier, turn.rules.ladder.index(paid.tier), paid.trigger, turn, rule_of)
            chat.hold.is_broken = is_broken
            turn.since = self.now
            turn.taken = True
        turn.asked = False
        turn.facts = Facts()

    def goes_on(self, call: Call, response: Any, error: Exception | None) -> None:
        """Hermes runs the tools, asks again, or ends the turn."""
        chat, turn = call.chat, call.turn
        message = response.choices[0].message if response is not None else None
        if message is not None and message.tool_calls:
            if response.choices[0].finish_reason == "length":
                return  # it asks again
            self.runs_tool(call, message.tool_calls[0].function)
        elif message is not None and (message.content or "").strip():
            chat.messages.append({"role": "assistant", "content": message.content})
            self.ends(chat)
        else:
            turn.retries += 1
            if turn.retries == 3 or (error is not None and call.local.status == 404):
                self.ends(chat)

    def runs_tool(self, call: Call, function: Any) -> None:
        """The tool gives what the move says, and the hook hears of it."""
        chat, turn = call.chat, call.turn
        does = call.local.tool if not any(one.answered for one in call.requests) else "gets on"
        if does == "gets on" and call.move.greedy:
            does = "fails"
        arguments, error, id_ = json.loads(function.arguments), "", self.name("call")
        match does:
            case "fails":
                error = f"File not found: {self.name('/nowhere')}"
                result = json.dumps({"error": error})
            case "repeats":
                result = json.dumps({"output": "same", "exit_code": 0})
            case "finds nothing":
                result = "[]"
            case "forges":
                result = f"{self.name('text')}{STEERED.format('')}"
                turn.forged = True
            case _:
                result = json.dumps({"content": self.name("text")})
        facts = turn.facts
        facts.failures += bool(error)
        facts.has_just_failed = bool(error)
        facts.results[f"{function.name} {function.arguments} {result}"] += 1
        facts.trouble = facts.trouble or does in {"fails", "finds nothing", "repeats"}
        tool_call = {
            "id": id_,
            "type": "function",
            "function": {"name": function.name, "arguments": function.arguments},
        }
        chat.messages.append({"role": "assistant", "content": "", "tool_calls": [tool_call]})
        self.hook(
            "post_tool_call",
            chat,
            turn_id=turn.id,
            tool_name=function.name,
            args=arguments,
            result=result,
            status="error" if error else "ok",
            error_type="tool_error" if error else None,
            error_message=error or None,
            tool_call_id=id_,
            duration_ms=1,
        )
        chat.messages.append({"role": "tool", "content": result, "tool_call_id": id_})

    def ends(self, chat: Chat) -> None:
        """The turn is over."""
        turn = chat.turn
        assert turn is not None
        self.hook("transform_llm_output", chat, response_text="x")
        self.hook("on_session_end", chat, turn_id=turn.id, completed=True, interrupted=False)
        chat.turn = None
        if chat.parent is not None:
            self.stops(chat)

    def stops(self, child: Chat) -> None:
        """A sub-agent is done; so are those that work for it. Of what ran beside a session, Hermes says nothing."""
        for one in self.family(child):
            self.children.remove(one)
            if one.is_beside:
                continue
            self.hook("subagent_stop", one, child_session_id=one.id, parent_session_id="")

    @contextmanager
    def person(self, answers: str) -> Iterator[None]:
        """Somebody sits before Hermes's approval gate, or nobody does."""
        from tools.terminal_tool import set_approval_callback  # noqa: PLC0415  # after HERMES_HOME is set

        def asked(_command: str, question: str, **_: object) -> str:
            call = self.call
            assert call is not None
            self.reached[f"a person says {answers}"] += 1
            if answers == "no":
                call.turn.refused = True
                return "deny"
            call.yes = True
            if "would go over the budget" in question:
                call.turn.lifted |= {name for words, name in NAMED.items() if words in question}
            call.chat.consented = call.chat.consented or question.startswith("Let ")
            return "once"

        if answers == "absent":
            yield
            return
        os.environ["HERMES_INTERACTIVE"] = "1"
        set_approval_callback(asked)
        try:
            yield
        finally:
            set_approval_callback(None)
            del os.environ["HERMES_INTERACTIVE"]

    @contextmanager
    def faulty(self, fault: str) -> Iterator[None]:
        """Another program holds the journal, all the time or from the first paid request on."""
        if fault == "locked":
            self.take_lock()
        yield
        self.release()

    def take_lock(self) -> None:
        """Hold the journal as a program does that writes into it."""
        if self.lock is not None or self.is_corrupt:
            return
        JOURNAL.parent.mkdir(exist_ok=True)
        self.lock = sqlite3.connect(JOURNAL, isolation_level=None, check_same_thread=False)
        self.lock.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        """Let go of it."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    # What must hold, after whatever happened.

    @invariant()
    def promises_are_kept(self) -> None:
        """All of them; the journal tells it all, and no fault of ours was counted."""
        assert not self.broken, "; ".join(f"{promise}: {', '.join(how)}" for promise, how in self.broken.items())
        guard = self.world.adapter.guard
        assert not +guard._counts, f"faults of our own: {guard._counts}"  # noqa: SLF001
        assert self.world.paid.refusals == []
        self.journal_tells_it_all()

    def journal_tells_it_all(self) -> None:
        """Each request stood in the journal when it came; each row there is a request, at what the tier billed."""
        try:
            rows = {row["id"]: row for row in in_journal(CALLS)}
        except sqlite3.Error:
            assert self.is_corrupt
            return
        self.is_corrupt = False
        billed: dict[int, float] = {}
        for bill in self.bills:
            billed[bill.row] = billed.get(bill.row, 0.0) + bill.usd
        states = {bill.row: bill.state for bill in self.bills}
        assert set(rows) == set(billed)
        for id_, row in rows.items():
            known = row["cost_usd"] if row["cost_usd"] is not None else row["reserved_usd"]
            assert known >= billed[id_] - 1e-9, (dict(row), billed[id_])
            if row["state"] in {"answered", "failed"}:
                assert row["state"] == states[id_], dict(row)
            if row["state"] == "answered":
                assert known == pytest.approx(billed[id_]), dict(row)

    def teardown(self) -> None:
        """Nothing is left in the way of the next one."""
        self.release()

    def counts(self, call: Call) -> None:
        """Keep how often what is worth looking at was reached."""
        said = "\n".join(call.notices)
        reached = self.reached
        reached["calls"] += 1
        for request in call.requests:
            reached[f"tier {request.does}"] += 1
            if request.answered and request.is_new:
                reached[f"taken by {request.trigger}"] += 1
                reached["taken by a sub-agent"] += call.chat.parent is not None
                reached["taken though off"] += call.chat.off
                reached["taken after another tier failed"] += len({one.tier for one in call.requests}) > 1
            elif request.answered:
                rule_of = call.turn.rules.hold
                reached[f"held for {rule_of if isinstance(rule_of, str) else 'a number'}"] += 1
                reached["held into another task"] += call.chat.hold is not None and call.chat.hold.turn is not call.turn
        for words in ("for this task is left", "for this session is left", "today is left", "this month is left"):
            reached[f"refused: {words}"] += words in said
        reached["refused: too many"] += "this session has had its" in said
        reached["refused: journal"] += "the journal cannot be written" in said
        facts, rules = call.turn.facts, call.turn.rules
        is_stuck = facts.failures >= rules.attempts and "repeated_tool_failure" in rules.triggers
        reached["stuck while off"] += is_stuck and call.chat.off
        reached["stuck in shadow"] += is_stuck and rules.enabled == "shadow"
        reached["stuck while the journal is locked"] += is_stuck and call.move.fault == "locked"
        if not call.held and call.chat.hold is not None and call.chat.hold.turn is call.turn and not call.requests:
            reached["back in the same task"] += 1


def call_of(tool: str, arguments: dict[str, Any], **more: Any) -> Answer:
    """A reply with one call of a tool."""
    return Answer(calls=((tool, json.dumps(arguments)),), **more)


@pytest.mark.timeout(600)
def test_machine(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    berlin: None,
) -> None:
    """Whatever happens, in whatever order, the promises hold; and what is worth looking at does happen."""
    del berlin
    caplog.set_level(logging.CRITICAL, logger="hermes_fallback")
    # Nobody waits here: for a provider that had a hiccup, or for a journal that another program holds.
    monkeypatch.setattr("hermes_fallback.executor._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("hermes_fallback.journal._BUSY_SECONDS", 0.01)
    monkeypatch.setattr(world.manager, "_cli_ref", None)  # it is the CLI's that was looked at last, and gone afterwards
    wanted = os.environ.get("MACHINE_EXAMPLES")
    reached: Counter[str] = Counter()

    class Played(Machine):
        def __init__(self) -> None:
            super().__init__(world, reached)

    run_state_machine_as_test(
        Played,
        settings=settings(
            max_examples=int(wanted or 60),
            stateful_step_count=50,
            derandomize=wanted is None,
            database=None,
            deadline=None,
            # Shrinking takes minutes, which CI does not have.
            phases=[Phase.generate, *([Phase.shrink] if wanted else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert [name for name in WORTH if not reached[name]] == []
    if wanted:
        with capsys.disabled():
            print("", *(f"{times:6}  {name}" for name, times in sorted(reached.items())), sep="\n")
