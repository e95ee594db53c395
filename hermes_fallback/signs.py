"""Reads in what results, replies and messages say the few signs that a task goes well or badly.

Pure. A sign is a word from a closed vocabulary (`events.Sign`), so that no text has to be kept; each alone proves
nothing, and `triggers` and `risk` say what they amount to together. What was measured: benchmarks/detection.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from .events import MessageSign, ReplySign, ResultSign

# A verdict is short ("Your answer is wrong."); in a page or a listing the same words are its content.
_VERDICT_CHARS = 300
_READ_CHARS = 2000
_ENDING_CHARS = 600
# Whoever pastes this much has given the content along.
_PASTED_CHARS = 1500

_WORK_DONE = r"(?:answer|solution|submission|attempt|guess|result|output|response|proposal|patch|fix|code)"
_NOT_GOOD = r"(?:wrong|incorrect|not correct|not right|invalid|rejected|refused|not accepted)"
_REJECTED = re.compile(
    rf"\b{_WORK_DONE}s? (?:is|was|are|were|looks?)(?: still| again)? {_NOT_GOOD}\b|\b(?:wrong|incorrect) {_WORK_DONE}\b"
    rf"|\A\W*{_NOT_GOOD}\b\W*(?:\Z|[.!\n])",
    re.IGNORECASE,
)
_EMPTY = frozenset({"", "[]", "{}", "()", '""', "null", "None", "none", "False", "false", "0", "[(None,)]", "[(0,)]"})
_CANNOT = re.compile(
    r"\b(?:unable to|cannot|can['’]t|could not|couldn['’]t|not able to|impossible|not possible|unfortunately|no way to"
    r"|do not have access|don['’]t have)\b",
    re.IGNORECASE,
)
_CANNOT_SAY = re.compile(
    r"\b(?:I|we)\b[^.?!\n]{0,30}?(?:n['’]t|\b(?:do not|cannot|can not|unable|not sure|no longer))\b", re.IGNORECASE
)

_WORK = (
    r"check|look|read|open|search|run|create|write|fix|update|list|find|examine|inspect|start|use|call|execute|edit"
    r"|view|analy[sz]e|fetch|retrieve|review|explore|proceed"
)
# The last sentence, by itself: "Once I have it, I'll check" waits for the user.
_NOT_YET = r"(?:(?!\b(?:once|after|when|if|until|you)\b)[^.?!\n])*"
_ANNOUNCES = re.compile(
    r"(?:\A|[.!?:\n]\s*)(?:(?:ok(?:ay)?|sure|alright|great|now|first|next|then|so|certainly|of course)[,!.:]?\s+)*"
    r"(?:I['’]ll|I will|I['’]m going to|I am going to|let me|let['’]s|allow me to)\b(?!\s+(?:know|be|need))"
    rf"{_NOT_YET}?\b(?:{_WORK})\b{_NOT_YET}(?:\.\w+\b[^.?!\n]*)*[.:…!\s`]*\Z",
    re.IGNORECASE,
)
_MADE = (
    r"created|updated|fixed|written|wrote|added|changed|edited|renamed|deleted|removed|implemented|saved|modified"
    r"|refactored|installed|moved|replaced|inserted|appended"
)
_CLAIMS_DONE = re.compile(
    rf"\bI(?:['’]ve| have)? (?:now |just |successfully )*(?:{_MADE})\b"
    rf"|\b(?:has|have|is|are|was|were) (?:now |been |successfully )+(?:{_MADE})\b|^\W*done\b|\ball (?:done|set)\b",
    re.IGNORECASE | re.MULTILINE,
)
_ASKS = re.compile(
    r"\?|\b(?:please|could you|can you|kindly) (?:provide|confirm|tell|specify|share|clarify|send|upload|paste|let me)"
    r"|\blet me know\b",
    re.IGNORECASE,
)

_FILE = re.compile(
    r"(?:(?<![\w@/.])(?:~?[\w.-]*/)*(?!(?:node|vue|next|nuxt|react|express|three|d3|chart|socket)\.js\b)[\w-]+"
    r"\.(?:txt|md|rst|log|csv|tsv|json[l5]?|ya?ml|toml|ini|cfg|conf|env|xml|html?|css|s[ch]ss|sql|sh|bash|py|ipynb|m?jsx?"
    r"|tsx?|java|kt|go|rs|rb|php|c|cc|cpp|h|hpp|cs|swift|lua|r|tex|pdf|docx?|xlsx?|lock|patch|diff)\b(?!\()"
    r"|(?<![\w/.:])(?:~|\.{1,2})?/[\w.-]+/[\w./-]*\w)",
    re.IGNORECASE,
)
# "How do I…" asks for advice, "what is package.json" for what everybody knows.
_WANTS_ADVICE = re.compile(r"\A\W*how (?:do|to|can|could|would|should|does)\b", re.IGNORECASE)
# What stands before the name of a file, in its line.
_READS = re.compile(
    r"\b(?:read|show|print|open|summari[sz]e|count|quote|cat|look (?:at|in|into|up|through))\b"
    r"|\b(?:what|which|tell|how many|find|check|list|does|is)\b.*\b(?:in|of|from|inside)(?: the| my| file)* [`'\"]?\Z"
    r"|\bwhat (?:does|do) [`'\"]?\Z",
    re.IGNORECASE,
)
_CHANGES = re.compile(
    r"\b(?:fix|edit|change|rename|delete|remove|replace|refactor|update|move|append|insert|create|write|save|add|put)\b",
    re.IGNORECASE,
)

_WAITING = ("poll", "wait", "watch", "status", "tail", "log", "logs")
_ACTION_KEYS = ("action", "operation", "op", "mode")
_CHANGING_NAME = re.compile(
    r"write|edit|patch|replace|create|insert|delete|remove|update|append|modify|apply|rename|move|save|install|send|book"
    r"|cancel|skill_manage",
    re.IGNORECASE,
)
_COMMAND_KEYS = ("command", "cmd", "code", "script")
_CHANGING_COMMAND = re.compile(
    r"(?:^|[;&|(]\s*|\bsudo\s+|\bxargs\s+)(?:sed\s+(?:-\w+\s+)*-i|tee|mv|cp|rm|mkdir|touch|patch|ln|chmod|dd|truncate"
    r"|git\s+(?:apply|checkout|commit|add|reset|stash|merge|rebase|restore|mv|rm|pull|clone)"
    r"|(?:pip3?|npm|yarn|pnpm|cargo|apt(?:-get)?|brew|uv)\s+(?:install|add|i|remove|uninstall))\b"
    r"|(?<![<>=-])>{1,2}\s*(?![&\s]|/dev/null)[\w./~$\"'-]"
    r"|\.write\(|write_text\(|open\([^)]*['\"][wax]",
    re.MULTILINE,
)


def of_result(tool: str, arguments: object, result: str) -> tuple[ResultSign, ...]:
    """Return the signs of a call that succeeded: what it said, and whether it changed something or only waited."""
    return tuple(_of_result(tool, arguments, result))


def of_reply(text: str, *, ends_turn: bool, unaided: bool) -> tuple[ReplySign, ...]:
    """Return the signs of a reply; `ends_turn` when it is the answer, `unaided` when no tool has shown anything."""
    return tuple(_of_reply(text[:_READ_CHARS], text[-_ENDING_CHARS:], ends_turn=ends_turn, unaided=unaided))


def of_message(text: str) -> tuple[MessageSign, ...]:
    """Return the signs of a user's message: what it asks for, and whether the user cannot give what is needed."""
    return tuple(_of_message(text))


