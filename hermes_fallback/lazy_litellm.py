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
from collections.abc import Sequence
from typing import Any

from .config import Tier

_SWITCH_SECONDS = 0.0005

logger = logging.getLogger(__name__)


def warm(ladder: Sequence[Tier]) -> None:
    """Load litellm in the background, if a tier needs it: an escalation that may come need not wait for it."""
    tier = next((tier for tier in ladder if tier.is_litellm), None)
    if tier is not None and "litellm" not in sys.modules:
        # No daemon: a process that ends while compiled modules are imported on one aborts ("exception not rethrown"),
        # so it waits for the import instead, 3 s at most.
        threading.Thread(target=_warm, args=(tier,), name="hermes-fallback-warm").start()


def _warm(tier: Tier) -> None:
    try:
        litellm = load()
        # Loads litellm's tokenizer too. It holds up every thread for a tenth of a second, and would when the user stops
        # a call: Hermes then forgets what was typed meanwhile (`_recover_terminal_after_interrupt` of 0.19.0).
        litellm.token_counter(model=tier.litellm_name, text="")
        # And what a first call loads. litellm answers this one itself; with that key nobody else would.
        hi = [{"role": "user", "content": "hi"}]
        litellm.completion(model=tier.litellm_name, messages=hi, stream=True, mock_response="hi", api_key="no-key")
    except Exception:  # whoever needs it imports it again and says so; at the end of the process nobody does
        logger.debug("litellm was not imported in the background", exc_info=True)


def load() -> Any:
    """Return litellm, imported if need be (2 s), silent and without a look at the network."""
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
        collects, interval, mode = gc.isenabled(), sys.getswitchinterval(), os.environ.get("LITELLM_MODE")
        gc.disable()
        os.environ["LITELLM_MODE"] = "PRODUCTION"
        sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
        try:
            return importlib.import_module(name)
        finally:
            sys.setswitchinterval(interval)
            # Not for the programs that Hermes's tools start.
            os.environ.pop("LITELLM_MODE")
            if mode is not None:
                os.environ["LITELLM_MODE"] = mode
            if collects:
                gc.enable()
