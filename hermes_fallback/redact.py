"""Masks secrets in a conversation that is about to leave the machine, and finds what the user wants never to leave it.

Pure. A secret is known by its form (a vendor's prefix, a JSON web token, a private key) or by what stands before it (a
URL's user, an Authorization header, the name of a variable or field). Text that is merely random is left alone, for
hashes, UUIDs and images are random too. A value that a name gave away is masked from then on wherever it stands. What
becomes of a message depends only on it and on what stands before it, so that prompt caches hold.

The same secret has the same mask, `[redacted:3fa290c1]`: eight digits of a hash that is salted once per process, and
more where two secrets of a conversation would share them. Without the salt, a password that is in a list could be found
by its mask. What a mask stands for is put back where the stronger model uses it in a call, which would else write the
mask into the user's files.

Why not detect-secrets (Yelp, on PyPI): it finds secrets in files, for a baseline. Its `scan_line` gives values without
their places, and goes line by line: of a private key it finds the first line, and JSON has no lines. Its plugins and
filters are global settings that each scan changes, and those for entropy report hashes. Hermes's own `agent.redact`
leaves the head and the tail of a key, which is meant for a log on this machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .fingerprint import Fingerprint, call_fingerprint
from .hinted import Hinted

Message = dict[str, Any]

_SALT = os.urandom(16)

# Where a word may begin in text that may be JSON: behind an escaped line break too, whose second half is a letter.
_START = r"(?<![A-Za-z0-9_\\-](?<!\\[nrt]))"
_END = r"(?![A-Za-z0-9_-])"

# Published by the vendors, most of them for secret scanners. The lengths keep words away that begin in the same way.
_FORMS = (
    r"sk-(?:ant|proj|or|svcacct|admin)-[\w-]{20,}|sk-(?=[\w-]*\d)[\w-]*[A-Za-z0-9]{16}[\w-]*",  # OpenAI and many
    r"(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/]{24,}",  # Stripe
    r"gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{40,}",
    r"gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[\w-]{20,}",  # GitLab
    r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}|xapp-\d-[A-Za-z0-9-]{10,}",  # Slack
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",  # AWS
    r"AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}",  # Google
    r"hf_[A-Za-z0-9]{30,}|r8_[A-Za-z0-9]{30,}|gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{40,}|pplx-[A-Za-z0-9]{32,}",
    r"tvly-(?:dev-|prod-)?[A-Za-z0-9]{20,}|fw_[A-Za-z0-9]{20,}|csk-[a-z0-9]{30,}|nvapi-[\w-]{40,}",
    r"npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{40,}|dckr_pat_[\w-]{20,}|rubygems_[a-f0-9]{48}",
    r"SG\.[\w-]{16,}\.[\w-]{16,}|key-[a-f0-9]{32}|SK[a-f0-9]{32}",  # SendGrid, Mailgun, Twilio
    r"do[opr]_v1_[a-f0-9]{64}|dapi[a-f0-9]{32}|hv[sb]\.[\w-]{20,}|ATATT3[\w=-]{40,}|shp(?:at|ca|pa|ss)_[a-f0-9]{32}",
    r"ntn_[A-Za-z0-9]{40,}|secret_[A-Za-z0-9]{43}|lin_api_[A-Za-z0-9]{32,}|sbp_[a-f0-9]{40}|sntry[su]_[\w+/=-]{40,}",
    r"\d{8,10}:AA[\w-]{33}",  # Telegram
    r"AGE-SECRET-KEY-1[A-Z0-9]{58}",
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # JSON web token
)
_FORM = Hinted(
    "sk-|sk_|rk_|whsec_|gho_|ghp_|ghs_|ghu_|ghr_|_pat_|glpat-|gldt-|glrt-|glcbt-|glptt-|glft-|glsoat-|xox|xapp-|AKIA"
    "|ASIA|ABIA|ACCA|AIza|ya29.|GOCSPX-|hf_|r8_|xai-|pplx-|tvly-|fw_|nvapi-|npm_|pypi-|rubygems_|SG."
    "|key-|SK|_v1_|dapi|hvs.|hvb.|ATATT3|shp|ntn_|secret_|lin_api_|sbp_|sntry|:AA|AGE-SECRET-KEY-|eyJ",
    f"{_START}(?:{'|'.join(_FORMS)}){_END}",
    0,
)
# Discord's have no hint. The look at what stands before comes second, for a pattern that begins with its letters is
# looked for many times as fast.
_DISCORD = re.compile(
    rf"[MNO](?:(?<![A-Za-z0-9_\\-][MNO])|(?<=\\[nrt][MNO]))[\w-]{{23,27}}\.[\w-]{{6}}\.[\w-]{{27,40}}{_END}"
)

_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    # With its end; or, where a result was cut, as far as it goes. A marker that code looks for has no key behind it.
    r"(?:(?=(?:(?!-----)[\s\S])*[A-Za-z0-9+/=]{16})(?:(?!-----BEGIN)[\s\S]){0,20000}?-----END [A-Z0-9 ]+-----"
    r"|(?:\\[nr]|[A-Za-z0-9+/=\s])*[A-Za-z0-9+/=]{16}(?:\\[nr]|[A-Za-z0-9+/=\s])*)"
)

# As in a result of `read_file` (0.19 tools/file_operations.py), `cat -n` or `grep -n`; or in a diff.
_LINE_MARKS = (re.compile(r"\s*\d+(?:\||\t|:|-|→)"), re.compile(r"[+-]"))

# A value goes no further than its quotes; in JSON, no further than a backslash.
_VALUE = r"""[^\s"'`\\,;<>]"""
_QUOTE = r"""(?:\\*["'])"""
# Of a command line: what stands between a program and its option, and the secret that follows the option.
_OPTIONS = r"(?:[^\n\\|;&]|\\\\\\n|\\[^n]){0,200}?"
_ARGUMENT = rf"{_QUOTE}?(?P<secret>(?={_VALUE}{{0,300}}\d){_VALUE}{{6,300}})"
# Between the words of .netrc: line breaks too, as they are in JSON and behind the line numbers of `read_file`.
_GAP = r"(?:\s|\\++[nrt]|\d++\|){1,40}+"
# What nobody writes in a sentence or in code but a password: small and capital letters and digits, which are neither a
# name in camel case (`Sha256Hash`) nor joined to a word (`SHA256-hashed`).
_SAID = (
    rf"(?={_VALUE}{{0,99}}[a-z])(?={_VALUE}{{0,99}}[A-Z])(?={_VALUE}{{0,99}}\d)(?![a-z]*\d*(?:[A-Z]+[a-z]*\d*)+{_END})"
    rf"(?!{_VALUE}{{0,99}}-[A-Za-z]{{3}})(?:(?![(){{}}\[\]]){_VALUE}){{5,99}}[^\s\"'`\\,;<>.:?(){{}}\[\]]"
)
_IN_PLACE = tuple(
    Hinted(hints, pattern, 0)
    for hints, pattern in (
        # The password of a URL, or the token that stands for user and password.
        ("://", r"[a-z][a-z0-9+.-]{1,20}://[^\s:/@\"'`\\<>]{0,100}:(?P<secret>[^\s/@\"'`\\<>]{1,300})@(?=[\w\[])"),
        ("://", r"[a-z][a-z0-9+.-]{1,20}://(?P<secret>[\w.~-]{16,300})@(?=[\w\[])"),
        (
            "?|&",
            (
                r"[?&](?i:(?:access|refresh|id|auth|x-amz-security)?[_-]?token|api_?key|key|(?:client_)?secret|password|sig"
                r"|(?:x-amz-|x-goog-)?signature)=(?P<secret>[\w.~%+/=-]{8,})"
            ),
        ),
        # Slack's and Discord's.
        ("hooks", r"hooks(?:\.slack\.com/services|/\d+)/(?P<secret>T\w+/B\w+/\w+|[\w-]{40,})"),
        # Headers, as sent and as written in code.
        (
            "authorization",
            rf"(?i:\bauthorization{_QUOTE}?\s*[:=]\s*{_QUOTE}?(?:bearer|basic|token|apikey)\s+)(?P<secret>{_VALUE}{{6,}})",
        ),
        (
            "api-key|-token",
            (
                rf"(?i:\b(?:x-(?:goog-)?api-key|x-(?:api|auth|access)-token|private-token|api-key){_QUOTE}?\s*:\s*{_QUOTE}?)"
                rf"(?P<secret>{_VALUE}{{8,}})"
            ),
        ),
        ("bearer", rf"{_START}(?i:bearer\s+)(?P<secret>(?=[\w.~+/=-]*\d)[\w.~+/=-]{{16,}})"),
        # Command lines and .netrc.
        ("-u", rf"(?:\s-u|--user)[ =]{_QUOTE}?[\w.@+-]+:(?P<secret>(?=\d{{0,20}}[^\s\d]){_VALUE}{{4,300}})"),
        ("--", rf"--(?:password|passphrase|token|secret|api-key)[ =]{_ARGUMENT}"),
        (
            " -p",
            (
                rf"{_START}(?:(?:sshpass(?: -\w){{0,3}}"
                rf"|(?:docker|podman|nerdctl|buildah|helm\s+registry)\s+login{_OPTIONS}) -p[ =]?"
                # Behind a blank it is a database; `docker run --name mysql -p3306:3306` has ports.
                rf"|(?:mysql|mariadb)[\w-]*+(?=\s){_OPTIONS} -p(?={_QUOTE}?[\d.:]*[^\d.:\s\\\"'])){_ARGUMENT}"
            ),
        ),
        ("redis-cli|requirepass", rf"{_START}(?:redis-cli{_OPTIONS} (?:-a|--pass)|requirepass)\s{_ARGUMENT}"),
        (
            "chpasswd",
            (
                rf"[\w.-]{{1,32}}:(?P<secret>(?:(?!\|){_VALUE}){{4,300}}+)(?:\\n)?{_QUOTE}?\s{{0,9}}\|\s{{0,9}}"
                r"(?:sudo\s(?:-\w\s)?)?(?:/[\w/]{1,60}/)?chpasswd\b"
            ),
        ),
        (
            "login",
            (
                rf"(?P<machine>{_START}(?:machine(?:{_GAP}{_VALUE}{{1,200}}+){{1,3}}?|default){_GAP})?"
                rf"{_START}login{_GAP}{_VALUE}{{1,200}}+{_GAP}password{_GAP}"
                # Without a machine it may be prose.
                rf"(?P<secret>(?(machine)|(?={_VALUE}{{0,300}}\d)){_VALUE}+)"
            ),
        ),
        # PostgreSQL's .pgpass: alone on its line, with the usual ports or any.
        (
            ":543|:643|:*:",
            (
                r"(?:^|(?<=[\n\"|])|(?<=\\n))(?:[\w.*/-]{1,200}|\[[\da-f:]{2,39}\]):(?:[56]43\d{1,2}|\*):"
                r"(?!\d+:\d+:)[^\s:\"'\\]{1,63}:[^\s:\"'\\]{1,63}"
                r":(?P<secret>(?=[^\s:\"'\\]{0,300}\d)[^\s:\"'\\]{4,300})(?=[\n\r\"]|\\+[nr\"]|$)"
            ),
        ),
        # What is said, and SQL.
        (
            "password",
            (
                rf"{_START}(?i:password(?: is:?| for (?:user )?{_VALUE}{{1,60}}:)? )"
                rf"{_QUOTE}?(?P<secret>(?<=[\"'])(?={_VALUE}{{0,300}}\d){_VALUE}{{6,300}}|{_SAID})"
            ),
        ),
        (
            "identified",
            (
                rf"{_START}(?i:(?:user|grant|role)\b[^;\n\\]{{0,200}}? identified (?:with \w{{1,60}} )?by )"
                rf"{_QUOTE}(?P<secret>(?={_VALUE}{{0,300}}\d){_VALUE}{{6,300}})"
            ),
        ),
    )
)

# A cookie may be a session; of those of a header each is looked at.
_COOKIES = Hinted(
    "cookie",
    rf"(?:[Cc]ookie|COOKIE)(?:{_QUOTE}?\s?:\s?{_QUOTE}?|{_QUOTE}?\]?\s?=\s?{_QUOTE})[^\n\\\"']{{20,8000}}",
    0,
)
_COOKIE = re.compile(
    r"(?<![^\s;:=\"'])[\w.-]{1,100}="
    r"(?P<secret>(?=[^\s;]*\d)(?=[^\s;]*[A-Za-z])(?=[^\s;]*[A-Za-z0-9]{12})[\w.~+/=%-]{20,4000})"
)

# `pass` alone is a statement, a verdict, a word: as a name it has its sign or quotation mark at once.
_PASSWORD = (
    r"(?:password|passwd|passphrase|passwort|pwd|(?<=[_-])pass"
    rf"|(?<![A-Za-z0-9!#$%^&*+~](?<!\\[nrt]))pass(?={_QUOTE}|[:=]|$))"
)
_KEY = (
    r"(?:secret|token|credentials?"
    r"|(?:api|access|secret|private|auth|account|encryption|signing|master|storage|licen[cs]e|deploy|webhook)[_-]?key"
    r"|key[_-]data)"
)
_NAME = rf"(?P<name>[\w.-]{{0,60}}?(?i:{_PASSWORD}|{_KEY})_?\d?)"
# All words in a pair of quotes, but for those that may be an assignment themselves; or the first.
_WORDS = rf"(?P<words>(?P<secret>{_VALUE}+)(?(quote)(?:(?: (?:(?![=:]){_VALUE})+){{1,12}}(?=(?P=quote)))?))"
_NAMED = tuple(
    Hinted(
        "passw|passphrase|pwd|_pass|-pass|pass:|pass=|pass\"|pass'|pass\\|secret|token|credential|key",
        pattern,
        0,
    )
    for pattern in (
        # The name goes to the end of its word, and a sign follows: to look for that first is fast, where dots join
        # words. After a name in quotes a bracket may close: `os.environ["DB_PASSWORD"] = …`.
        (
            rf"(?<![A-Za-z0-9_\\](?<!\\[nrt]))(?=[\w.-]{{3,85}}+(?:{_QUOTE}\]?)?\s?[=:]){_NAME}"
            rf"(?P<sign>(?:{_QUOTE}\]?)?\s?(?:=>|:=|=|:)\s?)(?P<quote>{_QUOTE})?{_WORDS}"
        ),
        # `define('DB_PASSWORD', '…')`, `config.set('database', 'password', '…')`, `setdefault("API_KEY", "…")`.
        (
            r"(?:[sg]et(?:Item|Property)?|put|env|de(?:fine|fault))\(\s?"
            rf"(?:{_QUOTE}[\w.-]{{1,60}}{_QUOTE},\s?)?{_QUOTE}{_NAME}(?P<sign>{_QUOTE},\s?)(?P<quote>{_QUOTE}){_WORDS}"
        ),
        # `<password>…</password>`: the end of the tag is as good as a quotation mark.
        rf"<(?:\w{{1,20}}:)?{_NAME}(?P<sign>(?:\s[^<>]{{0,100}})?)(?P<quote>>)(?P<words>(?P<secret>[^\s<>\\]+))<\\?/",
        rf"configure set {_NAME}(?P<sign>)(?P<quote>\s{_QUOTE}?){_WORDS}",
    )
)
# The user and the password of a registry, in Docker's config.json and in .npmrc.
_AUTH = Hinted(
    '"auth|_auth',
    rf"(?P<name>_auth|(?<=\")auth(?={_QUOTE}))(?P<sign>{_QUOTE}?\s?[:=]\s?)(?P<quote>{_QUOTE})?"
    r"(?P<words>(?P<secret>[A-Za-z0-9+/]{8,4000}={0,2}))",
    0,
)
_IS_PASSWORD = re.compile(rf"(?i){_PASSWORD}_?\d?$")
_IS_KEY = re.compile(rf"(?i){_KEY}_?\d?$")
# Where to go on in a list of results: no secret, and needed as it is.
_NO_SECRET = re.compile(r"(?i)(?:next|page|paging|continuation|cursor|sync|pad|stop|start|special)[\w-]*token$")
# A reference to a value, code that makes one, a path, or what is masked already.
_REFERENCE = re.compile(
    r"""[$%{\[(<*&!@]|.*[(\[{]|(?:[~.]{0,2}/|[A-Za-z]:[\\/])|(?:os|process|env|self|this|config|settings|secrets|vars)[.:]"""
    r"""|(?i:\**|x+|\.+|none|null|nil|true|false|undefined|redacted.*|your[-_].*|changeme|example)$|«|[a-z]+://"""
)
_WORD = re.compile(r"[A-Za-z_][A-Za-z_.-]*\d{0,3}")
# Words as in a sentence or on a button are what stands under `password` in messages and translations. Others are a
# password when one of them has a digit beside a letter; so are Google's and WordPress's for programs, groups of four.
_PHRASE = re.compile(
    r"(?i)(?!.*\b(?:a|an|and|are|as|at|be|by|can|char\w*|enter|for|from|has|have|if|in|is|it|least|must|new|no|not|of|on|or"
    r"|pass\w*|please|required|set|should|than|that|the|this|to|use|used|using|was|will|with|you|your)\b)"
    r"(?:(?=.*(?:[a-z]\d|\d[a-z]))[a-z]\S*(?: \S+){2,}|[a-z0-9]{4}(?: [a-z0-9]{4}){3,5})"
)
_RANDOM = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])(?=\S*[A-Za-z0-9]{12})[\w.~+/=-]+")
# What may stand in front of a name that begins its line: indentation, line numbers, `export`, a quotation mark.
_LINE_HEAD = r"[\s>|\d\-{\"':a-z]*(?://\S+:)?"
_LINE_CHARS = 200
# Short ones stand in a text by chance.
_KNOWN_CHARS = 8
# A model has used it as a secret.
_FILLED_CHARS = 5


