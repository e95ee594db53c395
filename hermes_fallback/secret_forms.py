"""What secrets look like; what is done with them: `redact.py`.

Pure. A secret is known by its form (a vendor's prefix, a JSON web token, a private key), or by what stands before it (a
URL's user, an Authorization header, a program's option, the name of a variable or field). Text that is merely random is
none, for hashes, UUIDs and images are random too.

What `PRIVATE_KEY`, `FORM` and `DISCORD` match is a secret as a whole; of what `IN_PLACE` and `COOKIE` match, the group
`secret` is one, unless it is a `REFERENCE`. Of what `NAMED` and `AUTH` match, `is_assigned_secret` tells.

Why not detect-secrets (Yelp, on PyPI): it finds secrets in files, for a baseline. Its `scan_line` gives values without
their places, and goes line by line: of a private key it finds the first line, and JSON has no lines. Its plugins and
filters are global settings that each scan changes, and those for entropy report hashes. Hermes's own `agent.redact`
leaves the head and the tail of a key, which is meant for a log on this machine.
"""

from __future__ import annotations

import base64
import re

from .hinted import Hinted

# Where a word may begin in text that may be JSON: behind an escaped line break too, whose second half is a letter.
START = r"(?<![A-Za-z0-9_\\-](?<!\\[nrt]))"
END = r"(?![A-Za-z0-9_-])"

# Published by the vendors, most of them for secret scanners. The lengths keep words away that begin in the same way.
FORMS = (
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
FORM = Hinted(
    "sk-|sk_|rk_|whsec_|gho_|ghp_|ghs_|ghu_|ghr_|_pat_|glpat-|gldt-|glrt-|glcbt-|glptt-|glft-|glsoat-|xox|xapp-|AKIA"
    "|ASIA|ABIA|ACCA|AIza|ya29.|GOCSPX-|hf_|r8_|xai-|pplx-|tvly-|fw_|nvapi-|npm_|pypi-|rubygems_|SG."
    "|key-|SK|_v1_|dapi|hvs.|hvb.|ATATT3|shp|ntn_|secret_|lin_api_|sbp_|sntry|:AA|AGE-SECRET-KEY-|eyJ",
    f"{START}(?:{'|'.join(FORMS)}){END}",
    0,
)
# Discord's have no hint. The look at what stands before comes second, for a pattern that begins with its letters is
# looked for many times as fast.
DISCORD = re.compile(
    rf"[MNO](?:(?<![A-Za-z0-9_\\-][MNO])|(?<=\\[nrt][MNO]))[\w-]{{23,27}}\.[\w-]{{6}}\.[\w-]{{27,40}}{END}"
)

PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    # With its end; or, where a result was cut, as far as it goes. A marker that code looks for has no key behind it.
    r"(?:(?=(?:(?!-----)[\s\S])*[A-Za-z0-9+/=]{16})(?:(?!-----BEGIN)[\s\S]){0,20000}?-----END [A-Z0-9 ]+-----"
    r"|(?:\\[nr]|[A-Za-z0-9+/=\s])*[A-Za-z0-9+/=]{16}(?:\\[nr]|[A-Za-z0-9+/=\s])*)"
)

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
    rf"(?={_VALUE}{{0,99}}[a-z])(?={_VALUE}{{0,99}}[A-Z])(?={_VALUE}{{0,99}}\d)(?![a-z]*\d*(?:[A-Z]+[a-z]*\d*)+{END})"
    rf"(?!{_VALUE}{{0,99}}-[A-Za-z]{{3}})(?:(?![(){{}}\[\]]){_VALUE}){{5,99}}[^\s\"'`\\,;<>.:?(){{}}\[\]]"
)
IN_PLACE = tuple(
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
        ("bearer", rf"{START}(?i:bearer\s+)(?P<secret>(?=[\w.~+/=-]*\d)[\w.~+/=-]{{16,}})"),
        # Command lines and .netrc.
        ("-u", rf"(?:\s-u|--user)[ =]{_QUOTE}?[\w.@+-]+:(?P<secret>(?=\d{{0,20}}[^\s\d]){_VALUE}{{4,300}})"),
        ("--", rf"--(?:password|passphrase|token|secret|api-key)[ =]{_ARGUMENT}"),
        (
            " -p",
            (
                rf"{START}(?:(?:sshpass(?: -\w){{0,3}}"
                rf"|(?:docker|podman|nerdctl|buildah|helm\s+registry)\s+login{_OPTIONS}) -p[ =]?"
                # Behind a blank it is a database; `docker run --name mysql -p3306:3306` has ports.
                rf"|(?:mysql|mariadb)[\w-]*+(?=\s){_OPTIONS} -p(?={_QUOTE}?[\d.:]*[^\d.:\s\\\"'])){_ARGUMENT}"
            ),
        ),
        ("redis-cli|requirepass", rf"{START}(?:redis-cli{_OPTIONS} (?:-a|--pass)|requirepass)\s{_ARGUMENT}"),
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
                rf"(?P<machine>{START}(?:machine(?:{_GAP}{_VALUE}{{1,200}}+){{1,3}}?|default){_GAP})?"
                rf"{START}login{_GAP}{_VALUE}{{1,200}}+{_GAP}password{_GAP}"
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
                rf"{START}(?i:password(?: is:?| for (?:user )?{_VALUE}{{1,60}}:)? )"
                rf"{_QUOTE}?(?P<secret>(?<=[\"'])(?={_VALUE}{{0,300}}\d){_VALUE}{{6,300}}|{_SAID})"
            ),
        ),
        (
            "identified",
            (
                rf"{START}(?i:(?:user|grant|role)\b[^;\n\\]{{0,200}}? identified (?:with \w{{1,60}} )?by )"
                rf"{_QUOTE}(?P<secret>(?={_VALUE}{{0,300}}\d){_VALUE}{{6,300}})"
            ),
        ),
    )
)

