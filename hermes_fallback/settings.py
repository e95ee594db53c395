"""Keeps the configuration in force, and says once what is wrong with a new one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from . import config as configuration
from .config import Config, ConfigError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Settings:
    """The configuration in force; read anew at each user message, checked anew when the block changed."""

    read: Callable[[], tuple[object, bool]]
    _seen: tuple[object, bool] = (None, False)
    config: Config | None = None
    faults: tuple[str, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> Config | None:
        """Return the configuration, or None when there is no block or a faulty one (which is logged once)."""
        # One at a time, reading too: chats start their turns at once, and an older configuration must not come back.
        with self._lock:
            seen = self.read()
            if seen != self._seen:
                self._seen, self.config, self.faults = seen, None, ()
                self._parse(*seen)
            return self.config

    def _parse(self, block: object, host_has_chain: object) -> None:
        if block is None:
            return
        try:
            self.config = configuration.parse(block, host_has_chain=bool(host_has_chain))
        except ConfigError as error:
            self.faults = error.faults
            logger.error(  # noqa: TRY400  # the faults are the user's; a traceback would bury them
                "hermes-fallback is not active, for its configuration has faults:\n%s\nRun `hermes escalation check`.",
                error,
            )