_MASK = re.compile(r"\[redacted:[0-9a-f]{8,}\]")
# Of more calls or secrets, those that came last are known.
_MOST_FILLED = 500


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
            text = _PRIVATE_KEY.sub(lambda match: mask(_as_in_its_file(match[0], in_json=in_json)), text)
        if _FORM.may_match(text):
            text = _FORM.pattern.sub(lambda match: mask(match[0]), text)
        text = _DISCORD.sub(lambda match: mask(match[0]), text)
        lower = text.lower()
        for hinted in _IN_PLACE:
            if hinted.may_match(lower):
                text = hinted.pattern.sub(self._put_in_place, text)
        if _COOKIES.may_match(lower):
            text = _COOKIES.pattern.sub(lambda match: _COOKIE.sub(self._put_in_place, match[0]), text)
        if _NAMED[0].may_match(lower):
            for hinted in _NAMED:
                text = hinted.pattern.sub(self._put_named, text)
        if _AUTH.may_match(lower):
            text = _AUTH.pattern.sub(self._put_named, text)
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
            case str() if _names_secret(name, value, quoted=True):
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
        return match[0] if _REFERENCE.match(match["secret"]) else self._put(match)

    def _put_named(self, match: re.Match[str]) -> str:
        for group in ("words", "secret"):
            if _is_assigned_secret(match, match[group]):
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
    return re.compile(f"{_START}{re.escape(secret)}{_END}")


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


