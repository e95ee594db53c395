"""Reads Hermes's config.yaml whole, and replaces it: at once or not at all, after a copy of the old one was made."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml

# As Hermes makes its own: a configuration may hold what is nobody else's business.
_NEW_MODE = 0o600


class ConfigFileError(Exception):
    """The file cannot be read or replaced; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What stands in the file; `raw` is None when there is none."""

    path: Path
    raw: bytes | None
    text: str
    document: dict[str, Any]


def read(path: Path) -> ConfigFile:
    """Return the file.

    Raises:
        ConfigFileError: it is there, and it is no YAML that Hermes could use.
        OSError: it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return ConfigFile(path, None, "", {})
    try:
        text = raw.decode("utf-8")
        document = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(f"config.yaml: line {line}: is not UTF-8; save the file as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigFileError(_sentence(error)) from error
    if document is not None and not isinstance(document, dict):
        raise ConfigFileError("config.yaml: is not a block of keys; write `key: value` lines, or remove the file")
    return ConfigFile(path, raw, text, document or {})


def write(file: ConfigFile, text: str) -> Path | None:
    """Replace the file by the text; return the copy of the old one, or None when there was none.

    Raises:
        ConfigFileError: the file is not what it was when it was read.
        OSError: it cannot be written; it is as it was then.
    """
    # Through a link: what it points to is replaced, and the link stays.
    target = Path(os.path.realpath(file.path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if (target.read_bytes() if target.exists() else None) != file.raw:
        raise ConfigFileError("config.yaml: was changed by somebody else in the meantime; run the command again")
    before = None if file.raw is None else target.stat()
    mode = _NEW_MODE if before is None else stat.S_IMODE(before.st_mode)
    copy = None if file.raw is None else _copy(file.path, file.raw, mode)
    with _at_once(target) as temporary:
        _fill(temporary, text.encode("utf-8"), mode)
        if before is not None and hasattr(os, "chown"):
            # Only root may give a file away; anybody else keeps what could be kept.
            with contextlib.suppress(PermissionError):
                os.chown(temporary, before.st_uid, before.st_gid)
    return copy


def _sentence(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    problem = getattr(error, "problem", None) or "it cannot be parsed"
    return f"config.yaml: {where}is not valid YAML ({problem}); mend it there first"


def _copy(path: Path, raw: bytes, mode: int) -> Path:
    stamp = f"{path.name}.bak-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    names = (stamp if number == 0 else f"{stamp}-{number}" for number in count())
    copy = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    with _at_once(copy) as temporary:
        _fill(temporary, raw, mode)
    return copy


@contextlib.contextmanager
def _at_once(target: Path) -> Iterator[Path]:
    """Give a file to fill, which takes the target's place when it is full, and is gone when it cannot be filled."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _fill(path: Path, data: bytes, mode: int) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(mode)
