"""The command `liteq`, and `python -m liteq`.

The probe of a container is answered here if it can be, without the command line: click
alone takes longer to import than all the rest of that answer. A worker has its words read by
another process, and lives without click (`liteq.cli.reading`).
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module

TYPE_CHECKING = False  # typing's own would be imported with it
if TYPE_CHECKING:
    from liteq.cli.reading import Words
    from liteq.pulse import Beat


_OF_WORKERS = ("liteq.discovery", "liteq.worker", "liteq.cli.working")
_INTERRUPTED = 130  # 128 and the number of SIGINT; `liteq.cli.exits.Exit` is not there yet


def main() -> int:
    """Run the program's own command line, and return its exit code."""
    try:
        return _answer()
    except KeyboardInterrupt:  # while the command line was imported
        return _INTERRUPTED


def _answer() -> int:
    # Nothing of what is imported becomes garbage before the end: not to look through it on
    # the way and at the exit is a fifth of the time that a short command takes.
    collects = gc.isenabled()
    gc.disable()
    if sys.argv[1:2] == ["health"]:
        from liteq.pulse import quick_answer

        if quick_answer(sys.argv[2:], _on_server):
            gc.freeze()
            return 0
    words = _of_worker() if "worker" in sys.argv else None
    from liteq.cli import main  # late, as the probe needs none of it

    gc.freeze()
    if collects:
        gc.enable()
    return main(words=words)


def _of_worker() -> Words | None:
    """Return what the program's words mean, if they start a worker."""
    from liteq.cli.reading import Reading

    try:
        reading = Reading(sys.argv[1:])
    except OSError:  # no process or descriptor can be had: whatever needs one later says so
        return None
    for name in _OF_WORKERS:
        import_module(name)
    return reading.result()


def _on_server(url: str) -> list[Beat]:
    from liteq.brokers.redis_pulse import beats, dial, prefix_of, server_of
    from liteq.brokers.redis_wire import ServerError
    from liteq.projectfile import may_say

    server = server_of(url)
    # With a namespace or a prefix that the project's file gives, it is another store.
    if server is None or may_say("broker_transport_options", "broker_use_ssl"):
        return []
    where, db, user, password, namespace = server
    try:
        connection = dial(where)
        try:
            return list(beats(connection, prefix_of(namespace), db, user, password))
        finally:
            connection.close()
    except (OSError, ServerError, ValueError):
        return []  # the command says it


if __name__ == "__main__":
    sys.exit(main())
