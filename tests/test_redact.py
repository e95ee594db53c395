"""What leaves the machine: secrets go masked, everything else as it is."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_fallback import handoff
from hermes_fallback.config import Handoff
from hermes_fallback.redact import Filled, Masks, redact

HEX = "0123456789abcdef"
PEM_BODY = "MIIEowIBAAKCAQEA7bq9+abcDEF0123456789/xyzABCDEF\nq83vASNFZ4mrze8BI0VniavN7wEjRWeJq83vASNF\n"
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{PEM_BODY}-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"

SECRETS = [
    # The text, and the secret in it.
    ("key is sk-proj-Ab3dEf6hIj9lMn2pQr5tUv8x, use it", "sk-proj-Ab3dEf6hIj9lMn2pQr5tUv8x"),
    ("sk-canary-0123456789abcdef", "sk-canary-0123456789abcdef"),
    ("ANTHROPIC: sk-ant-api03-" + "aB3_d" * 18 + "-AA", "sk-ant-api03-" + "aB3_d" * 18 + "-AA"),
    ("sk-or-v1-" + HEX * 4, "sk-or-v1-" + HEX * 4),
    ("git clone with ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
    ("github_pat_" + "A1b2_" * 16, "github_pat_" + "A1b2_" * 16),
    ("glpat-abcDEF123456_7890xyz", "glpat-abcDEF123456_7890xyz"),
    ("xoxb-1234567890-abcdefABCDEF", "xoxb-1234567890-abcdefABCDEF"),
    ("AKIAIOSFODNN7EXAMPLX", "AKIAIOSFODNN7EXAMPLX"),
    ("AIza" + "Sy0-_" * 7, "AIza" + "Sy0-_" * 7),
    ("hf_" + "aBcDe1" * 6, "hf_" + "aBcDe1" * 6),
    ("stripe sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", "sk_live_4eC39HqLyjWDarjtT1zdp7dc"),
    (f"cookie {JWT}", JWT),
    (f"cat id_rsa:\n{PEM}\ndone", PEM),
    (json.dumps({"content": f"x\n{PEM}\ny"}), PEM.replace("\n", "\\n")),
    ("-----BEGIN PRIVATE KEY-----\n" + PEM_BODY + "[truncated]", PEM_BODY.strip()),
    ("postgres://app:hunter2@db.example.com:5432/app", "hunter2"),
    ("redis://:p4ssw0rd-x@cache:6379/0", "p4ssw0rd-x"),
    ("https://x-access-token:abc123@github.com/a/b.git", "abc123"),
    ("git remote add o https://0123456789abcdef0123@host/x", "0123456789abcdef0123"),
    ("GET https://api.example.com/v1?user=1&api_key=Zx81Qp07Lm&x=1", "Zx81Qp07Lm"),
    ("curl -H 'Authorization: Bearer 9f8e7d6c5b4a'", "9f8e7d6c5b4a"),
    ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ('{"Authorization": "Token abcdef012345"}', "abcdef012345"),
    ("x-api-key: 0a1b2c3d4e5f", "0a1b2c3d4e5f"),
    ("curl -u admin:s3cr3t! https://host", "s3cr3t!"),
    ("mysql --password=s3cr3t99 db", "s3cr3t99"),
    ("machine host login me password hunter2", "hunter2"),
    ("DB_PASSWORD=correcthorse", "correcthorse"),
    ("export STRIPE_SECRET_KEY='abcd1234'", "abcd1234"),
    ("A=1\nMY_SERVICE_TOKEN=abc123random\nB=2", "abc123random"),
    ("     3|OPENAI_API_KEY=local-abc-123", "local-abc-123"),
    (json.dumps({"content": "DEBUG=1\nDB_PASSWORD=hunter2\nX=1"}), "hunter2"),
    ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    ('{"password": "hunter2", "user": "me"}', "hunter2"),
    (json.dumps(json.dumps({"dbPassword": "hunter2"})), "hunter2"),
    ('"client_secret": "GHj81kLmn02Pqrs9"', "GHj81kLmn02Pqrs9"),
    ("spring.datasource.password=s3cret!", "s3cret!"),
    ("db:\n  password: hunter2\n  port: 5432", "hunter2"),
    ("password = Tr0ub4dor&3", "Tr0ub4dor&3"),
    ("api_key: 9aF3kLmQ82xZpT61", "9aF3kLmQ82xZpT61"),
    ("password: 'see token=9aF3kLmQ82xZpT61aa'", "9aF3kLmQ82xZpT61aa"),
    ("SMTP_PASS=Qz7abcdef", "Qz7abcdef"),
    ("//registry.npmjs.org/:_authToken=0a1b2c3d4e5f6a7b8c9d", "0a1b2c3d4e5f6a7b8c9d"),
    ("https://hooks.slack.com/services/T000/B000/XXXXyyyy0000", "T000/B000/XXXXyyyy0000"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secret_goes(text: str, secret: str) -> None:
    """The secret is masked, nothing around it is."""
    before, _, after = text.partition(secret)
    masked = only(text)
    assert secret not in masked
    assert masked.startswith(before.replace("-----BEGIN PRIVATE KEY-----\n", ""))
    assert masked.endswith(after.lstrip())
    assert masked.count("[redacted:") == 1


CLIENT_KEY = "LS0tLS1CRUdJTiBSU0EgUFJJVkFURSBLRVktLS0tLQpNSUlFb3dJQkFBS0NBUUVBN2Jx" * 30 + "Cg=="
PLACES = [
    # What a program, a file format or a person has around a secret; and the secret in it.
    ("     1|machine h\n     2|  login me\n     3|  password Qz7abcdef9\n     4|", "Qz7abcdef9"),
    ("     1|machine h\n     2|login me\n     3|password correcthorse", "correcthorse"),
    ("     1|default\n     2|login me\n     3|password correcthorse", "correcthorse"),
    ('{"auth": {"user": "me", "pass": "Qz7nodemailer"}}', "Qz7nodemailer"),
    ("smtp:\n  user: me\n  pass: Qz7nodemailer\n", "Qz7nodemailer"),
    ("pass: Hunter2x", "Hunter2x"),
    ("sshpass -v -p Qz7abcdef9 ssh h", "Qz7abcdef9"),
    ("echo me:Qz7abcdef9|sudo -S chpasswd", "Qz7abcdef9"),
    ("redis-cli --pass Qz7abcdef9 ping", "Qz7abcdef9"),
    ("[::1]:6432:app:me:Qz7pgpass", "Qz7pgpass"),
    ("/var/run/postgresql:5432:app:me:Qz7pgpass", "Qz7pgpass"),
    ("docker login \\\n  -u me \\\n  -p Qz7abcdef9", "Qz7abcdef9"),
    ("mysql \\\n  -u me \\\n  -pQz7abcdef9 db", "Qz7abcdef9"),
    ("The password is: Qz7abcdef9", "Qz7abcdef9"),
    ("ok\nPassword for user me: Qz7abcdef9", "Qz7abcdef9"),
    ("ok\nbearer 0123456789abcdef0123", "0123456789abcdef0123"),
    ("ok\nCREATE USER me IDENTIFIED BY 'Qz7abcdef9'", "Qz7abcdef9"),
    ('document.cookie = "session=9aF3kLmQ82xZpT61aaBB"', "9aF3kLmQ82xZpT61aaBB"),
    ("<password>Qz7abcdef9</password>", "Qz7abcdef9"),
    ('<db:passphrase enc="no">Qz7abcdef9</db:passphrase>', "Qz7abcdef9"),
    ("<apiKey>9aF3kLmQ82xZpT61</apiKey>", "9aF3kLmQ82xZpT61"),
    ("<secret>9aF3kLmQ82xZpT61</secret>", "9aF3kLmQ82xZpT61"),
    ("<token>9aF3kLmQ82xZpT61</token>", "9aF3kLmQ82xZpT61"),
    ("define('DB_PASSWORD', 'Qz7abcdef9');", "Qz7abcdef9"),
    ('define( "DB_PASSWORD", "Qz7abcdef9" );', "Qz7abcdef9"),
    ("config.set('password', 'Qz7abcdef9')", "Qz7abcdef9"),
    ("config.set('db', 'password', 'Qz7abcdef9')", "Qz7abcdef9"),
    ('os.environ["DB_PASSWORD"] = "Qz7abcdef9"', "Qz7abcdef9"),
    ("$config['password'] = 'Qz7abcdef9';", "Qz7abcdef9"),
    ('os.environ.setdefault("API_KEY", "9aF3kLmQ82xZpT61")', "9aF3kLmQ82xZpT61"),
    ("password: 'correct horse Qz7 battery'", "correct horse Qz7 battery"),
    ('"password": "correct horse Qz7 battery"', "correct horse Qz7 battery"),
    ("export DB_PASSWORD='correct horse battery'", "correct horse battery"),
    ('SMTP_PASSWORD = "abcd efgh ijkl mnop"', "abcd efgh ijkl mnop"),
    (f"    client-key-data: {CLIENT_KEY}\n    x: y", CLIENT_KEY),
    ('{"auths": {"ghcr.io": {"auth": "bWU6UXo3ZG9ja2Vy"}}}', "bWU6UXo3ZG9ja2Vy"),
    ("//registry.npmjs.org/:_auth=bWU6UXo3ZG9ja2Vy", "bWU6UXo3ZG9ja2Vy"),
    ("sshpass -p 'Qz7abcdef' ssh -p 2222 me@host", "Qz7abcdef"),
    ("cd x && sshpass -pQz7abcdef scp -p a1 host:", "Qz7abcdef"),
    ("mysql -u root -pQz7abcdef db", "Qz7abcdef"),
    ("mysqldump -h db -u root -p'Qz7abcdef' db > x", "Qz7abcdef"),
    ("/usr/bin/mariadb-dump -pQz7abcdef", "Qz7abcdef"),
    ("docker login -u me -p Qz7abcdef ghcr.io", "Qz7abcdef"),
    ("podman login -p Qz7abcdef -u me", "Qz7abcdef"),
    ("helm registry login -u me -p Qz7abcdef r.io", "Qz7abcdef"),
    ("redis-cli -h h -a Qz7abcdef9 ping", "Qz7abcdef9"),
    ("a\nrequirepass Qz7abcdef9\nb", "Qz7abcdef9"),
    ("echo 'root:Qz7abcdef' | chpasswd", "Qz7abcdef"),
    ('echo "root:Qz7abcdef" | sudo chpasswd', "Qz7abcdef"),
    ("aws configure set aws_secret_access_key wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
    ("ALTER USER me WITH PASSWORD 'Qz7abcdef9';", "Qz7abcdef9"),
    ("create user me identified by 'Qz7abcdef9';", "Qz7abcdef9"),
    ("ALTER USER me IDENTIFIED WITH mysql_native_password BY 'Qz7abcdef9'", "Qz7abcdef9"),
    ("x\ndb.example.com:5432:app:me:Qz7pgpass\n", "Qz7pgpass"),
    ("     1|*:*:*:me:Qz7pgpass", "Qz7pgpass"),
    ("Cookie: session=9aF3kLmQ82xZpT61aaBB; theme=dark", "9aF3kLmQ82xZpT61aaBB"),
    ("< Set-Cookie: sid=s%3A9aF3kLmQ82xZpT61aaBB; Path=/; HttpOnly", "s%3A9aF3kLmQ82xZpT61aaBB"),
    ("curl -H 'Cookie: theme=dark; session=9aF3kLmQ82xZpT61aaBB' https://h/a", "9aF3kLmQ82xZpT61aaBB"),
    ('{"Cookie": "session=9aF3kLmQ82xZpT61aaBB"}', "9aF3kLmQ82xZpT61aaBB"),
    ("the password is Qz7abcdef9!", "Qz7abcdef9!"),
    ("Password for user me: Qz7abcdef9", "Qz7abcdef9"),
    ("log in as me, password: Qz7abcdef9, and go on", "Qz7abcdef9"),
    ("The password is 'hunter2'.", "hunter2"),
    ("<password>Qz7;abc,def9</password>", "Qz7;abc,def9"),
    ("EMAIL_PASSWORD: 'abcd EFGH 1234 ijkl MNOP 6789'", "abcd EFGH 1234 ijkl MNOP 6789"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "secret"), PLACES)
@pytest.mark.parametrize("place", ["user", "result", "JSON", "call"])
def test_secret_goes_from_its_place(text: str, secret: str, place: str) -> None:
    """Wherever the text stands: the secret alone is masked, once and for all, and put back where a call has its mask."""
    shown = json.dumps({"output": text}) if place == "JSON" else text
    message = said(shown)
    if place in {"result", "JSON"}:
        message = {"role": "tool", "tool_call_id": "1", "content": shown}
    elif place == "call":
        message = {"role": "assistant", "content": None, "tool_calls": [call(json.dumps({"command": text}))]}
    masks = Masks()
    (sent,) = redact([message], masks)
    shown = json.dumps({"command": text}) if place == "call" else shown
    masked = sent["tool_calls"][0]["function"]["arguments"] if place == "call" else sent["content"]
    assert masked == shown.replace(secret, masks.of(secret))
    assert redact([sent]) == [sent]
    assert json.loads(masks.put_back(json.dumps([masked]))) == [shown]


@pytest.mark.parametrize(
    ("arguments", "secret"),
    [
        ({"auth": {"user": "me", "pass": "Qz7nodemailer"}}, "Qz7nodemailer"),
        ({"password": "correct horse Qz7 battery"}, "correct horse Qz7 battery"),
        ({"auths": {"ghcr.io": {"auth": "bWU6UXo3ZG9ja2Vy"}}}, "bWU6UXo3ZG9ja2Vy"),
        ({"client-key-data": CLIENT_KEY}, CLIENT_KEY),
    ],
)
def test_secret_goes_from_a_field_of_a_call(arguments: dict[str, Any], secret: str) -> None:
    """The names are those that give a secret away in a text."""
    (sent,) = redact([{"role": "assistant", "content": None, "tool_calls": [call(json.dumps(arguments))]}])
    masked = sent["tool_calls"][0]["function"]["arguments"]
    assert secret not in masked
    assert re.sub(r"\[redacted:\w+\]", secret, masked) == json.dumps(arguments)


def test_secret_of_a_place_is_masked_where_it_stands_alone() -> None:
    """What a command gave away is masked behind it too."""
    messages = [said("mysql -u root -pQz7abcdef db"), said("it is Qz7abcdef"), said("requirepass Qz7abcdef9")]
    assert "Qz7abcdef" not in json.dumps(redact(messages))


NO_PLACES = [
    "class A:\n    pass: int\n",
    '{"pass": true}',
    '{"pass": 12, "fail": 3}',
    'pass: "test_foo"',
    'pass: "test_foo2"',
    "pass: 12/15",
    'pass: "95.2%"',
    "bypass: x1y2z3",
    "mkdir -p src2/x",
    "cp -p a1 b2",
    "ssh -p 2222 host",
    "docker run -p 8080:80 image1",
    "docker run --name mysql -p3306:3306 mysql:8",
    "python -a x1",
    "mysql -u root -p db1",
    "mysql -u root -p$PASS db",
    "mysql -P 3306 -h host1",
    "sshpass -e ssh -p 2222 host1",
    "sshpass -f file1.txt scp -p a1b2c3d4 host:",
    'sshpass -p "$PW" ssh h',
    "docker login --password-stdin r1.io",
    "docker login -u me -p $TOKEN",
    "redis-cli -a $REDIS_PASSWORD ping",
    "requirepass foobared",
    "redis-cli -h host1 -p 6379",
    "<token>NAME</token>",
    "<password>$1</password>",
    "<password>string</password>",
    "<label>Password</label>",
    "<td>password</td><td>x1y2z3</td>",
    "<secret>my-secret</secret>",
    "<password/>",
    "auth: true",
    '{"auth": "required"}',
    '{"auth": "basic"}',
    '{"auth": "oauth2v1"}',
    '"auth": "abcdefgh"',
    "author: abcdefgh12",
    "a:5432:b:c:d9 is what it says",
    "it is a:5432:b:c:d9 here",
    "12:30:11:05:x1",
    "localhost:5432: connection refused1",
    "db:5432:app:me:*",
    "Cookie: theme=dark",
    "Set-Cookie: id=1; Path=/; Max-Age=31536000; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
    "Cookie: _ga=GA1.2.1234567890.1234567890",
    "cookie = SimpleCookie(environ)",
    "cookies=session.cookies, timeout=30",
    "define('VERSION', '1.2.3');",
    "define('PASSWORD_LENGTH', '12');",
    "config.set('path', '/x/y1')",
    "config.set('password', password1)",
    'os.environ.get("API_KEY", "none")',
    'os.environ["DB_PASSWORD"] = password',
    'data.get("token", "default")',
    "fields = ['username', 'password', 'email2']",
    'os.environ["API_KEY"] == "abc"',
    'd.get("password", "")',
    "password: str = Field(...)",
    "password: Sha256Hash,",
    "fn f(password: Base64String, b: u8)",
    '"password": "must have at least 8 characters"',
    '"password": "Enter a new password"',
    "password: 'at least 1 digit'",
    '"password": "Geben Sie Ihr Passwort ein"',
    "'password': 'Wrong credentials'",
    "client-key-data: DATA+OMITTED",
    "client-key-data: REDACTED",
    "certificate-authority-data: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUM=",
    "the password is required2",
    "the password is required",
    "the password is SHA256-hashed",
    "the password is bcrypt2 hashed",
    "[sudo] password for me: \nReading 7Zip",
    "password for user me: ",
    "Password is Base64Encoded first",
    "the login page and the password form2",
    "login page\npassword form",
    "login failed for user1 password reset",
    "echo 'root:$PW' | chpasswd",
    "usermod | chpasswd",
    "aws configure set region us-east-1",
    "aws configure set aws_secret_access_key $KEY",
    "ALTER USER me WITH PASSWORD NULL",
    "IDENTIFIED BY 'password'",
    "IDENTIFIED BY '$PW1'",
    "password 'x'",
    "SELECT password FROM user1",
    "machine learning login",
    "machine: x86_64\nlogin: me\npassword: ask",
    "curl -b 'theme=dark; lang=en' https://host/a1",
    "--profile dev1 --platform linux/amd64",
    "docker run --name mysql -p3306:3306\nok",
    "Each node is identified by 'node-1234'.",
    "pass: v1.2.3",
    "pass: node18",
    '"pass": "phase2"',
    "render pass: ShadowMap2",
    "PASS=12/15",
    "The cookie = parse(h); commit=0123456789abcdef0123456789abcdef01234567",
    "ls mysqld.log -path2file",
    "x.log:5432:10:20:30.123Z",
    "'password' => 'required|min:8'",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_PLACES)
def test_what_only_looks_like_a_place_stays(text: str) -> None:
    """Options of other programs, types, counts, sentences, references: in a message, in a result and in a call."""
    made = {"role": "assistant", "content": None, "tool_calls": [call(json.dumps({"command": text}))]}
    result = {"role": "tool", "tool_call_id": "1", "content": json.dumps({"output": text})}
    messages = [said(text), result, made]
    assert redact(messages) == messages


NEAR_MISSES = [
    "commit 3f786850e387550fdab836ed7e6dc881de23001b by me",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "id 550e8400-e29b-41d4-a716-446655440000",
    '{"key": "550e8400-e29b-41d4-a716-446655440000"}',
    "model: anthropic/claude-opus-4-20260115, gpt-5.4-2026-03-05, qwen3.6:9b",
    "/home/me/.ssh/id_ed25519 and /etc/secrets/token.txt and src/auth/password_reset.py",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "class='sk-toggleable__content sk-estimator-doc-link sk-container-id-1'",
    "task-runner-with-a-long-name-2024 and disk-usage-statistics-0123",
    "from huggingface_hub import hf_hub_download_with_retries_and_more",
    "password = input('password: ')",
    "password = request.form['password']",
    "def login(user: str, password: str) -> Token:",
    "login(user, password=password, token=token)",
    "user.password = password2",
    "self.token = config.token",
    'api_key = os.environ["OPENAI_API_KEY"]',
    "OPENAI_API_KEY=$OPENAI_API_KEY",
    "TOKEN=$(cat token.txt)",
    "API_KEY=${API_KEY}",
    "apiKey: process.env.API_KEY,",
    "API_KEY=<your key>",
    "MAX_TOKENS=4096",
    "max_tokens: 4096",
    "TOKEN=1024",
    "SSH_KEY=/home/me/.ssh/id_rsa",
    "SECRET_KEY = get_secret_key()",
    '"password": {"type": "string"}',
    "password: required",
    "password: string;",
    'token = "</s>"',
    '{"tokens": ["a", "b"], "token": "hello"}',
    '{"next_page_token": "CAUQAA0123456789abcdefXYZ"}',
    "error: token expired at 10:31; secret: none",
    "http://localhost:8080/path?page=2&sort=key",
    "https://example.com/@user/post",
    "http://localhost:8080/@scope/package",
    'f"postgresql://{user}:{password}@{host}/db"',
    "postgres://user:$PASSWORD@host/db",
    "mailto:me@example.com, git@github.com:a/b.git, ssh://git@github.com/a/b",
    "docker run -u 1000:1000 image",
    "if '-----BEGIN PRIVATE KEY-----' in text: raise ValueError",
    "-----BEGIN CERTIFICATE-----\nMIIEowIBAAKCAQEA7bq9abcDEF0123456789\n-----END CERTIFICATE-----",
    "primary_key=True, foreign_key='user.id', sort_key=lambda x: x[0]",
    "Authorization: Bearer <token>",
    "the Bearer authentication scheme is described in RFC 6750",
    "password: «redacted:abc»",
    "password=***",
    "PASSWORD_MIN_LENGTH=12",
    "bash: line 3: secret: command not found",
    "12:34:56 token_count=512 key=abc",
]  # fmt: skip


@pytest.mark.parametrize("text", NEAR_MISSES)
def test_what_is_no_secret_stays(text: str) -> None:
    """Code, hashes, ids, names, paths and pictures reach the stronger model as they are."""
    assert only(text) == text
    assert only(json.dumps({"output": text})) == json.dumps({"output": text})


def test_same_secret_same_mask() -> None:
    """A secret can be told from another one, in every message and in every request."""
    messages = [said("DB_PASSWORD=hunter2aa"), said("DB_PASSWORD=hunter2ab"), said("postgres://u:hunter2aa@h/d")]
    first, second, third = (message["content"].partition("[")[2][:17] for message in redact(messages))
    assert first == third != second
    assert list(redact(messages)) == list(redact(messages))


def test_what_a_mask_stands_for_is_put_back() -> None:
    """In the strings of a call's arguments; other masks, other texts and what is no JSON stay as they are."""
    masks = Masks()
    redact([said("DB_PASSWORD=pa55"), said('postgres://u:w0rd"x@h/d')], masks)
    first = masks.of("pa55")
    arguments = json.dumps({"a": f"x {first} y", "b": [first, "[redacted:0123456789]"], "c": 1})
    assert json.loads(masks.put_back(arguments)) == {"a": "x pa55 y", "b": ["pa55", "[redacted:0123456789]"], "c": 1}
    for other in ('{"a":  1}', f'{{"a": "{first}', "[redacted:0123456789]"):
        assert masks.put_back(other) == other
    assert Masks().put_back(arguments) == arguments
    assert "pa55" not in repr(masks) + str(masks)


