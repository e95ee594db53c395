"""Loads litellm late, quietly and in the background; the only importer of litellm.

Facts about litellm 1.90 to 1.105.3, each run (docs/facts.md): its import takes seconds, fetches a price map from the
network and prints, unless told not to.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from .config import Tier
from .pauses import Pauses

_SWITCH_SECONDS = 0.0005
_MODE = "LITELLM_MODE"
_THREAD = "hermes-fallback-warm"

logger = logging.getLogger(__name__)


def warm(ladder: Sequence[Tier]) -> None:
    """Load litellm in the background, if a tier needs it: an escalation that may come need not wait for it."""
    tier = next((tier for tier in ladder if tier.is_litellm), None)
    if tier is None or "litellm" in sys.modules:
        return
    if not any(thread.name == _THREAD for thread in threading.enumerate()):
        # No daemon: a process that ends while compiled modules are imported on one aborts ("exception not rethrown"),
        # so it waits for the import instead: some seconds, as long as that takes.
        threading.Thread(target=_warm, args=(tier,), name=_THREAD).start()


_is_needed = threading.Event()
"""Whether somebody waits for litellm: then it is loaded without pauses."""


def _warm(tier: Tier) -> None:
    try:
        # Most often, a call of the local model is about to begin.
        _is_needed.wait(0.1)
        pauses = Pauses("litellm", until=_is_needed, outside=_as_before)
        with pauses.hooked_in():
            litellm = _load()
            pauses.may_come()
            # Loads litellm's tokenizer too. It holds up every thread for a tenth of a second, and would when the user
            # stops a call: Hermes then forgets what was typed meanwhile (0.19.0 `_recover_terminal_after_interrupt`).
            litellm.token_counter(model=tier.litellm_name, text="")
            pauses.may_come()
            # And what a first call loads. litellm answers this one itself; with that key nobody else would.
            hi = [{"role": "user", "content": "hi"}]
            litellm.completion(model=tier.litellm_name, messages=hi, stream=True, mock_response="hi", api_key="no-key")
    except Exception:  # whoever needs it imports it again and says so; at the end of the process nobody does
        logger.debug("litellm was not imported in the background", exc_info=True)


def load() -> Any:
    """Return litellm, imported if need be (2 s), silent and without a look at the network."""
    _is_needed.set()
    return _load()


def _load() -> Any:
    # Without this, the import fetches a price map from the network (litellm/__init__.py).
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # What pydantic says about its types, and at each call of its bridge to the Responses API (1.105.3).
    for message in ("Pydantic serializer warnings", r"Items? .* using the `ReadOnly` qualifier"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    # Imported here: it takes 2 s and 170 MB, which only an escalation is worth.
    litellm: Any = _import_undisturbed("litellm")
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    litellm.telemetry = False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # Its handlers write to the terminal; Hermes's log gets what is left.
        its_logger = logging.getLogger(name)
        its_logger.handlers.clear()
        if its_logger.level != logging.ERROR:  # for setting it empties the caches of all loggers
            its_logger.setLevel(logging.ERROR)
    return litellm


_loading = threading.Lock()
"""What is set while litellm is imported is the whole process's: two threads would restore each other's settings."""


class _Settings(NamedTuple):
    """What holds for the whole process: whether garbage is collected, how soon threads take turns, litellm's mode."""

    collects: bool
    switch_seconds: float
    mode: str | None


_before: list[_Settings] = []
"""What was set before the import that is going on, if one is."""


def _set(new: _Settings) -> _Settings:
    """Change the settings; return what they were."""
    old = _Settings(gc.isenabled(), sys.getswitchinterval(), os.environ.get(_MODE))
    (gc.enable if new.collects else gc.disable)()
    sys.setswitchinterval(new.switch_seconds)
    os.environ.pop(_MODE, None)
    if new.mode is not None:
        os.environ[_MODE] = new.mode
    return old


@contextmanager
def _as_before() -> Iterator[None]:
    """Let hold for a while what held before the import: what Hermes's tools start is not to see its mode, say."""
    during = [_set(settings) for settings in _before]
    try:
        yield
    finally:
        for settings in during:
            _set(settings)


def _import_undisturbed(name: str) -> Any:
    """Import a large module in less time, and without others noticing.

    A quarter of the time is the garbage collector's, which finds nothing and lets no thread run meanwhile; and who
    waits for the interpreter gets it after half a millisecond, not after five (benchmarks/RESULTS.md). With the mode
    that is set, litellm does not read the first `.env` above its own folder into this process, where the keys of
    another of Hermes's profiles may be, or of a project (1.105.3, litellm/__init__.py).
    """
    if name in sys.modules:
        return importlib.import_module(name)  # waits, where another thread is still at it
    with _loading:
        soon = min(sys.getswitchinterval(), _SWITCH_SECONDS)
        _before.append(_set(_Settings(collects=False, switch_seconds=soon, mode="PRODUCTION")))
        try:
            return importlib.import_module(name)
        finally:
            _set(_before.pop())