def _is_assigned_secret(match: re.Match[str], value: str) -> bool:
    name, sign = match["name"], match["sign"]
    if name.isupper() and sign == "=":
        # A line of a .env file, or a variable set in front of a command: whatever stands there is the secret.
        is_count = name == "PASS" and re.fullmatch(r"[\d/%.:-]+", value) is not None
        return len(value) >= 4 and not _REFERENCE.match(value) and not value.isdigit() and not is_count
    if match["quote"]:
        return _names_secret(name, value, quoted=True)
    # An unquoted word is a name in code, unless it is all there is on its line.
    before = re.split(r"\\n|\n", match.string[max(match.start() - _LINE_CHARS, 0) : match.start()])[-1]
    after = match.string[match.end() : match.end() + _LINE_CHARS]
    if not re.match(r"[ \t]*(?:#|\r|\n|\\[rn]|[\"']|$)", after) or not re.fullmatch(_LINE_HEAD, before):
        # Or it is said within a line.
        return bool(
            sign == ": " and _IS_PASSWORD.search(name) and re.match(_SAID, value) and not _REFERENCE.match(value)
        )
    return _names_secret(name, value, quoted=sign != " = ")


def _names_secret(name: str, value: str, *, quoted: bool) -> bool:
    """Tell whether `value` is a secret, standing under this name."""
    if _REFERENCE.match(value) or _NO_SECRET.search(name):
        return False
    if name.lower().endswith("auth"):
        return _is_user_and_password(value)
    if re.search(r"\s", value):
        return _IS_PASSWORD.search(name) is not None and _PHRASE.fullmatch(value) is not None
    if name.lower() == "pass" and not re.match(_SAID, value):
        return False  # a count, a test that passed, or the name of one of several passes
    if _IS_PASSWORD.search(name):
        is_telling = re.search(r"[\d!@#$%^&*+?~]", value) is not None
        if _IS_PASSWORD.search(value) or re.search(r"required|m(?:in|ax)[:=]", value):
            return False  # a name, or the rules of a form
        return len(value) >= 5 and is_telling and not value.isdigit() and (quoted or not _WORD.fullmatch(value))
    return bool(_IS_KEY.search(name)) and 16 <= len(value) <= 10_000 and _RANDOM.fullmatch(value) is not None