def test_two_secrets_never_share_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first digits are the same, the later one has more of them, and each comes back as it was."""

    class Alike:
        def __init__(self, data: bytes, **_: Any) -> None:
            self.data = data

        def hexdigest(self) -> str:
            return "0" * 10 + self.data.hex().ljust(20, "0")

    monkeypatch.setattr("hermes_fallback.redact.hashlib.blake2b", Alike)
    masks = Masks()
    made = [masks.of(secret) for secret in ("one", "two", "one", "three")]
    assert len(set(made)) == 3
    assert made[0] == made[2] == "[redacted:00000000]"
    assert json.loads(masks.put_back(json.dumps(made))) == ["one", "two", "one", "three"]


@pytest.mark.parametrize(
    "shown",
    [
        PEM,
        json.dumps({"output": PEM}),
        json.dumps({"content": "1|a\n2|" + "\n".join(f"{n}|{line}" for n, line in enumerate(PEM.split("\n"), 2))[2:]}),
    ],
)
def test_a_private_key_is_put_back_as_its_file_has_it(shown: str) -> None:
    """Without JSON's escapes, and without the numbers that read_file gives to lines."""
    assert put_back_of({"role": "tool", "tool_call_id": "1", "content": shown}) == PEM


def test_a_private_key_in_a_json_file_is_put_back_with_its_escapes() -> None:
    """What stands in a file in one line goes back in one line."""
    shown = json.dumps({"content": json.dumps({"private_key": PEM})})
    assert put_back_of({"role": "tool", "tool_call_id": "1", "content": shown}) == PEM.replace("\n", "\\n")


