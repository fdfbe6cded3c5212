"""What a module, a function or a class is called, the same in every process.

A script that is run has its module under the name `__main__`; a worker imports the same
file under its real name. A task registered as `__main__.add` by one and as `tasks.add` by
the other is the classic "unregistered task" of a first day with Celery, so every name that
leaves a process goes through here.
"""

from __future__ import annotations

import os.path
import sys
from typing import Any, Final

__all__ = ["is_main", "is_typed", "main_name", "module_name", "stand_for"]

# "__mp_main__" is what a spawned child of multiprocessing calls its parent's script.
_MAIN_NAMES: Final = frozenset({"__main__", "__mp_main__"})

_stood_for: str | None = None


def main_name() -> str:
    """Return the name under which another process would import this one's `__main__`, or
    that of the one it stands for.

    That is the module given to `python -m`, else the script's file name without its
    suffix. A notebook, a prompt or a zipped application has no such name: "__main__".
    """
    if _stood_for is not None:
        return _stood_for
    main = _main()
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name not in _MAIN_NAMES:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    if not file:
        return "__main__"
    stem = os.path.splitext(os.path.basename(file))[0]
    return stem or "__main__"


def stand_for(main: str) -> None:
    """Have this process call its `__main__` what the one calls it whose script's functions
    it runs."""
    global _stood_for
    _stood_for = main


def _main() -> object:
    """Return the script's module. In a child that multiprocessing has spawned, `__main__` is
    its own boot code until the script has been imported under the other name."""
    spawned = sys.modules.get("__mp_main__")  # elsewhere an alias, which may be out of date
    if getattr(spawned, "__name__", None) == "__mp_main__":
        return spawned
    return sys.modules.get("__main__")


def is_main(module: str) -> bool:
    """Tell whether this name means the running script itself, under any of its names."""
    return module in _MAIN_NAMES or module == main_name()


def is_typed(module: str, file: str) -> bool:
    """Tell whether what this module defines in this file was typed at a prompt, or in a
    notebook, where what is defined again is meant to take the place of the first."""
    if module not in _MAIN_NAMES:
        return False
    return file.startswith("<") or main_name() == "__main__"


def module_name(obj: Any) -> str:
    """Return the module that defines a function or class, `__main__` by its real name."""
    module = getattr(obj, "__module__", None) or "__main__"
    return main_name() if module in _MAIN_NAMES else str(module)