def _is_user_and_password(value: str) -> bool:
    """Tell whether a value is `user:password` in base64."""
    try:
        written = base64.b64decode(value, validate=True).decode()
    except ValueError:
        return False
    return ":" in written and written.isprintable()


# How programs write letters that are not ASCII: JSON an ä as \u00e4, git as \303\244, Python as \xe4 or its bytes as
# \xc3\xa4, an address as %C3%A4. In JSON, each backslash is two. Of thousands in a row none is looked at twice.
_BACKSLASHES = r"(?<!\\)\\++"
_ESCAPED = re.compile(
    rf"(?P<utf16>(?:{_BACKSLASHES}u[0-9a-fA-F]{{4}})+)|(?P<utf32>{_BACKSLASHES}U[0-9a-fA-F]{{8}})"
    rf"|(?P<octal>(?:{_BACKSLASHES}[0-3][0-7]{{2}})+)|(?P<hex>(?:(?:{_BACKSLASHES}x|%)[0-9a-fA-F]{{2}})+)"
)
_PATH_CHARS = 4096
"""No system has longer paths (Linux's PATH_MAX); to look for a pattern in a longer piece could take for ever."""
_PATH_SPLIT = re.compile(r"""(?<!\\)\\[nrt"]|[\s"'`<>|,;:()\[\]{}=]+""")


