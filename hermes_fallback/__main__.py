"""`python -m hermes_fallback replay FILE…`: the part of `hermes escalation` that needs no Hermes configuration."""

from __future__ import annotations

import argparse
import sys

from .cli import replaying, status_of


def main() -> None:
    """Read the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m hermes_fallback")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    replaying.set_up(commands.add_parser("replay", help=replaying.HELP, description=replaying.HELP))
    sys.exit(status_of(replaying, parser.parse_args()))


if __name__ == "__main__":
    main()
