"""What Hermes's data means: its configuration, what it runs, its tools' results, its errors and replies.

Read-only, but for the question to a person, and without state: `adapter` owns what happens with it. With `live.py`,
these are the files that know Hermes.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import fingerprint, handoff, signs
from .budget import Usage, told_tokens
from .config import Config
from .events import UNCHANGED, CallFailed, CallFailure, ReplySign, ToolFailed, ToolSucceeded
from .fingerprint import Fingerprint
from .live import approval_callback, is_unattended
from .names import Names
from .replies import Call, LocalReply, without_thinking
from .task import Consent

# A turn that makes only these calls beside its text has given its answer (0.19 agent/conversation_loop.py).
_HOUSEKEEPING = frozenset({"memory", "todo", "skill_manage", "session_search"})

# How Hermes begins what stands for compressed messages (0.19 agent/context_compressor.py).
_SUMMARY = ("[CONTEXT COMPACTION", "[CONTEXT SUMMARY]")

_LISTS = (list, tuple)
_INTERRUPTED = 130
_OWN_WORDS_CHARS = 400

_CALL_FAILURES: Mapping[str, CallFailure] = {
    "context_overflow": "context_overflow",
    "payload_too_large": "context_overflow",
    "overloaded": "overloaded",
    "rate_limit": "overloaded",
    "upstream_rate_limit": "overloaded",
    "timeout": "timed_out",
    "server_error": "broken",
    "unknown": "broken",
}
"""Hermes's classes of failure (0.19 agent/error_classifier.py `FailoverReason`); the others are refusals."""


@dataclass(frozen=True, slots=True)
class Running:
    """The model that Hermes calls, and how."""

    model: str
    provider: str
    base_url: str
    api_mode: str

    def stays_local_because(self, config: Config) -> str | None:
        """Say why its tasks cannot be escalated, or None."""
        primary = config.primary
        if primary is not None and not primary.matches(
            model=self.model, provider=self.provider, base_url=self.base_url
        ):
            return f"Hermes runs {self.model} ({self.provider}), and `primary` is {primary.model}"
        if self.api_mode != "chat_completions":
            return f"{self.model} is called by {self.api_mode}, and only chat_completions can be carried on"
        return None


def read_config() -> tuple[object, bool]:
    """Return the `model_routing` block of Hermes's config.yaml as it is now, and whether it has a fallback chain."""
    from hermes_cli.config import load_config  # noqa: PLC0415  # only there when Hermes runs
    from hermes_cli.fallback_config import get_fallback_chain  # noqa: PLC0415

    config = load_config()
    return config.get("model_routing"), bool(get_fallback_chain(config))


def running_model() -> Running:
    """Return what Hermes would run now, by its configuration.

    Raises:
        Exception: what Hermes raises when it cannot tell, for example for a provider without a key.
    """
    from hermes_cli.config import load_config  # noqa: PLC0415  # only there when Hermes runs
    from hermes_cli.runtime_provider import resolve_runtime_provider  # noqa: PLC0415

    model = load_config().get("model")
    name = model.get("default") if isinstance(model, dict) else model
    runtime = resolve_runtime_provider()
    return Running(str(name or ""), *(str(runtime.get(key) or "") for key in ("provider", "base_url", "api_mode")))


def agent_class() -> object:
    """Return Hermes's agent class."""
    from run_agent import AIAgent  # noqa: PLC0415  # only there when Hermes runs, and slow to import

    return AIAgent


def hermes_home() -> Path:
    """Return Hermes's home, which holds its configuration and our journal."""
    from hermes_constants import get_hermes_home  # noqa: PLC0415  # only there when Hermes runs

    return Path(get_hermes_home())