def never_send_match(messages: Sequence[Mapping[str, Any]], patterns: Sequence[str]) -> str | None:
    """Return the first pattern that something in the conversation matches, or None.

    A pattern with `*`, `?` or `/` in it stands for paths: `*` for anything within a folder or file name, `**` for any
    folders. It matches wherever in a path it fits, and all below a folder that it matches. Any other is text that must
    not occur. Upper and lower case are the same.
    """
    if not patterns:
        return None
    texts = [form for message in messages for text in _texts(message) for form in _forms(text)]
    paths = {path for text in texts for path in _paths(text)}
    return next((pattern for pattern in patterns if _matches(_folded(pattern), texts, paths)), None)


def _forms(text: str) -> Iterator[str]:
    """Yield a text as it is compared; and once more with the letters that it writes in escapes."""
    yield _folded(text)
    if _ESCAPED.search(text):
        yield _folded(_ESCAPED.sub(_unescaped, text))


def _unescaped(match: re.Match[str]) -> str:
    if match["utf16"]:
        return bytes.fromhex("".join(re.findall(r"u(.{4})", match[0]))).decode("utf-16-be", "replace")
    if match["utf32"]:
        return bytes.fromhex(match[0][-8:]).decode("utf-32-be", "replace")
    numbers = re.findall(r"[0-3][0-7]{2}", match[0]) if match["octal"] else re.findall(r"[0-9a-fA-F]{2}", match[0])
    written = bytes(int(number, 8 if match["octal"] else 16) for number in numbers)
    try:
        return written.decode()
    except UnicodeDecodeError:
        return written.decode("latin-1")  # Python writes the letters up to ÿ so