def _of_result(tool: str, arguments: object, result: str) -> Iterator[ResultSign]:
    changes = _changes(tool, arguments)
    if changes:
        yield "changes"
    elif isinstance(arguments, Mapping) and any(arguments.get(key) in _WAITING for key in _ACTION_KEYS):
        yield "polls"
    if len(result) > _VERDICT_CHARS:
        return
    if _is_empty(result):
        # What changes something need not say so.
        if not changes:
            yield "empty"
    elif _REJECTED.search(result):
        yield "rejected"


def _changes(tool: str, arguments: object) -> bool:
    if _CHANGING_NAME.search(tool):
        return True
    commands = (arguments.get(key) for key in _COMMAND_KEYS) if isinstance(arguments, Mapping) else ()
    return any(isinstance(command, str) and _CHANGING_COMMAND.search(command) for command in commands)


def _is_empty(result: str) -> bool:
    said = result.strip()
    if said in _EMPTY or "no output" in said.lower():
        return True
    if not said.startswith("{"):
        return False
    try:
        parsed = json.loads(said)
    except ValueError:
        return False
    # A command's envelope (Hermes 0.19 tools/terminal_tool.py): what it printed is under `output`.
    output = parsed.get("output") if isinstance(parsed, dict) else None
    return isinstance(output, str) and output.strip() in _EMPTY


def _of_reply(text: str, ending: str, *, ends_turn: bool, unaided: bool) -> Iterator[ReplySign]:
    if _CANNOT.search(text):
        yield "cannot"
    if not ends_turn:
        return
    if _ASKS.search(ending):
        yield "asks"
    if _ANNOUNCES.search(ending):
        yield "announces"
    if _CLAIMS_DONE.search(text):
        yield "claims_done"
    if unaided:
        yield "unaided"


def _of_message(text: str) -> Iterator[MessageSign]:
    if _CANNOT_SAY.search(text[:_READ_CHARS]):
        yield "cannot_say"
    if len(text) > _PASTED_CHARS or "```" in text:
        return
    if _WANTS_ADVICE.search(text):
        return
    before = [text[text.rfind("\n", 0, file.start()) + 1 : file.start()] for file in _FILE.finditer(text)]
    if any(map(_READS.search, before)):
        yield "wants_content"
    if any(map(_CHANGES.search, before)):
        yield "wants_change"
