"""Masks secrets in a conversation that is about to leave the machine.

Pure. What a secret is: `secret_forms.py`. A value that a name gave away is masked from then on wherever it stands. What
becomes of a message depends only on it and on what stands before it, so that prompt caches hold.

The same secret has the same mask, `[redacted:3fa290c1]`: eight digits of a hash that is salted once per process, and
more where two secrets of a conversation would share them. Without the salt, a password that is in a list could be found
by its mask. What a mask stands for is put back where the stronger model uses it in a call, which would else write the
mask into the user's files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from . import secret_forms as forms
from .fingerprint import Fingerprint, call_fingerprint

Message = dict[str, Any]

_SALT = os.urandom(16)
_MASK = re.compile(r"\[redacted:[0-9a-f]{8,}\]")
# Of more calls or secrets, those that came last are known.
_MOST_FILLED = 500
# Short ones stand in a text by chance.
_KNOWN_CHARS = 8
# A model has used it as a secret.
_FILLED_CHARS = 5
# As in a result of `read_file` (0.19 tools/file_operations.py), `cat -n` or `grep -n`; or in a diff.
_LINE_MARKS = (re.compile(r"\s*\d+(?:\||\t|:|-|→)"), re.compile(r"[+-]"))


class Filled:
    """The secrets that calls of stronger models were given in this process, and in which calls; it shows none of them.

    From then on they may stand in a conversation where nothing tells that they are secrets, and where what told it is
    not any more: in a call, in the words for a sub-agent. They must not go out when the history does. Safe to use from
    several threads.
    """

    __slots__ = ("_lock", "_masks", "_secrets")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._masks: dict[Fingerprint, tuple[str, ...]] = {}
        self._secrets: dict[str, str] = {}

    def add(self, arguments: Any, secrets: Mapping[str, str]) -> None:
        """Remember what masks stood for (mask → secret) in a call's arguments, which are as they are now."""
        with self._lock:
            self._masks[call_fingerprint("", arguments)] = tuple(secrets)
            self._secrets.update(secrets)
            while len(self._masks) > _MOST_FILLED:
                del self._masks[next(iter(self._masks))]
            while len(self._secrets) > _MOST_FILLED:
                del self._secrets[next(iter(self._secrets))]

    def secrets_in(self, arguments: Any) -> list[str]:
        """Return the secrets that were put into a call with these arguments."""
        if not self._masks:
            return []
        with self._lock:
            masks = self._masks.get(call_fingerprint("", arguments), ())
            return [self._secrets[mask] for mask in masks if mask in self._secrets]

    def telling(self) -> list[str]:
        """Return those of the secrets that stand in no text by chance."""
        with self._lock:
            return [secret for secret in self._secrets.values() if _is_telling(secret, _FILLED_CHARS)]


class Masks:
    """What each mask of one handoff stands for. It has no words of its own, so that no log and no error shows it."""

    def __init__(self, filled: Filled | None = None) -> None:
        self.filled = Filled() if filled is None else filled
        self._secrets: dict[str, str] = {}

    def of(self, secret: str) -> str:
        """Return the mask of a secret, which no other one of the handoff has."""
        digest = hashlib.blake2b(secret.encode("utf-8", "surrogatepass"), key=_SALT).hexdigest()
        digits = 8
        while self._secrets.setdefault(mask := f"[redacted:{digest[:digits]}]", secret) != secret:
            digits += 1
        return mask

    def again(self, text: str, secrets: Iterable[str]) -> str:
        """Return a text with these secrets masked, wherever they stand."""
        known = {secret: self.of(secret) for secret in secrets}
        # Not within a mask, whose digits may be a short secret; and no secret within a longer one.
        pieces = [_MASK.pattern, *map(re.escape, sorted(known, key=len, reverse=True))]
        return re.sub("|".join(pieces), lambda match: known.get(match[0], match[0]), text)

    def put_back(self, arguments: str) -> str:
        """Return a call's arguments with what the masks in their texts stand for.

        Without any, and where they are no JSON, they stay as they are. So does a mask that the handoff did not have.
        """
        masks = [mask for mask in dict.fromkeys(_MASK.findall(arguments)) if mask in self._secrets]
        if not masks:
            return arguments
        try:
            filled = _each_text(json.loads(arguments), lambda text: _MASK.sub(self._secret, text), keys=True)
        except (ValueError, RecursionError):
            return arguments
        self.filled.add(filled, {mask: self._secrets[mask] for mask in masks})
        return json.dumps(filled, ensure_ascii=False)

    def _secret(self, match: re.Match[str]) -> str:
        return self._secrets.get(match[0], match[0])


def _each_text(value: Any, change: Callable[[str], str], *, keys: bool = False) -> Any:
    match value:
        case str():
            return change(value)
        case list():
            return [_each_text(item, change, keys=keys) for item in value]
        case dict():
            return {change(key) if keys else key: _each_text(item, change, keys=keys) for key, item in value.items()}
        case _:
            return value


