"""Reads in what results, replies and messages say the few signs that a task goes well or badly.

Pure. A sign is a word from a closed vocabulary (`events.Sign`), so that no text has to be kept; hardly one proves
anything alone, and `triggers` and `risk` say what they amount to. What was measured: benchmarks/detection.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .events import MessageSign, ReplySign, ResultSign
from .hinted import Hinted

# A verdict is short ("Your answer is wrong."); in a page or a listing the same words are its content.
_VERDICT_CHARS = 120
_READ_CHARS = 2000
# What was done is told first.
_CLAIM_CHARS = 1000
_ENDING_CHARS = 600
# Whoever pastes this much has given the content along; so has a chat or an editor that attaches a file (0.19
# agent/context_references.py, gateway/platforms).
_PASTED_CHARS = 1500
_PASTED = ("```", "[Content of ", "--- Attached Context ---")

_WORK_DONE = r"(?:answer|solution|submission|attempt|guess|result|output|response|proposal|patch|fix|code)"
_NOT_GOOD = r"(?:wrong|incorrect|not correct|not right|invalid|rejected|refused|not accepted)"
# The verdict is all that is said: elsewhere the same words are what a file, a log or an issue is about.
_REJECTED = re.compile(
    rf"\W*(?:(?:sorry|no)\W+)?(?:(?:your|the|this|that) )?(?:(?:wrong|incorrect) {_WORK_DONE}"
    rf"|{_WORK_DONE} (?:is|was)(?: still| again)? {_NOT_GOOD}|{_NOT_GOOD})\W*(?:\Z|[.!]\s+(?:please )?try again\W*\Z)",
    re.IGNORECASE,
)
_EMPTY = frozenset({"", "[]", "{}", "()", "null", "None", "[(None,)]"})
_CANNOT = Hinted(
    "unable to|not|n't|n’t|impossible|unfortunately|no way",
    r"\b(?:unable to|cannot|can['’]t|could not|couldn['’]t|not able to|impossible|not possible|unfortunately|no way to"
    r"|do not have access|don['’]t have)\b",
)
_CANNOT_SAY = re.compile(
    r"\b(?:I|we)\b[^.?!\n]{0,20}?(?:n['’]t|\b(?:do not|cannot|can not|unable to|no longer))"
    r" (?:\w+ ){0,2}?(?:have|know|remember|recall|find|see|provide|tell|say|access|share)\b|\bI['’]?a?m not sure\b",
    re.IGNORECASE,
)

_WORK = (
    r"check|look|read|open|search|run|create|write|fix|find|examine|inspect|execute|edit|view|analy[sz]e|fetch|retrieve"
    r"|review"
)
# The last sentence, about what comes now: a promise for later or under a condition is kept later.
_NOW = (
    r"(?:(?!\b(?:once|after|when|if|until|you|every|tomorrow|later|next time|from now on|as (?:it|they))\b)[^.?!\n])*"
)
# How it will answer is nothing that it has to begin now.
_TASK = rf"(?!(?:write|create) (?:\w+ ){{0,3}}?(?:answers?|replies|responses)\b)(?:{_WORK})\b"
_ANNOUNCES = Hinted(
    "let me|allow me|i'll|i’ll|i will|going to",
    r"(?:\A|[.!?:\n]\s*)(?:(?:ok(?:ay)?|sure|alright|great|now|first|next|then|so|certainly|of course)[,!.:]?\s+)*"
    rf"(?:(?:let me|allow me to)\b(?!\s+know){_NOW}?\b{_TASK}{_NOW}(?:\.\w+\b[^.?!\n]*)*[.:…!\s`]*"
    rf"|(?:I['’]ll|I will|I['’]m going to|I am going to)\b{_NOW}?\b{_TASK}{_NOW}(?:\.\w+\b[^.?!\n]*)*"
    r"(?:\b(?:now|first)\b[.!\s`]*|[:…][\s`]*|\.\.\.[\s`]*))\Z",
)
_MADE = (
    r"created|updated|fixed|written|wrote|added|changed|edited|renamed|deleted|removed|implemented|saved|modified"
    r"|refactored|installed|moved|replaced|inserted|appended"
)
# Each by itself, for most answers have none of its hints. The first begins with a letter, by which it is found fast.
_CLAIMS_DONE = (
    Hinted(
        "i |'ve |’ve ",
        rf"[Ii](?<=\b[Ii])(?i:(?:['’]ve| have)? (?:now |just |successfully )*(?:{_MADE})\b)",
        re.NOFLAG,
    ),
    Hinted(
        "now |been |successfully ",
        rf"\b(?:has|have|is|are|was|were) (?:now |been |successfully )+(?:{_MADE})\b",
    ),
    Hinted("done|all set", r"^\W*done\b|\ball (?:done|set)\b", re.IGNORECASE | re.MULTILINE),
)
_NOTHING_TO_DO = Hinted(
    "already|nothing", r"\balready\b|\bnothing (?:was|had to be|needs? to be|to) (?:changed?|done?)\b"
)
# A courtesy at the end is no question.
_OFFERS = Hinted(
    "let me know|anything else|any |further |how |what ",
    r"\b(?:let me know|anything else|any other|any (?:further )?questions|further (?:help|assistance|questions)"
    r"|(?:how|what) (?:else )?(?:can|may) I (?:help|do|assist))\b",
)
_ASKS = Hinted(
    "?|please|could you|can you|kindly",
    r"\?|\b(?:please|could you|can you|kindly) (?:provide|confirm|tell|specify|share|clarify|send|upload|paste|let me)",
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")

_FILE = re.compile(
    r"(?:(?<![\w@/.])(?:~?[\w.-]*/)*(?!(?:node|vue|next|nuxt|react|express|three|d3|chart|socket)\.js\b)[\w-]+"
    r"\.(?:txt|md|rst|log|csv|tsv|json[l5]?|ya?ml|toml|ini|cfg|conf|env|xml|html?|css|s[ch]ss|sql|sh|bash|py|ipynb|m?jsx?"
    r"|tsx?|java|kt|go|rs|rb|php|c|cc|cpp|h|hpp|cs|swift|lua|r|tex|pdf|docx?|xlsx?|lock|patch|diff)\b(?!\()"
    r"|(?<![\w/.:])(?:~|\.{1,2})?/[\w.-]+/[\w./-]*\w)",
    re.IGNORECASE,
)
# "How do I…" asks for advice, "what belongs in package.json" for what everybody knows.
_WANTS_ADVICE = re.compile(
    r"\A\W*how (?:do|to|can|could|would|should|does)\b"
    r"|\b(?:purpose|example|minimal|by default|usually|typically|goes|go|belongs?|should|safe|explain|mean|okay|versus"
    r"|vs|difference|fresh|vanilla)\b",
    re.IGNORECASE,
)
# A text or code in which a file is named is not what is in that file.
_WANTS_TEXT = re.compile(
    r"\A\W*(?:(?:please|can you|could you|would you)\W+)*(?:write|draft|compose|translate|rephrase|rewrite)\b"
    r"|\b(?:an?|which|what) (?:[\w-]+ ){0,3}?(?:function|script|one-liner|regexp?|regular expression|query|command"
    r"|snippet|e?-?mail|message|letter)\b",
    re.IGNORECASE,
)
# What stands before the name of a file, in its line.
_READS = re.compile(
    r"\b(?:read|print|open|summari[sz]e|count|quote|cat|look (?:at|in|into|up|through)|show(?: me)?)\b"
    r"|\b(?:what|which|tell|how many|find|list|is)\b.*\b(?:in|of|from|inside)(?: the| my| file)* [`'\"]?\Z"
    r"|\bwhat (?:does|do) [`'\"]?\Z",
    re.IGNORECASE,
)
# Whatever else is wanted then, the file comes first.
_BEGINS_WITH_READING = re.compile(
    r"\W*(?:(?:please|can you|could you|would you|now)\W+)*"
    r"(?:read|open|summari[sz]e|quote|cat|look (?:at|in|into|up|through))"
    r"(?: (?:the|my|our|this|file|contents?|of|in))*\s*[`'\"]?",
    re.IGNORECASE,
)
# At the beginning of a clause, where it is said to somebody: "did you rename", "my change to" are about something done.
_CHANGES = re.compile(
    r"(?:\A|[.!,;:\n]|\b(?:please|then|and|can you|could you|would you|to|now))\s*(?:please |also |now |just )*"
    r"\b(?:fix|edit|change|rename|delete|remove|replace|refactor|update|move|append|insert|create|write|save|add|put)\b"
    r"(?! (?:in|to) [`'\"]?\Z)",
    re.IGNORECASE,
)
# What is to be done, or said, so many times; what happened so many times is told, most often as a fault.
_CLAUSE = r"(?:\A|[.!;\n]|\b(?:please|then|and|can you|could you|would you|now))\s*(?:please |also |now |just )*"
_NOT_TOLD = (
    r"(?:(?!\b(?:why|how|that|which|who|was|were|is|are|has|have|had|been|gets?|got|fail\w*|crash\w*|restart\w*|died|"
    r"until)\b)(?:[^.,;:?!\n]|\.(?=\S))){0,60}?"
)
_TIMES = (
    r"\b(?:\d+|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|fifty|a hundred|several) (?:more )?times\b"
)
_WANTS_RERUNS = re.compile(
    rf"{_CLAUSE}(?:(?:(?:re-?)?run|execute|repeat|call|ping|check|fetch|query|request|invoke|roll|flip)\b{_NOT_TOLD}{_TIMES}"
    rf"|(?:ping|check|poll|watch)\b{_NOT_TOLD}\bevery (?:\d+ |few |couple of )?(?:seconds?|minutes?|hours?)\b"
    r"|keep (?:checking|polling|watching|pinging)\b)",
    re.IGNORECASE,
)
_WANTS_REFRAIN = re.compile(rf"{_CLAUSE}(?:print|write|say|output|type)\b{_NOT_TOLD}{_TIMES}", re.IGNORECASE)
_ASKS_ABOUT = re.compile(
    r"\A\W*(?:did|do|does|have|has|had|what|why|who|when|where|which|is|are|was|were|review|explain)\b", re.IGNORECASE
)

# What is looked at again after a pause, or goes on without saying anything.
_WAITING_COMMAND = re.compile(r"(?:^|[;&|(]\s*|\bdo\s+)sleep\s+[\d.$]", re.MULTILINE)
_LOOP = re.compile(r"(?:until|while|for)\b")
_WAITING_TOOLS = frozenset({"browser_scroll", "browser_press", "browser_back"})
_WAITING = ("poll", "wait", "watch", "status", "tail", "log", "logs")
_ACTION_KEYS = ("action", "operation", "op", "mode")
_CHANGING_NAME = re.compile(
    r"write|edit|patch|replace|create|insert|delete|remove|update|append|modify|apply|rename|move|save|install|send|book"
    r"|cancel|skill_manage",
    re.IGNORECASE,
)
_COMMAND_KEYS = ("command", "cmd", "code", "script")
_READING_NAME = re.compile(
    r"(?:^|_)(?:read|get|list|search|find|show|view|fetch|query|lookup|describe|inspect|snapshot|web|vision|analyze|grep"
    r"|glob|cat|ls|count|check|session_search|skills?_(?:list|view))(?:_|$)",
    re.IGNORECASE,
)
# Programs that only look; anything else may change something.
_READING_COMMAND = re.compile(
    r"(?:cat|ls|grep|rg|find|head|tail|wc|sort|uniq|cut|pwd|echo|stat|file|which|tree|du|df|date|whoami|jq|diff|nl|less"
    r"|git\s+(?:log|diff|status|show|branch|blame|grep|ls-files)|sed\s+-n|awk|ps|printenv|pip3?\s+(?:show|list|freeze)"
    r"|[\w.-]+\s+(?:-V|--version))\b[^;&|><`$]*(?:2>(?:/dev/null|&1)[^;&|><`$]*)*"
)
# By Hermes's own tools (0.19 tools/code_execution_tool.py), not by a mock that is called like one of them.
_CHANGING_CODE = re.compile(r"(?<![.\w'\"])(?:write_file|patch)\(")
_GOES_TO = re.compile(r"cd\s+[^;&|]+")
_NEXT_COMMAND = re.compile(r"(\|\|?|&&|;)")
_CHANGING_COMMAND = re.compile(
    r"(?:^|[;&|(]\s*|\bsudo\s+|\bxargs\s+)(?:sed\s+(?:-\w+\s+)*-\w*i|perl\s+-\w*i|curl\s[^;&|]{0,500}-\w*[oO]|wget|unzip"
    r"|tar\s+-?\w*x|black|prettier|[^\s;&|(]+\s+--(?:fix|write)|tee|mv|cp|rm|mkdir|touch|patch|ln|chmod|dd|truncate"
    r"|git\s+(?:apply|checkout|commit|add|reset|stash|merge|rebase|restore|mv|rm|pull|clone)"
    r"|(?:pip3?|npm|yarn|pnpm|cargo|apt(?:-get)?|brew|uv)\s+(?:install|add|i|remove|uninstall))\b"
    r"|(?<![<>=-])>{1,2}\s*(?![&\s]|/dev/null)[\w./~$\"'-]"
    r"|\.write\(|write_text\(|open\([^)]{0,200}['\"][wax]",
    re.MULTILINE,
)
_once: dict[tuple[ReplySign, ...], tuple[ReplySign, ...]] = {}
"""One tuple for all replies with the same signs: a session keeps a hundred of them, and there are few kinds."""

# A script that is longer says at its beginning what it does, or nobody can tell.
_COMMAND_CHARS = 20_000


def of_result(tool: str, arguments: object, result: str, *, command: bool = False) -> tuple[ResultSign, ...]:
    """Return the signs of a call: what it said, and whether it changed something, only looked, or only waited.

    `command` when it is a command, for which saying nothing is the best that it can say.
    """
    done = of_call(tool, arguments)
    if command or "changes" in done or len(result) > _VERDICT_CHARS:
        return done
    return (*done, *_said_by(result.strip()))


def of_call(tool: str, arguments: object) -> tuple[ResultSign, ...]:
    """Return what a call does, as far as its tool and arguments tell; nothing where it may do anything."""
    commands = _commands(arguments)
    code = arguments.get("code") if isinstance(arguments, Mapping) else None
    if isinstance(code, str) and "hermes_tools" in code and _CHANGING_CODE.search(code[:_COMMAND_CHARS]):
        return ("changes",)
    if any(_CHANGING_COMMAND.search(command[:_COMMAND_CHARS]) for command in commands) or (
        not commands and _CHANGING_NAME.search(tool)
    ):
        return ("changes",)
    if any("sleep" in command and _waits(command[:_COMMAND_CHARS]) for command in commands):
        return ("polls",)
    if commands:
        return ("reads",) if all(map(_only_reads, commands)) else ()
    waits = isinstance(arguments, Mapping) and any(arguments.get(key) in _WAITING for key in _ACTION_KEYS)
    if waits or tool in _WAITING_TOOLS:
        return ("polls",)
    return ("reads",) if _READING_NAME.search(tool) else ()


def of_reply(text: str, *, ends_turn: bool, unaided: bool) -> tuple[ReplySign, ...]:
    """Return the signs of a reply.

    `ends_turn` when it is the answer, `unaided` when tools are at hand and none has shown anything so far.
    """
    found = tuple(_of_reply(text[:_READ_CHARS], text[-_ENDING_CHARS:], ends_turn=ends_turn, unaided=unaided))
    return _once.setdefault(found, found)


def of_message(text: str) -> tuple[MessageSign, ...]:
    """Return the signs of a user's message: what it asks for, and whether the user cannot give what is needed."""
    return tuple(_of_message(text))


