"""Options that take several values after one flag: ``--models lr rf xgb``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperOption


class ManyValues(TyperCommand):
    """A command whose repeatable options may be given once with several values.

    A flag's values go on until the next flag, or until a file of cells (``.h5ad``), so that DATA may follow them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each of its values; then parse as ever."""
        many = {
            name
            for option in self.params
            if isinstance(option, TyperOption) and option.multiple
            for name in (*option.opts, *option.secondary_opts)
        }
        return super().parse_args(ctx, list(_repeated(args, many)))


def _repeated(args: list[str], many: set[str]) -> Iterator[str]:
    flag, given = "", 0
    for at, word in enumerate(args):
        if word == "--":
            yield from args[at:]
            return
        if word.startswith("-") and not _number(word):
            flag, given = (word if word in many else ""), 0
            yield word
        elif flag and not word.endswith(".h5ad"):
            yield from (word,) if given == 0 else (flag, word)
            given += 1
        else:
            flag = ""
            yield word


def _number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
