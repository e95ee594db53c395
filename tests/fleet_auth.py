"""The virtual keys of the proxy that `test_fleet.py` starts; the proxy runs this file, the tests do not import it.

A litellm proxy keeps keys and teams in Postgres, behind an engine that no package registry has. This stands in for that
table, by the proxy's own `custom_auth` hook: what is called here, and all that comes after it, is the proxy's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from litellm.proxy._types import LiteLLM_TeamTable, LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.auth_checks import _team_max_budget_check, _virtual_key_max_budget_check
from litellm.proxy.utils import hash_token

_KEYS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("keys.json").read_text())


async def authenticate(request: object, api_key: str) -> Any:
    """Return what the proxy is to know of a key.

    Raises:
        litellm.BudgetExceededError: the key's or its team's budget is used up.
    """
    del request
    # The module makes it when it starts, which is after it has read this file.
    from litellm.proxy.proxy_server import proxy_logging_obj  # noqa: PLC0415

    known = UserAPIKeyAuth(
        api_key=api_key, token=hash_token(api_key), user_role=LitellmUserRoles.INTERNAL_USER, **_KEYS[api_key]
    )
    # With a database, the proxy calls these two itself, for a key and for the team that it finds there.
    await _virtual_key_max_budget_check(known, proxy_logging_obj)
    if known.team_id is not None:
        team = LiteLLM_TeamTable(team_id=known.team_id, max_budget=known.team_max_budget, spend=known.team_spend)
        await _team_max_budget_check(team, known, proxy_logging_obj)
    return known