def files_named(text: str) -> list[str]:
    """Return the names, without folders, of the files that a text names."""
    return [match[0].rpartition("/")[2] for match in _FILE.finditer(text[:_PASTED_CHARS])]


def _said_by(result: str) -> Iterator[ResultSign]:
    if result in _EMPTY:
        yield "empty"
    elif _REJECTED.fullmatch(result):
        yield "rejected"


def _only_reads(command: str) -> bool:
    """Tell whether a line of commands only looks, perhaps after a `cd`."""
    if len(command) > _COMMAND_CHARS:
        return False
    pieces = _NEXT_COMMAND.split(command)
    calls, between = [piece.strip() for piece in pieces[::2]], pieces[1::2]
    if between and between[0] in {"&&", ";"} and _GOES_TO.fullmatch(calls[0]):
        del calls[0]
    if len(calls) > 1 and not calls[-1]:
        calls.pop()  # a separator at the end
    return all(map(_READING_COMMAND.fullmatch, calls))


def _waits(command: str) -> bool:
    """Tell whether a command waits before it looks: nothing was done before it, or all of it is a loop that waits."""
    sleep = _WAITING_COMMAND.search(command)
    if sleep is None:
        return False
    before = command[: sleep.start()].strip()
    return not before or _LOOP.match(before) is not None or _only_reads(before)


