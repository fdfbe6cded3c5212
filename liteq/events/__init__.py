"""Events: hear what tasks and workers do while they do it. Names and fields are Celery's.

    def on_failure(event):
        print(event["uuid"], event["exception"])

    app.events.Receiver(handlers={"task-failed": on_failure}).capture()

Whoever listens says so in the store for some seconds, again and again; workers learn it
there, and make events only then. Of a listener that is slow, the store keeps the last ten
thousand events for a minute, and `missed` counts what it lost. What was before the
listener came, and whatever must not be missed, is to be asked of the store.
"""

from __future__ import annotations

from liteq.events.receiver import Dispatcher, Event, EventReceiver, Events
from liteq.events.state import State

__all__ = ["Dispatcher", "Event", "EventReceiver", "Events", "State"]
