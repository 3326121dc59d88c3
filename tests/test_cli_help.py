"""What `--help` says."""

from __future__ import annotations

import typer

from visionpulse_analysis.cli import app


def unexplained(command: typer.core.TyperCommand, name: str) -> list[str]:
    inner = [
        found for sub, one in getattr(command, "commands", {}).items() for found in unexplained(one, f"{name} {sub}")
    ]
    return [f"{name} {p.opts[0]}" for p in command.params if not getattr(p, "help", None)] + inner


def test_every_argument_and_option_says_what_it_is():
    assert unexplained(typer.main.get_command(app), "visionpulse") == []