# A cookie may be a session; of those of a header each is looked at.
COOKIES = Hinted(
    "cookie",
    rf"(?:[Cc]ookie|COOKIE)(?:{_QUOTE}?\s?:\s?{_QUOTE}?|{_QUOTE}?\]?\s?=\s?{_QUOTE})[^\n\\\"']{{20,8000}}",
    0,
)
COOKIE = re.compile(
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
NAMED = tuple(
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
AUTH = Hinted(
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
REFERENCE = re.compile(
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


def is_assigned_secret(match: re.Match[str], value: str) -> bool:
    """Tell whether `value`, all words or the first that a match of `NAMED` or `AUTH` has, is a secret."""
    name, sign = match["name"], match["sign"]
    if name.isupper() and sign == "=":
        # A line of a .env file, or a variable set in front of a command: whatever stands there is the secret.
        is_count = name == "PASS" and re.fullmatch(r"[\d/%.:-]+", value) is not None
        return len(value) >= 4 and not REFERENCE.match(value) and not value.isdigit() and not is_count
    if match["quote"]:
        return names_secret(name, value, quoted=True)
    # An unquoted word is a name in code, unless it is all there is on its line.
    before = re.split(r"\\n|\n", match.string[max(match.start() - _LINE_CHARS, 0) : match.start()])[-1]
    after = match.string[match.end() : match.end() + _LINE_CHARS]
    if not re.match(r"[ \t]*(?:#|\r|\n|\\[rn]|[\"']|$)", after) or not re.fullmatch(_LINE_HEAD, before):
        # Or it is said within a line.
        return bool(
            sign == ": " and _IS_PASSWORD.search(name) and re.match(_SAID, value) and not REFERENCE.match(value)
        )
    return names_secret(name, value, quoted=sign != " = ")


def names_secret(name: str, value: str, *, quoted: bool) -> bool:
    """Tell whether `value` is a secret, standing under this name."""
    if REFERENCE.match(value) or _NO_SECRET.search(name):
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