@pytest.mark.parametrize("secret", ["a", "pa55", "0", 'quo"te'])
def test_what_was_put_back_goes_masked_into_the_next_request(secret: str) -> None:
    """However short, and where nothing tells that it is a secret: as the stronger model wrote it."""
    filled = Filled()
    masks, later = Masks(filled), Masks(filled)
    mask = masks.of(secret)
    assert later.of(secret) == mask
    made = call(masks.put_back(json.dumps({"command": f"-p{mask}", "other": f"{mask}{mask}"})))
    assert json.loads(made["function"]["arguments"])["command"] == f"-p{secret}"
    (sent,) = redact([{"role": "assistant", "content": "", "tool_calls": [made]}], later)
    arguments = json.loads(sent["tool_calls"][0]["function"]["arguments"])
    assert arguments["other"] == f"{mask}{mask}"
    assert arguments["command"].endswith(mask)


@pytest.mark.parametrize("secret", ["hunter2", "s3cret-and-long"])
def test_what_was_put_back_stays_masked_where_its_source_is_gone(secret: str) -> None:
    """In a call that Hermes has shortened since, in what a sub-agent is told, in a session that was resumed."""
    filled = Filled()
    masks = Masks(filled)
    masks.put_back(json.dumps({"command": f"login -p {masks.of(secret)} && a long command follows"}))
    shortened = call(json.dumps({"command": f"login -p {secret} && a…"}))
    messages = [said(f"Log in with {secret}."), {"role": "assistant", "content": None, "tool_calls": [shortened]}]
    sent = redact(messages, Masks(filled))
    assert secret not in json.dumps(sent)
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"])["command"].endswith("&& a…")
    assert secret in json.dumps(redact(messages))