def redact(messages: Iterable[Message], masks: Masks | None = None) -> list[Message]:
    """Return the messages with every secret masked: in what is said, asked for and returned, not in images.

    `masks` gets to know what each mask stands for.
    """
    redaction = _Redaction(Masks() if masks is None else masks)
    return [redaction.message(message) for message in messages]


def is_secret(text: str) -> bool:
    """Tell whether there is a secret in a text."""
    return _Redaction(Masks()).text(text) != text


class _Redaction:
    """Masks secrets, and remembers those that only their names gave away."""

    def __init__(self, masks: Masks) -> None:
        self._masks = masks
        self._known = {secret: _by_itself(secret) for secret in masks.filled.telling()}

    def message(self, message: Message) -> Message:
        content = message["content"]
        redacted = {**message, "content": self._parts(content)}
        if isinstance(content, str):
            redacted["content"] = self.text(content, is_result=message["role"] == "tool")
        if message.get("tool_calls"):
            redacted["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return redacted

    def text(self, text: str, *, is_result: bool = False) -> str:
        mask = self._masks.of
        if "-----BEGIN " in text:
            in_json = is_result and _is_json(text)
            text = forms.PRIVATE_KEY.sub(lambda match: mask(_as_in_its_file(match[0], in_json=in_json)), text)
        if forms.FORM.may_match(text):
            text = forms.FORM.pattern.sub(lambda match: mask(match[0]), text)
        text = forms.DISCORD.sub(lambda match: mask(match[0]), text)
        lower = text.lower()
        for hinted in forms.IN_PLACE:
            if hinted.may_match(lower):
                text = hinted.pattern.sub(self._put_in_place, text)
        if forms.COOKIES.may_match(lower):
            text = forms.COOKIES.pattern.sub(lambda match: forms.COOKIE.sub(self._put_in_place, match[0]), text)
        if forms.NAMED[0].may_match(lower):
            for hinted in forms.NAMED:
                text = hinted.pattern.sub(self._put_named, text)
        if forms.AUTH.may_match(lower):
            text = forms.AUTH.pattern.sub(self._put_named, text)
        return self._with_known_masked(text)

    def _with_known_masked(self, text: str) -> str:
        for value, pattern in self._known.items():
            if value in text:
                text = pattern.sub(self._masks.of(value), text)
        return text

    def _parts(self, content: Any) -> Any:
        """Mask the texts of a content that also has images."""
        if not isinstance(content, list):
            return content
        return [{**part, "text": self.text(part["text"])} if part.get("type") == "text" else part for part in content]

    def _call(self, call: Mapping[str, Any]) -> Message:
        """Mask what a call asks for; valid JSON stays valid, and without a secret it stays as it was written."""
        function = call["function"]
        arguments = json.loads(function["arguments"])
        redacted = self._value(arguments, "")
        if secrets := self._masks.filled.secrets_in(arguments):
            redacted = _each_text(redacted, lambda text: self._masks.again(text, secrets))
        if redacted == arguments:
            return dict(call)
        return {**call, "function": {**function, "arguments": json.dumps(redacted, ensure_ascii=False)}}

    def _value(self, value: Any, name: str) -> Any:
        match value:
            case str() if forms.names_secret(name, value, quoted=True):
                self._remember(value)
                return self._masks.of(value)
            case str():
                return self.text(value)
            case list():
                return [self._value(item, name) for item in value]
            case dict():
                return {self.text(key): self._value(item, key) for key, item in value.items()}
            case _:
                return value

    def _put_in_place(self, match: re.Match[str]) -> str:
        return match[0] if forms.REFERENCE.match(match["secret"]) else self._put(match)

    def _put_named(self, match: re.Match[str]) -> str:
        for group in ("words", "secret"):
            if forms.is_assigned_secret(match, match[group]):
                return self._put(match, group)
        return match[0]

    def _put(self, match: re.Match[str], group: str = "secret") -> str:
        self._remember(match[group])
        start, end = (at - match.start() for at in match.span(group))
        return match[0][:start] + self._masks.of(match[group]) + match[0][end:]

    def _remember(self, secret: str) -> None:
        if _is_telling(secret, _KNOWN_CHARS):
            self._known[secret] = _by_itself(secret)


def _by_itself(secret: str) -> re.Pattern[str]:
    return re.compile(f"{forms.START}{re.escape(secret)}{forms.END}")


def _is_telling(secret: str, least: int) -> bool:
    return len(secret) >= least and re.search(r"\d", secret) is not None and re.search(r"[A-Za-z]", secret) is not None


def _is_json(text: str) -> bool:
    try:
        # Behind a result may stand a warning of Hermes's.
        json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _as_in_its_file(key: str, *, in_json: bool) -> str:
    """Return a private key without the escapes of a result, and the numbers or signs that tools put before lines."""
    if in_json:
        with suppress(ValueError):  # it goes over the end of its string
            key = json.loads(f'"{key}"')
    head, *lines = key.split("\n")
    for mark in _LINE_MARKS:
        if all(mark.match(line) for line in lines):
            lines = [mark.sub("", line, count=1) for line in lines]
    return "\n".join((head, *lines))
