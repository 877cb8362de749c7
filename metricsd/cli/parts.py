"""A group of commands that have a file each, imported when one of them is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class Parts(click.Group):
    """A click group: commands of its own, and those of `parts` ({name: "module:attribute"})."""

    def __init__(self, *args: Any, parts: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._parts = parts

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self._parts])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._parts:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._parts[cmd_name].partition(":")
        found: click.Command = getattr(import_module(module), attribute)
        return found
