"""Whose keys pay: those in the environment, or the profile's whose turn it is, in a gateway that serves several.

Such a gateway has its own profile's keys in the environment, where litellm would find them and let that profile pay
for all (`host.profile_secrets`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .config import Tier
from .host import profile_secrets


def at_hand() -> Mapping[str, str]:
    """Return the variables among which a tier's key is looked for by its name."""
    secrets = profile_secrets()
    return os.environ if secrets is None else secrets


def usual_name(tier: Tier) -> str:
    """Return the name under which litellm looks for a provider's key."""
    return f"{_prefix(tier)}_API_KEY"


def usual_addresses(tier: Tier) -> tuple[str, str]:
    """Return the names under which litellm looks for a provider's address."""
    return f"{_prefix(tier)}_BASE_URL", f"{_prefix(tier)}_API_BASE"


def _prefix(tier: Tier) -> str:
    return tier.provider.upper().replace("-", "_")