def test_what_stands_in_texts_by_chance_is_masked_in_its_call_alone() -> None:
    """A value of a .env file may be any word."""
    filled = Filled()
    masks = Masks(filled)
    masks.put_back(json.dumps({"content": f"MODE={masks.of('fast')}"}))
    (sent,) = redact([said("as fast as you can")], Masks(filled))
    assert sent["content"] == "as fast as you can"


@pytest.mark.parametrize("mark", ["{n:6}\t", "{n}:", "{n}-", "{n:5}→", "{n:4}|", "+", "-"])
def test_a_key_is_put_back_as_in_its_file(mark: str) -> None:
    """Whatever a tool has put before its lines."""
    head, *lines = PEM.splitlines()
    shown = "\n".join([head, *[mark.format(n=n) + line for n, line in enumerate(lines, 2)]])
    assert put_back_of(said(shown)) == PEM


def test_a_mask_as_a_key_of_an_object() -> None:
    """What a model may do, too."""
    masks = Masks()
    mask = masks.of("s3cret")
    assert json.loads(masks.put_back(json.dumps({"headers": {mask: 1}}))) == {"headers": {"s3cret": 1}}


def test_named_secret_is_masked_where_it_stands_alone() -> None:
    """What a name gave away is masked behind it too, and what was sent before is sent the same again."""
    messages = [said("try hunter2aa"), said("DB_PASSWORD=hunter2aa"), said("connecting with hunter2aa as app")]
    before, _, after = redact(messages)
    assert before["content"] == "try hunter2aa"
    assert "hunter2aa" not in after["content"]
    assert redact(messages[:1]) == [before]


