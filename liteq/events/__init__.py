"""Events: hear what tasks and workers do while they do it. Names and fields are Celery's.

    def on_failure(event):
        print(event["uuid"], event["exception"])

    app.events.Receiver(handlers={"task-failed": on_failure}).capture()

Whoever listens says so in the store for some seconds, again and again; workers learn it
there, and make events only then. Of a listener that is slow, the store keeps the last ten
thousand events for a minute, and `missed` counts what it lost. For what happened before the
listener came, and for what must not be missed, ask the store.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from liteq.events.receiver import Dispatcher as Dispatcher
    from liteq.events.receiver import Event as Event
    from liteq.events.receiver import EventReceiver as EventReceiver
    from liteq.events.receiver import Events as Events
    from liteq.events.state import State as State

__all__ = ["Dispatcher", "Event", "EventReceiver", "Events", "State"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562): a worker, which makes events and
    receives none, has no use for any."""
    if name not in __all__:
        raise AttributeError(f"module 'liteq.events' has no attribute {name!r}")
    from importlib import import_module  # late: kept out of the namespace of the package

    home = import_module("liteq.events.state" if name == "State" else "liteq.events.receiver")
    found = getattr(home, name)
    globals()[name] = found
    return found
