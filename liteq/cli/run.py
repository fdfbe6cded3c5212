"""`liteq run`: a script and a worker for its tasks, in one terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import click

from liteq.cli.exits import Exit, ending
from liteq.cli.front import command
from liteq.cli.session import Session
from liteq.cli.streams import say
from liteq.cli.worker import worker_options
from liteq.cli.working import run_worker

__all__ = ["run"]

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@command(context_settings={"allow_interspersed_args": False})
@worker_options
@click.argument("file", metavar="FILE")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[ARGUMENT]...")
def run(file: str, arguments: tuple[str, ...], **options: Any) -> int:
    """Run a script together with a worker for its tasks.

    FILE runs as with `python FILE ARGUMENT...`; the worker imports the same file (or the
    app that -A names), so have the script send its calls under
    `if __name__ == "__main__":`, or each is sent twice. When the script ends, the worker
    finishes its running tasks and stops. The exit code is the script's. The log shows
    warnings, unless -l or a setting says otherwise; -q hides it.

    \b
    liteq run tasks.py
    liteq run -c 8 -l info report.py --year 2026
    """
    path = Path(file)
    if not path.is_file():
        raise click.UsageError(f"there is no file {file!r}")
    session = Session.current()
    with _worker_beside(session, session.options.get("app") or file, options):
        return _run_script(path, arguments)


@contextmanager
def _worker_beside(session: Session, spec: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Have a worker in a process of its own, ready before the body and stopped after it."""
    reading, writing = os.pipe()
    parent = os.getpid()
    # Forked before the app is imported: nothing of the script's, no thread and no open
    # store, is in either process yet, so each imports the file afresh.
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_worker(session, spec, options, writing, parent)
    os.close(writing)
    try:
        if not os.read(reading, 1):  # it ended before it was ready, and has said why
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            pid = 0
            raise click.exceptions.Exit(status if status >= 0 else 128 - status)
        yield
    finally:
        os.close(reading)
        if pid:
            _stop(pid)


def _stop(pid: int) -> None:
    """Have the worker finish what it runs; a Ctrl-C meanwhile has it given back."""
    os.kill(pid, signal.SIGTERM)
    try:
        os.waitpid(pid, 0)
    except KeyboardInterrupt:
        with suppress(ProcessLookupError, ChildProcessError):  # it may have ended just now
            os.kill(pid, signal.SIGTERM)  # the second signal is a cold stop
            os.waitpid(pid, 0)
        raise


def _be_worker(
    session: Session, spec: str, options: Mapping[str, Any], writing: int, parent: int
) -> NoReturn:
    """Be the worker's process, which must never return into the script's."""
    status = int(Exit.FAILED)
    try:
        # A group of its own: Ctrl-C is for the script, whose end then stops the worker.
        os.setpgid(0, 0)
        _die_with(parent)
        status = ending(session, lambda: _work(session, spec, options, writing))
    except BaseException:  # noqa: BLE001 (the top of a process)
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # it may be closed, or be none
                stream.flush()
        os._exit(status)


def _work(session: Session, spec: str, options: Mapping[str, Any], writing: int) -> int:
    session.find(spec)
    return run_worker(
        session, options, loglevel="warning", on_ready=lambda: _say_ready(writing)
    )


def _say_ready(writing: int) -> None:
    os.write(writing, b"1")
    os.close(writing)


def _die_with(parent: int) -> None:
    """Have the kernel stop this process when its parent is killed, where it can."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(Exit.FAILED)


def _run_script(path: Path, arguments: tuple[str, ...]) -> int:
    """Run the file as `__main__`, as Python does, and return its exit code."""
    main = ModuleType("__main__")
    main.__file__ = str(path)
    main.__dict__["__builtins__"] = __builtins__
    root, name = path.parent.resolve(), path.stem
    while (root / "__init__.py").is_file():
        root, name = root.parent, f"{root.name}.{name}"
    if "." in name:  # inside a package: as `python -m package.module`
        main.__spec__ = ModuleSpec(name, None, origin=str(path))
        main.__package__ = name.rpartition(".")[0]
    sys.path.insert(0, str(root))
    sys.argv = [str(path), *arguments]
    sys.modules["__main__"] = main
    from liteq.discovery import user_traceback

    try:
        exec(compile(path.read_bytes(), str(path), "exec"), main.__dict__)
    except SystemExit as exc:
        if isinstance(exc.code, str):
            say(exc.code)
            return Exit.FAILED
        return exc.code or 0
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # noqa: BLE001 (the user's code: shown as Python shows it)
        say(user_traceback(exc), nl=False)
        return Exit.FAILED
    return 0