def test_arguments_stay_json() -> None:
    """A call with secrets in it is valid JSON afterwards; one without is as it was, to the letter."""
    plain = call('{"path":  "a.txt"}')
    secret = call(json.dumps({"content": f"K='x'\n{PEM}\n", "auth": {"password": "hunter2"}, "list": ["a", {"n": 1}]}))
    first, second = redact([{"role": "assistant", "content": None, "tool_calls": [plain, secret]}])[0]["tool_calls"]
    assert first == plain
    arguments = json.loads(second["function"]["arguments"])
    assert arguments["content"].startswith("K='x'\n[redacted:")
    assert arguments["auth"]["password"].startswith("[redacted:")
    assert arguments["list"] == ["a", {"n": 1}]


def test_handoff_masks_everywhere_unless_it_is_off() -> None:
    """System prompt, user, arguments and results are masked by default; `redact: off` sends them as they are."""
    key = "sk-canary-0123456789abcdef"
    arguments = json.dumps({"cmd": f"echo {key}"})
    request = {
        "messages": [
            {"role": "system", "content": f"memory: {key}"},
            {"role": "user", "content": [{"type": "text", "text": key}, picture()]},
            {"role": "assistant", "content": key, "tool_calls": [call(arguments)]},
            {"role": "tool", "tool_call_id": "1", "content": key},
        ]
    }
    masked = handoff.build(request, note="")
    assert key not in str(masked)
    assert masked["messages"][1]["content"][1] == picture()
    assert str(handoff.build(request, note="", options=Handoff(redact="off"))).count(key) == 5