def profile_secrets() -> Mapping[str, str] | None:
    """Return the secrets of the profile that this thread works for; None where they are in the environment.

    Only a gateway that serves several profiles has them apart (0.17 to 0.19 `gateway.multiplex_profiles`).
    """
    try:
        from agent import secret_scope  # noqa: PLC0415  # only there when Hermes runs
    except ImportError:
        return None
    secrets: Mapping[str, str] | None = secret_scope.current_secret_scope()
    # What works for no profile in such a gateway is to have no key.
    return {} if secrets is None and secret_scope.is_multiplex_active() else secrets


@dataclass(frozen=True, slots=True)
class RecordedSession:
    """A session as Hermes recorded it; `prompt_tokens` is what its calls took on the mean, None where unknown."""

    id: str
    model: str
    messages: list[dict[str, Any]]
    prompt_tokens: int | None


def recorded_sessions(*, hours: int) -> Iterator[RecordedSession]:
    """Return Hermes's sessions that began in the last so many hours, newest first.

    Sub-agents' sessions are among them; a conversation that was compressed is two sessions to Hermes, and so to us.

    Raises:
        sqlite3.Error: Hermes's record of its sessions cannot be read.
    """
    with _session_database() as database:
        if database is None:
            return
        since = time.time() - 3600 * hours
        sessions = database.list_sessions_rich(limit=-1, include_children=True, project_compression_tips=False)
        for session in sessions:
            if float(session["started_at"]) < since:
                continue
            calls = session.get("api_call_count") or 0
            read = sum(session.get(key) or 0 for key in ("input_tokens", "cache_read_tokens", "cache_write_tokens"))
            yield RecordedSession(
                str(session["id"]),
                str(session.get("model") or ""),
                [_recorded(row) for row in database.get_messages(session["id"])],
                read // calls if calls and read else None,
            )


def compressed_from(session_id: str) -> list[str]:
    """Return the ids that a session had before Hermes compressed it, newest first; between turns no hook tells of that.

    Raises:
        sqlite3.Error: Hermes's record of its sessions cannot be read.
    """
    ids: list[str] = []
    with _session_database() as database:
        if database is None:
            return ids
        session = database.get_session(session_id) or {}
        while True:
            parent = database.get_session(str(session.get("parent_session_id") or "")) or {}
            if not _goes_on(parent, session) or parent["id"] in ids:
                return ids
            ids.append(parent["id"])
            session = parent
    return ids


@contextmanager
def _session_database() -> Iterator[Any]:
    """Open Hermes's record of its sessions to read it; None, or an end of the reading, when there is none."""
    from hermes_state import DEFAULT_DB_PATH, SessionDB  # noqa: PLC0415  # only there when Hermes runs

    path = hermes_home() / Path(DEFAULT_DB_PATH).name
    if not path.exists():
        yield None
        return
    with closing(SessionDB(path, read_only=True)) as database:
        try:
            yield database
        except sqlite3.OperationalError as error:
            # Other parts of Hermes keep things in the file, too, and may have made it.
            if "no such table" not in str(error):
                raise


def _goes_on(parent: Mapping[str, Any], session: Mapping[str, Any]) -> bool:
    """Tell whether a session is its parent, compressed: a branch, too, may have a parent that was compressed later."""
    marks = str(session.get("model_config") or "")
    return (
        parent.get("end_reason") == "compression"
        and (session.get("started_at") or 0.0) >= (parent.get("ended_at") or 0.0)
        and not any(mark in marks for mark in ("_branched_from", "_delegate_from"))
    )


def _recorded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of Hermes's session database in the form of a chat message; `t` is in seconds since 1970."""
    message: dict[str, Any] = {"role": row["role"], "content": row["content"], "t": row["timestamp"]}
    optional = {"tool_calls": row["tool_calls"], "tool_call_id": row["tool_call_id"], "name": row["tool_name"]}
    return message | {key: value for key, value in optional.items() if value}


