"""Finds the models of local servers, by asking each server's `/v1/models`."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 0.5  # a server on this machine answers at once; a port where nothing listens refuses at once
_LIST_BYTES = 1_000_000
CUSTOM = "custom"
"""Hermes's name for an endpoint of the user's own (0.19 hermes_cli/auth.py)."""


@dataclass(frozen=True, slots=True)
class Server:
    """A local server: the name of its kind, and its base URL, which ends in /v1."""

    provider: str
    url: str

    def __str__(self) -> str:
        return f"{self.provider}, {self.url}"


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model and the server that has it; None is unknown."""

    name: str
    server: Server | None


# The port that each listens on unless told otherwise.
WELL_KNOWN = tuple(
    Server(provider, f"http://127.0.0.1:{port}/v1")
    for provider, port in (("ollama", 11434), ("lmstudio", 1234), ("llama.cpp", 8080), ("vllm", 8000))
)


def server_at(url: str) -> Server:
    """Return the server at a base URL; its kind is known by its port alone."""
    port = urlsplit(url).port
    kind = next((known.provider for known in WELL_KNOWN if urlsplit(known.url).port == port), CUSTOM)
    return Server(kind if urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"} else CUSTOM, url)


def models(servers: Sequence[Server]) -> tuple[LocalModel, ...]:
    """Return the models that the servers have, in their order; a server that does not answer has none."""
    with ThreadPoolExecutor(max_workers=len(servers)) as pool:
        lists = tuple(pool.map(_models_of, servers))
    return tuple(model for one_list in lists for model in one_list)


def _models_of(server: Server) -> tuple[LocalModel, ...]:
    try:
        listed = json.loads(_list(server.url))["data"]
        names = [str(entry["id"]) for entry in listed]
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException):
        return ()  # nothing listens, or it is something else
    # These cannot chat; Ollama and LM Studio list them among the others.
    return tuple(LocalModel(name, server) for name in names if "embed" not in name.lower())


def _list(url: str) -> bytes:
    # Neither urllib nor httpx: a proxy in the environment is not for this machine.
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/models", headers={"Accept": "application/json"})
        return connection.getresponse().read(_LIST_BYTES)
    finally:
        connection.close()