@pytest.mark.timeout(90)
def test_large_conversation_takes_no_time() -> None:
    """A megabyte of code and output, and one long line, are looked through; a look that grows faster takes minutes."""
    code = "    def call(self, token: str) -> None:  # see https://example.com/a?b=c\n" * 7000
    assert only(code) == code
    only("a1-_." * 100_000)
    only("x" * 300_000 + '"')
    for piece in ("http://a:", "--user=a:", "--token=", "token: x\n", "password=", "-----BEGIN PRIVATE KEY-----\n"):
        only(piece * 10_000)
        only(json.dumps(piece * 10_000))
    only(f"token={'a' * 100_000}1!")


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "machine h login ",
            "login a password ",
            "login 1|1|",
            "1|",
            "login\\n",
            "sshpass -p ",
            "mysql ",
            "mysql -p1",
        ),
        *("docker login -p ", "redis-cli -a ", "requirepass ", "a:", "root:Qz7abcdef |", "chpasswd a:", "h:5432:a:b:"),
        *("h:*:", "\\nh:5432:a:b:c1", "password is ", "password for ", "identified with ", "password Qz7a", "Aa1."),
        *("Cookie: a=", "Cookie: ;a=", "a=", "s=aaaaaaaa1aaaaaaaaaaaaaaaaa;", "pass:", "password: 'a ", "aQ7 ", "<"),
        *("set('password','", "set('a','", "<password>", "<password ", "<a:password", "configure set password "),
        *('auth": "', "_auth=aaaaaaaa", "client-key-data: ", "aB1-", "\\"),
    ],
)
def test_no_place_takes_long_to_look_for(piece: str) -> None:
    """What begins like a secret's place, after all the hints, takes no longer in a long row than it does in short ones."""
    hints = 'password login chpasswd :5432: auth" redis-cli requirepass mysql -p </ cookie: '
    check_growth(lambda length: hints + piece * (length // len(piece)) + "!")


def test_a_long_row_of_short_words_takes_no_time() -> None:
    """Each of them could begin the name of a secret; none is followed by a value (it took five seconds)."""
    check_growth(lambda length: "key " + "a." * (length // 2))
    check_growth(lambda length: "key " + "a-" * (length // 2) + "password=hunter2")


def check_growth(text: Callable[[int], str]) -> None:
    """Ten times the length takes about ten times as long, not a hundred times."""

    def seconds(length: int) -> float:
        looked_through = text(length)
        began = time.thread_time()
        only(looked_through)
        return time.thread_time() - began

    few, many = min(seconds(20_000) for _ in range(3)), seconds(200_000)
    assert many < 30 * few + 0.1


@given(st.dictionaries(st.sampled_from(["password", "api_key", "x"]), st.text(max_size=30), max_size=3))
def test_any_arguments_stay_json(arguments: dict[str, str]) -> None:
    """Whatever a call asks for, it is an object with as many entries afterwards."""
    (message,) = redact([{"role": "assistant", "content": "", "tool_calls": [call(json.dumps(arguments))]}])
    assert len(json.loads(message["tool_calls"][0]["function"]["arguments"])) == len(arguments)


def only(text: str) -> str:
    """The text as it leaves the machine."""
    (message,) = redact([said(text)])
    masked: str = message["content"]
    return masked


def put_back_of(message: dict[str, Any]) -> str:
    """What the one mask in a message stands for, as a call gets it."""
    masks = Masks()
    (sent,) = redact([message], masks)
    (mask,) = re.findall(r"\[redacted:\w+\]", sent["content"])
    (value,) = json.loads(masks.put_back(json.dumps([mask])))
    return str(value)


def said(text: str) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def call(arguments: str) -> dict[str, Any]:
    """A call as the handoff has it."""
    return {"id": "1", "type": "function", "function": {"name": "run", "arguments": arguments}}


def picture() -> dict[str, Any]:
    """An image part."""
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