def tool_event(
    at: float,
    tool: str,
    args: object,
    result: str,
    *,
    status: str,
    error: object,
    names: Names,
    printed: Fingerprint | None = None,
) -> ToolFailed | ToolSucceeded | None:
    """Return what a tool's result says of the model; None when it was denied, blocked or stopped.

    `names` are those of the task's results so far; `printed` is the result's fingerprint where that is known better
    than by the text.
    """
    call = fingerprint.call_fingerprint(tool, args)
    # One string for all events: Hermes parses the name anew from each reply.
    tool = sys.intern(str(tool))
    if _is_unchanged(result, error):
        return ToolSucceeded(at, tool, call, UNCHANGED)
    exit_status, output = _command_outcome(result)
    shown = str(error or result) if status == "error" else result
    whole = printed or names.of_result(call, shown)
    if status == "error" and exit_status is None:
        message = str(error or result)
        said = fingerprint.error_words(message) or "an error"
        return ToolFailed(at, tool, call, whole, said, names.of_error(tool, message))
    if status not in {"ok", "error"}:
        return None  # blocked by a guard, denied by the user, cancelled: not the model's failure
    if not exit_status:
        found = signs.of_result(tool, args, result, command=exit_status is not None)
        return ToolSucceeded(at, tool, call, whole, found)
    if exit_status == _INTERRUPTED and "[Command interrupted]" in output:
        return None  # the user stopped the turn
    # The words at the end are the command's own; those further up may be a test's.
    own = fingerprint.error_words(output[-_OWN_WORDS_CHARS:])
    said = own or sys.intern(f"exit status {exit_status}")
    done = signs.of_call(tool, args)
    return ToolFailed(at, tool, call, whole, said, None, command=True, on_purpose=own is None, signs=done)


def _is_unchanged(result: str, error: object) -> bool:
    # What read_file says instead of the same content again (0.19 tools/file_tools.py).
    return '"dedup": true' in result[-400:] or str(error or "").startswith("BLOCKED: You have ")


def _command_outcome(result: str) -> tuple[int | None, str]:
    """Return a command's exit status and, where that is not 0, its output."""
    if '"exit_code"' not in result:
        return None, ""
    # Nearly all are of this form, and to read what they say takes long (0.17 to 0.19 tools/terminal_tool.py).
    if result.startswith('{"output": "') and result.endswith('", "exit_code": 0, "error": null}'):
        return 0, ""
    try:
        parsed = json.loads(result)
    except (ValueError, RecursionError):
        return None, ""
    if not isinstance(parsed, dict):
        return None, ""
    return fingerprint.exit_status(parsed), str(parsed.get("output") or "")


def is_no_reply(answer: str) -> bool:
    """Tell whether an answer is Hermes's mark for none, which a chat does not show where it stands alone.

    (0.17 to 0.19 gateway/response_filters.py; where there are no chats, it is not loaded.)
    """
    filters = sys.modules.get("gateway.response_filters")
    is_mark = getattr(filters, "is_intentional_silence_response", None)
    return callable(is_mark) and bool(is_mark(answer))


def call_failed(at: float, error: BaseException, request: Mapping[str, Any]) -> CallFailed:
    """Return what an error of the local endpoint means, and whether Hermes would give up on it."""
    # Hermes's own judgement, so that ours cannot differ from it.
    from agent.error_classifier import classify_api_error  # noqa: PLC0415  # only there when Hermes runs

    classified = classify_api_error(error, num_messages=len(request.get("messages") or ()))
    failure = _CALL_FAILURES.get(classified.reason.value, "refused")
    if failure == "timed_out" and "connect" in f"{type(error).__name__} {error}".lower():
        failure = "unreachable"
    # Hermes would compress the conversation and lose what the task knows, or give up where that does not help.
    ends_turn = failure == "context_overflow" or not classified.retryable
    return CallFailed(at, failure, ends_turn)