def _commands(arguments: object) -> list[str]:
    given = [arguments.get(key) for key in _COMMAND_KEYS] if isinstance(arguments, Mapping) else []
    return [command for command in given if isinstance(command, str)]


def _of_reply(text: str, ending: str, *, ends_turn: bool, unaided: bool) -> Iterator[ReplySign]:
    lower = text.lower()
    if _CANNOT.search(text, lower):
        yield "cannot"
    if not ends_turn:
        return
    lower_ending = lower if ending == text else ending.lower()
    if _ASKS.search(ending, lower_ending) and any(map(_is_question, _SENTENCE_END.split(ending))):
        yield "asks"
    if _ANNOUNCES.search(ending, lower_ending):
        yield "announces"
    if _claims_done(text[:_CLAIM_CHARS], lower[:_CLAIM_CHARS]) and not _NOTHING_TO_DO.search(text, lower):
        yield "claims_done"
    if unaided:
        yield "unaided"


def _claims_done(text: str, lower: str) -> bool:
    return any(claim.search(text, lower) for claim in _CLAIMS_DONE)


def _is_question(sentence: str) -> bool:
    lower = sentence.lower()
    return _ASKS.search(sentence, lower) and not _OFFERS.search(sentence, lower)


def _of_message(text: str) -> Iterator[MessageSign]:
    if _CANNOT_SAY.search(text[:_READ_CHARS]):
        yield "cannot_say"
    if len(text) > _PASTED_CHARS or any(mark in text for mark in _PASTED):
        return
    if _WANTS_RERUNS.search(text):
        yield "wants_reruns"
    if _WANTS_REFRAIN.search(text):
        yield "wants_refrain"
    first = _FILE.search(text)
    is_to_read = first is not None and _BEGINS_WITH_READING.fullmatch(text[: first.start()]) is not None
    if _WANTS_ADVICE.search(text) and not is_to_read:
        return
    before = [text[text.rfind("\n", 0, file.start()) + 1 : file.start()] for file in _FILE.finditer(text)]
    if is_to_read or (any(map(_READS.search, before)) and not _WANTS_TEXT.search(text)):
        yield "wants_content"
    if any(map(_CHANGES.search, before)) and not _ASKS_ABOUT.search(text):
        yield "wants_change"
