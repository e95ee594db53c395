"""Lets Hermes load a clone of this repository in its plugins folder; installed by pip, nobody reads this file."""

from .hermes_fallback import register

__all__ = ["register"]