def local_reply(response: Any, request: Mapping[str, Any]) -> LocalReply:
    """Return what matters of an OpenAI-shaped response object."""
    choices = getattr(response, "choices", None)
    if not isinstance(choices, _LISTS) or not choices:
        return LocalReply("")
    message = getattr(choices[0], "message", None)
    asked = getattr(message, "tool_calls", None)
    functions = [getattr(call, "function", None) for call in listed(asked)]
    calls = [
        Call(str(getattr(function, "name", None) or ""), _arguments(getattr(function, "arguments", None)))
        for function in functions
    ]
    content = getattr(message, "content", None)
    return LocalReply(
        text=content if isinstance(content, str) else handoff.text_of(content),
        calls=tuple(calls),
        finish_reason=getattr(choices[0], "finish_reason", None),
        answered_before=not calls and _answered_before(listed(request.get("messages"))),
    )


def readable(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request with those of its messages, their calls and its tools that can be read; itself, if all can."""
    read = {name: entries(request[name]) for name in ("messages", "tools") if request.get(name)}
    messages = read.get("messages", ())
    if any(_calls_of(message) is not message.get("tool_calls") for message in messages if message.get("tool_calls")):
        read["messages"] = [{**message, "tool_calls": _calls_of(message)} for message in messages]
    odd = {name: value for name, value in read.items() if value is not request[name]}
    return {**request, **odd} if odd else request


def _calls_of(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    calls = entries(message.get("tool_calls"))
    return [call for call in calls if _is_call(call)] if not all(map(_is_call, calls)) else calls


def _is_call(call: Mapping[str, Any]) -> bool:
    return isinstance(call.get("function") or {}, dict)


def listed(value: object) -> Sequence[Any]:
    """Return a list as it is, and an empty one for anything else."""
    return value if isinstance(value, _LISTS) else ()


def entries(value: object) -> Sequence[Mapping[str, Any]]:
    """Return the blocks in a list: the list itself, if it holds nothing else."""
    given = listed(value)
    return given if all(isinstance(one, dict) for one in given) else [one for one in given if isinstance(one, dict)]


def _name_of(call_or_tool: Mapping[str, Any]) -> str:
    function = call_or_tool.get("function")
    return str(function.get("name")) if isinstance(function, dict) else ""


def usage_of(response: Any) -> Usage:
    """Return the tokens that an endpoint says a reply took."""
    usage = getattr(response, "usage", None)
    return Usage(told_tokens(usage, "prompt_tokens"), told_tokens(usage, "completion_tokens"))


def reply_signs(reply: LocalReply, request: Mapping[str, Any]) -> tuple[ReplySign, ...]:
    """Return the signs of a reply to the request (`messages`, `tools`)."""
    ends_turn = not reply.calls
    # Only of an answer: this looks at the whole conversation, which gets longer with each call.
    unaided = ends_turn and _is_unaided(request)
    return signs.of_reply(without_thinking(reply.text), ends_turn=ends_turn, unaided=unaided)


def _is_unaided(request: Mapping[str, Any]) -> bool:
    """Tell whether the model has tools and has not seen what any of them shows, nor a summary of that."""
    messages = listed(request.get("messages"))
    if not request.get("tools") or any(isinstance(one, dict) and one.get("role") == "tool" for one in messages):
        return False
    messages = entries(messages)
    texts = [handoff.text_of(message.get("content")) for message in messages]
    if any(text.startswith(_SUMMARY) for text in texts):
        return False
    # Hermes puts AGENTS.md and the like into the system prompt (0.19 agent/prompt_builder.py).
    said = zip(reversed(messages), reversed(texts), strict=True)
    asked = next((text for message, text in said if message.get("role") == "user"), "")
    prompt = texts[0] if messages and messages[0].get("role") == "system" else ""
    return not any(name in prompt for name in signs.files_named(asked))


def _arguments(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments if arguments is not None else {})


def _answered_before(messages: Sequence[Any]) -> bool:
    blocks = (one for one in reversed(messages) if isinstance(one, dict))
    last: Mapping[str, Any] = next((message for message in blocks if message.get("role") != "tool"), {})
    if not last.get("content"):
        return False
    names = {_name_of(call) for call in _calls_of(last)}
    return bool(names) and names <= _HOUSEKEEPING and bool(handoff.text_of(last["content"]).strip())


def can_ask() -> bool:
    """Tell whether this Hermes can put a question of ours to a person."""
    from tools import approval  # noqa: PLC0415  # only there when Hermes runs

    return callable(getattr(approval, "request_tool_approval", None))


def ask_person(question: str, *, key: str, platform: str) -> Consent:
    """Ask through Hermes's own approval gate (DESIGN.md, fact 12), on this thread, which waits for the answer.

    An answer is remembered by Hermes under `key`. What Hermes would answer by itself (`--yolo`, cron) is a no here.
    """
    from tools import approval  # noqa: PLC0415  # only there when Hermes runs

    request = getattr(approval, "request_tool_approval", None)
    if request is None:
        return Consent(
            given=False, why="this Hermes cannot ask (from 0.18 on it can); write `confirm: never`, or update it"
        )
    # Sub-agents are answered by a rule of Hermes's, not by a person (0.19 tools/delegate_tool.py).
    if platform in {"cron", "subagent"} or is_silent() or is_unattended():
        return Consent(given=False, why="nobody is there to be asked")
    # Hermes's gate says yes without asking in these two cases, and in no other (0.19 tools/approval.py
    # `_run_approval_gate`); where the first cannot be read, whatever switches questions off counts.
    if approval.is_current_session_yolo_enabled() or getattr(
        approval, "_YOLO_MODE_FROZEN", approval.is_approval_bypass_active()
    ):
        return Consent(given=False, why="yolo does not answer for money; switch it off, or write `confirm: never`")
    answer = request("hermes-fallback", question, rule_key=key, approval_callback=approval_callback())
    if answer.get("approved") is True:
        return Consent(given=True)
    nobody = "user_consent" not in answer and "denied" not in str(answer.get("message"))
    return Consent(given=False, why="nobody is there to be asked" if nobody else "not allowed")


def toolsets_of(tools: object) -> frozenset[str]:
    """Return the names of the toolsets that the offered tools are of."""
    from model_tools import get_toolset_for_tool  # noqa: PLC0415  # only there when Hermes runs

    return frozenset(filter(None, map(get_toolset_for_tool, map(_name_of, entries(tools)))))


def working_folder() -> str:
    """Return the folder that the agent works in."""
    from agent.runtime_cwd import resolve_agent_cwd  # noqa: PLC0415  # only there when Hermes runs

    return str(resolve_agent_cwd())


def spoken_response(text: str, *, model: str) -> object:
    """An answer of our own, in each of the shapes that Hermes reads (0.19 agent/transports)."""
    message = SimpleNamespace(role="assistant", content=text, tool_calls=None, reasoning_content=None)
    choice = SimpleNamespace(index=0, message=message, finish_reason="stop")
    block = SimpleNamespace(type="output_text", text=text)
    item = SimpleNamespace(type="message", role="assistant", status="completed", content=[block])
    chat = {"choices": [choice]}
    claude = {"content": [SimpleNamespace(type="text", text=text)], "stop_reason": "end_turn"}
    responses = {"output": [item], "output_text": text, "status": "completed"}
    return SimpleNamespace(id="hermes-fallback", model=model, usage=None, **chat, **claude, **responses)


def is_interrupted() -> bool:
    """Tell whether the user stopped the turn that runs on this thread."""
    from tools.interrupt import is_interrupted as stopped  # noqa: PLC0415  # only there when Hermes runs

    return bool(stopped())


def is_silent() -> bool:
    """Tell whether Hermes prints the answer and nothing else."""
    # `hermes -z` prints the answer alone, for scripts, and switches all logging off (DESIGN.md, fact 18).
    return logging.root.manager.disable >= logging.CRITICAL


def managed_by() -> str | None:
    """Return what writes config.yaml in the user's place (NixOS, Homebrew), or None when the user does."""
    from hermes_cli.config import get_managed_system  # noqa: PLC0415  # only there when Hermes runs

    system: str | None = get_managed_system()
    return system
