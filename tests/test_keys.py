"""Whose key pays in a gateway that serves several of Hermes's profiles: that of the profile whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agent import secret_scope
from hermes_constants import reset_hermes_home_override, set_hermes_home_override

from tests.endpoints import fail, in_order
from tests.test_money import stuck_each_task
from tests.world import HOME, Screen, World, config_text

OWN_KEY = "sk-of-this-profile-9876543210"
BLOCK = "model_routing:\n  fallback: {{provider: openai, model: gpt-5.4{more}}}\n"


@contextmanager
def scoped(home: Path) -> Iterator[None]:
    """Work for a profile, as gateway/run.py `_profile_runtime_scope` does, whose import would change the environment."""
    home_before = set_hermes_home_override(str(home))
    secrets_before = secret_scope.set_secret_scope(secret_scope.build_profile_secret_scope(home))
    try:
        yield
    finally:
        secret_scope.reset_secret_scope(secrets_before)
        reset_hermes_home_override(home_before)


@pytest.fixture
def profile(world: World) -> Iterator[Callable[..., Screen]]:
    """Run a stuck turn of a profile that has these variables, beside the default one, whose key is in the environment."""
    secret_scope.set_multiplex_active(True)
    home = HOME / "profiles" / "work"
    home.mkdir(parents=True, exist_ok=True)

    def ask(*variables: str, more: str = "") -> Screen:
        (home / ".env").write_text("\n".join(variables))
        (home / "config.yaml").write_text(config_text(world.local.url, BLOCK.format(more=more)))
        world.local.script = stuck_each_task
        screen = Screen()
        with scoped(home):
            world.ask(agent=world.agent(screen=screen, platform="telegram"))
        return screen

    yield ask
    secret_scope.set_multiplex_active(False)


def test_the_profiles_own_key_pays(world: World, profile: Callable[..., Screen]) -> None:
    """Under litellm's usual name or its own; it goes to the profile's own address."""
    own = world.endpoint(in_order([]), key=OWN_KEY)
    own.script = world.paid.script
    profile(f"OPENAI_API_KEY={OWN_KEY}", f"OPENAI_BASE_URL={own.url}")
    profile(f"MY_KEY={OWN_KEY}", f"OPENAI_BASE_URL={own.url}", more=", api_key_env: MY_KEY")
    assert (len(own.requests), len(world.paid.requests)) == (2, 0)


@pytest.mark.parametrize(
    ("variables", "more", "words"),
    [
        ([], "", "OPENAI_API_KEY is not set"),
        ([], ", api_key_env: OPENAI_API_KEY", "OPENAI_API_KEY is not set"),
        ([f"OPENAI_API_KEY={OWN_KEY}"], "", "OPENAI_BASE_URL is that of another profile; write `base_url`"),
    ],
)
def test_nothing_of_another_profile_is_used(
    world: World, profile: Callable[..., Screen], variables: list[str], more: str, words: str
) -> None:
    """Neither its key nor its address, though both are in the environment; and the screen says what is missing."""
    screen = profile(*variables, more=more)
    assert words in screen.text
    assert world.paid.requests == []


def test_a_profiles_key_is_masked(world: World, profile: Callable[..., Screen]) -> None:
    """A provider that quotes it is not repeated."""
    quoting = world.endpoint(in_order([fail(403, f"{OWN_KEY} may not")]), key=OWN_KEY)
    screen = profile(f"OPENAI_API_KEY={OWN_KEY}", more=f", base_url: '{quoting.url}'")
    assert "*** may not" in screen.text
    assert OWN_KEY not in screen.text


def test_one_profile_is_as_before(world: World) -> None:
    """Without such a gateway, the key is that of the environment."""
    world.local.script = stuck_each_task
    assert world.ask()["final_response"].startswith("paid answer")
    assert (len(world.paid.requests), world.paid.refusals) == (1, [])
