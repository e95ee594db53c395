"""Lets a thread that loads modules for later wait while a local model needs all cores.

A model that works on every core waits for the slowest of its threads: without pauses, its calls took half as long again
(what they take now: benchmarks/RESULTS.md). Where a core is free, as beside a graphics card, nothing waits.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

local_calls: set[object] = set()
"""The calls of local models that are being made."""

_LOOK_SECONDS = 0.15
_LONGEST_SECONDS = 60.0


class Pauses(MetaPathFinder):
    """Pauses this thread before each module of one package that it loads.

    Nobody else loads those meanwhile; a module of another package that is half loaded could hold others up. Not where
    modules are looked for: then no thread can import anything. `until` ends all pauses. In a pause, `outside` holds.
    """

    def __init__(
        self, package: str, *, until: threading.Event, outside: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._package = package
        self._until = until
        self._outside = outside
        self._thread: int | None = threading.get_ident()
        self._is_full: bool | None = None

    @contextmanager
    def hooked_in(self) -> Iterator[None]:
        """Have the pauses while modules are imported."""
        sys.meta_path.insert(0, self)
        try:
            yield
        finally:
            # It stays there and finds nothing any more: were it taken out, a thread that imports at that moment would
            # skip a finder, and not find what is there (seen: "No module named 'litellm.…'", in an escalation).
            self._thread = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the package as Python does, and have it loaded after a pause."""
        if threading.get_ident() != self._thread or not fullname.startswith(self._package):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _After(self.may_come, spec.loader)
        return spec

    def may_come(self) -> None:
        """Wait while calls are being made, if in the first of them the machine was full without this thread."""
        if self._is_full is False or not local_calls:
            return
        try:
            self._pause()
        except Exception:  # a module that is left half loaded for a pause could not be loaded again
            logger.debug("no pauses any more", exc_info=True)
            self._is_full = False

    def _pause(self) -> None:
        with self._outside():
            if self._is_full is None:
                self._is_full = self._looks_full()
            end = time.monotonic() + _LONGEST_SECONDS
            while self._is_full and local_calls and not self._is_wanted() and time.monotonic() < end:
                self._until.wait(0.02)

    def _looks_full(self) -> bool:
        import psutil  # noqa: PLC0415  # Hermes brings it (0.17 to 0.19); for a start it is too heavy

        began, idle = time.monotonic(), psutil.cpu_times().idle
        self._until.wait(_LOOK_SECONDS)
        seconds = (time.monotonic() - began) * (os.cpu_count() or 1)
        return bool(psutil.cpu_times().idle - idle < 0.1 * seconds)

    def _is_wanted(self) -> bool:
        """Tell whether somebody waits for this thread: who needs the package, or the end of the process."""
        return self._until.is_set() or not threading.main_thread().is_alive() or _is_somebody_waiting()


class _After(Loader):
    """Loads a module after something else; the module gets the loader that it would have had."""

    def __init__(self, first: Callable[[], None], loader: Loader) -> None:
        self._first = first
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        spec.loader = self._loader
        self._first()
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Only for its being there: the module's own loader is asked by now.
        self._loader.exec_module(module)


def _is_somebody_waiting() -> bool:
    """Tell whether a thread waits for a module that another one is loading (3.11 to 3.13 importlib/_bootstrap.py)."""
    waiting: Any = importlib._bootstrap._blocking_on  # type: ignore[attr-defined]  # noqa: SLF001
    # From 3.12 on it is a dictionary of weak references, to lists.
    found = [ref() for ref in [*waiting.data.values()]] if hasattr(waiting, "data") else [*waiting.values()]
    return any(found)