def _folded(text: str) -> str:
    # macOS has the names of files decomposed: an ä is an a and two dots.
    return unicodedata.normalize("NFC", text).casefold()


def _matches(pattern: str, texts: Sequence[str], paths: Iterable[str]) -> bool:
    if not re.search(r"[*?/]", pattern):
        return any(pattern in text for text in texts)
    glob = re.compile(rf"(?:.*/)?{_glob(pattern)}(?:/.*)?")
    return any(glob.fullmatch(path) for path in paths)


def _glob(pattern: str) -> str:
    names = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    # It fits behind any folder anyhow; two places for any folders would be tried in all pairs.
    pattern = re.sub(r"\A(?:\*\*/)+", "", pattern.removeprefix("~").strip("/"))
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return "".join(names.get(piece) or re.escape(piece) for piece in pieces)


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield all that a message says and asks for."""
    yield from _strings(message.get("content"))
    for call in message.get("tool_calls") or ():
        arguments = (call.get("function") or {}).get("arguments")
        try:
            yield from _strings(json.loads(arguments) if isinstance(arguments, str) else arguments)
        except (ValueError, RecursionError):
            yield str(arguments)


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str() if not value.startswith("data:"):
            yield value
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            for key, item in value.items():
                yield str(key)
                yield from _strings(item)
        case _:
            pass


def _paths(text: str) -> Iterator[str]:
    """Yield all that could be a path: words, and whole lines, for paths may have spaces in them."""
    for piece in (*_PATH_SPLIT.split(text), *re.split(r"(?<!\\)\\n|\n", text)):
        if len(piece) > _PATH_CHARS:
            continue
        yield re.sub(r"\\+", "/", piece.strip()).rstrip("/.")
