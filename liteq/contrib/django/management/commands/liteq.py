"""`manage.py liteq …`: the command line, about the project's app."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER
from collections.abc import Sequence
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, SystemCheckError

from liteq.cli import main
from liteq.cli.exits import Exit

__all__ = ["Command"]

_CHECKED: Final = ("worker", "beat")  # what is to run for long: its mistakes are said first
_DJANGOS: Final = ("--settings", "--pythonpath")  # which manage.py has read


class Command(BaseCommand):  # type: ignore[misc]  # Django ships no types
    """Hands its words to the command line, and ends with its exit code."""

    help = "Run and look after background tasks: `manage.py liteq --help` says how."
    requires_system_checks: tuple[str, ...] = ()

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("words", nargs=REMAINDER, help="those of `liteq`: worker, ls …")

    def run_from_argv(self, argv: Sequence[str]) -> None:
        """Take the words as they are: `--help` and `--version` are liteq's too."""
        sys.exit(self._run(_without_djangos(argv[2:])))

    def handle(self, *args: Any, **options: Any) -> None:
        """Run for `call_command("liteq", "worker", …)`. Raises `CommandError`."""
        status = self._run([*args, *options["words"]])
        if status:
            raise CommandError(f"liteq ended with {status}", returncode=status)

    def _run(self, words: Sequence[str]) -> int:
        if set(_CHECKED).intersection(words[:1]) and "--skip-checks" not in words:
            try:
                self.check()
            except (SystemCheckError, ImproperlyConfigured) as exc:
                self.stderr.write(str(exc))
                return Exit.USAGE
        # Not given to main(): -A goes before it, and children find the app by this name.
        os.environ.setdefault("LITEQ_APP", "liteq.contrib.django:app")
        return main(words)


def _without_djangos(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    given = iter(words)
    for word in given:
        if word in _DJANGOS:
            next(given, None)
        elif not word.startswith(tuple(f"{name}=" for name in _DJANGOS)):
            kept.append(word)
    return kept
