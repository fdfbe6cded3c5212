"""A picture of tasks and workers, drawn from their events. Celery's names.

It holds what this listener has heard, and the last tasks only: the store knows more.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from liteq import states

__all__ = ["State", "Task", "Worker"]

_BEATS_KEPT: Final = 4
_MOST: Final = 1e18  # of any number, in either direction
_ALIVE_FOR: Final = 2.0  # intervals of its heartbeat, as in Celery
_STATES: Final = {
    "task-sent": states.PENDING,
    "task-received": "RECEIVED",
    "task-started": states.STARTED,
    "task-succeeded": states.SUCCESS,
    "task-failed": states.FAILURE,
    "task-retried": states.RETRY,
    "task-revoked": states.REVOKED,
    "task-rejected": "REJECTED",
}
_OF_ATTEMPTS: Final = frozenset(_STATES.values()) - {states.PENDING}


class Worker:
    """A worker, as its events told of it."""

    _fields: Final = (
        "hostname",
        "pid",
        "freq",
        "heartbeats",
        "clock",
        "active",
        "processed",
        "loadavg",
        "sw_ident",
        "sw_ver",
        "sw_sys",
    )

    def __init__(self, hostname: str) -> None:
        self.hostname = hostname
        self.pid: int | None = None
        self.freq = 60.0
        self.active: int | None = None
        self.processed: int | None = None
        self.loadavg: list[float] | None = None
        self.sw_ident: str | None = None
        self.sw_ver: str | None = None
        self.sw_sys: str | None = None
        self.heartbeats: list[float] = []  # when they came here, Unix seconds
        self.clock = 0

    def event(self, type: str, fields: Mapping[str, Any], received: float) -> None:
        """Take an event in; `type` is without its "worker-"."""
        for name in ("pid", "freq", "active", "processed", "clock"):
            if (number := _number(fields.get(name))) is not None:
                setattr(self, name, number)
        for name, kind in (
            ("loadavg", list),
            ("sw_ident", str),
            ("sw_ver", str),
            ("sw_sys", str),
        ):
            if isinstance(value := fields.get(name), kind) and value:
                setattr(self, name, value)
        vars(self).update(_others(fields))
        if type == "offline":
            self.heartbeats.clear()
        else:
            self.heartbeats = [*self.heartbeats[1 - _BEATS_KEPT :], received]

    @property
    def status_string(self) -> str:
        return "ONLINE" if self.alive else "OFFLINE"

    @property
    def heartbeat_expires(self) -> float:
        """Until when it counts as alive, Unix seconds."""
        return self.heartbeats[-1] + self.freq * _ALIVE_FOR if self.heartbeats else 0.0

    @property
    def alive(self) -> bool:
        return time.time() < self.heartbeat_expires

    @property
    def id(self) -> str:
        return f"{self.hostname}.{self.pid}"

    def __repr__(self) -> str:
        return f"<Worker: {self.hostname} ({self.status_string})>"


class Task:
    """A call, as its events told of it. Times are Unix seconds. Other fields of its events,
    such as those that it sends itself, are attributes as well."""

    # Tools go through these, as they do through Celery's.
    _fields: Final = (
        "uuid",
        "name",
        "state",
        *(
            "received",
            "sent",
            "started",
            "rejected",
            "succeeded",
            "failed",
            "retried",
            "revoked",
        ),
        *("args", "kwargs", "eta", "expires", "retries"),
        *("worker", "result", "exception", "timestamp", "runtime", "traceback"),
        *("exchange", "routing_key", "queue", "clock", "client", "root_id", "parent_id"),
    )
    _info_fields: Final = (
        *("args", "kwargs", "retries", "result", "eta", "runtime", "expires", "exception"),
        *("exchange", "routing_key", "queue", "root_id", "parent_id"),
    )

    name: str | None = None
    args: str | None = None
    kwargs: str | None = None
    eta: str | None = None
    expires: str | None = None
    retries: int | None = None
    exchange: str | None = None
    routing_key: str | None = None
    queue: str | None = None
    client: str | None = None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None
    runtime: float | None = None
    sent: float | None = None
    received: float | None = None
    started: float | None = None
    succeeded: float | None = None
    failed: float | None = None
    retried: float | None = None
    revoked: float | None = None
    rejected: float | None = None
    root_id: str | None = None
    parent_id: str | None = None

    def __init__(self, uuid: str, cluster_state: State | None = None) -> None:
        self.uuid = uuid
        self.cluster_state = cluster_state  # where the tasks around it are
        self.state: str = states.PENDING
        self.timestamp = 0.0
        self.clock = 0
        self.worker: Worker | None = None

    id = property(lambda self: self.uuid)

    @property
    def ready(self) -> bool:
        return self.state in states.READY_STATES

    @property
    def origin(self) -> str | None:
        """Who told of it: its worker's `id`, or the client while no worker has it."""
        return self.client if self.worker is None else self.worker.id

    @property
    def parent(self) -> Task | None:
        """The task that sent it, if it is in the picture."""
        return self._known(self.parent_id)

    @property
    def root(self) -> Task | None:
        """The task that its workflow began with, if it is in the picture."""
        return self._known(self.root_id)

    @property
    def children(self) -> list[Task]:
        """The tasks in the picture that it has sent. Goes through them all."""
        if self.cluster_state is None:
            return []
        return [
            task for _, task in self.cluster_state.itertasks() if task.parent_id == self.uuid
        ]

    def _known(self, uuid: str | None) -> Task | None:
        if self.cluster_state is None or uuid is None:
            return None
        return self.cluster_state.tasks.get(uuid)

    def event(self, type: str, fields: Mapping[str, Any]) -> None:
        """Take an event in; `type` is without its "task-". One that is late changes what
        it alone knows, and not the state."""
        when = float(_number(fields.get("timestamp")) or 0.0)
        state = _STATES.get(f"task-{type}")
        if state is None:
            state = type.upper()  # a name of the user's own, which may be one of ours
        else:
            setattr(self, type, when)
        late = self._is_late(state, when)
        for name in (*self._info_fields, "name", "traceback"):
            value = fields.get(name)
            known = _number(value) if name in ("retries", "runtime") else _text(value)
            if known is not None and (not late or getattr(self, name) is None):
                setattr(self, name, known)
        others = _others(fields)
        vars(self).update({**others, **vars(self)} if late else others)
        if not late:
            self.state = state
            self.timestamp = when
            self.clock = int(_number(fields.get("clock")) or 0)

    def _is_late(self, state: str, when: float) -> bool:
        """Tell whether the task is further than this state. Celery's precedence says which
        one comes first, since clocks differ and events overtake each other. But a task may
        have several attempts, and one that began after the last event is news."""
        before = states.precedence(state) > states.precedence(self.state)
        if state not in _OF_ATTEMPTS:
            return before
        return before and self.state != states.RETRY and when < self.timestamp

    def info(
        self, fields: tuple[str, ...] | None = None, extra: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Return what is known of it, without what is not."""
        names = (*(self._info_fields if fields is None else fields), *extra)
        return {
            name: value for name in names if (value := getattr(self, name, None)) is not None
        }

    def as_dict(self) -> dict[str, Any]:
        """Return all that is known of it, and None for what is not; `worker` is a `Worker`."""
        return {name: getattr(self, name) for name in self._fields}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "cluster_state": None}  # one task is not all of them

    def __repr__(self) -> str:
        return f"<Task: {self.name}({self.uuid}) {self.state}>"


class State:
    """Tasks and workers by name. `callback(state, event)` is called after each event.

    It keeps `max_tasks_in_memory` tasks and `max_workers_in_memory` workers, those heard of
    last. `event_count` and `task_count` count what has come.

    `on_node_join(worker)` is called when a worker says that it is online, or is heard for the
    first time, and `on_node_leave(worker)` when it says that it is offline. With the latter
    the worker is forgotten then; without it, it is kept and shows as offline, as in Celery.
    """

    def __init__(
        self,
        callback: Callable[[State, Mapping[str, Any]], Any] | None = None,
        workers: Mapping[str, Worker] | None = None,
        tasks: Mapping[str, Task] | None = None,
        taskheap: Any = None,
        max_workers_in_memory: int = 5000,
        max_tasks_in_memory: int = 10000,
        on_node_join: Callable[[Worker], Any] | None = None,
        on_node_leave: Callable[[Worker], Any] | None = None,
        **ignored: Any,
    ) -> None:
        self.event_callback = callback
        self.workers: OrderedDict[str, Worker] = OrderedDict(workers or {})
        self.tasks: OrderedDict[str, Task] = OrderedDict(tasks or {})
        self.max_workers_in_memory = max_workers_in_memory
        self.max_tasks_in_memory = max_tasks_in_memory
        self.on_node_join = on_node_join
        self.on_node_leave = on_node_leave
        self.event_count = 0
        self.task_count = 0
        self._lock = threading.RLock()

    def event(self, event: Mapping[str, Any]) -> tuple[tuple[Any, bool], str] | None:
        """Take an event in; return the task or worker that it is about with whether it is
        new here, and the rest of its type. None for an event that is about neither."""
        group, _, type = event["type"].partition("-")
        subject: tuple[Any, bool] | None = None
        tell: Callable[[Worker], object] | None = None
        with self._lock:
            self.event_count += 1
            if group == "task" and (uuid := _text(event.get("uuid"))) is not None:
                subject = self._task_event(uuid, type, event)
            elif group == "worker":
                worker, created, tell = self._worker_event(type, event)
                subject = worker, created
        if tell is not None:
            tell(worker)
        if self.event_callback is not None:
            self.event_callback(self, event)
        return None if subject is None else (subject, type)

    __call__ = event

    def _task_event(self, uuid: str, type: str, event: Mapping[str, Any]) -> tuple[Task, bool]:
        task, created = self.get_or_create_task(uuid)
        if type == "sent":
            self.task_count += task.sent is None and task.received is None
            task.client = _text(event.get("hostname"))
        else:
            self.task_count += type == "received" and task.sent is None
            worker = self._worker_of(type, _text(event.get("hostname")) or "")
            task.worker = worker or task.worker
        task.event(type, event)
        self.tasks.move_to_end(uuid)
        return task, created

    def _worker_of(self, type: str, hostname: str) -> Worker | None:
        """Return the worker that an event of a task is from. Whoever revokes a task, or sends
        events of its own, need not be one: None if no worker of this name is known."""
        if type == "revoked" or f"task-{type}" not in _STATES:
            return self.workers.get(hostname)
        return self.get_or_create_worker(hostname)[0]

    def _worker_event(
        self, type: str, event: Mapping[str, Any]
    ) -> tuple[Worker, bool, Callable[[Worker], object] | None]:
        """Take an event of a worker in; return it, whether it is new here, and the user's
        function that is to be told of it, without the lock."""
        worker, created = self.get_or_create_worker(_text(event.get("hostname")) or "")
        joins = type == "online" or (type != "offline" and not worker.heartbeats)
        worker.event(type, event, _number(event.get("local_received")) or time.time())
        tell = self.on_node_join if joins else None
        if type == "offline" and self.on_node_leave is not None:
            tell = self.on_node_leave
            self.workers.pop(worker.hostname, None)
        return worker, created, tell

    def get_or_create_worker(self, hostname: str, **kwargs: Any) -> tuple[Worker, bool]:
        """Return the worker of this name, and whether it is new here."""
        worker = self.workers.get(hostname)
        if worker is not None:
            self.workers.move_to_end(hostname)
            return worker, False
        worker = self.workers[hostname] = Worker(hostname)
        while len(self.workers) > self.max_workers_in_memory:
            self.workers.popitem(last=False)
        return worker, True

    def get_or_create_task(self, uuid: str) -> tuple[Task, bool]:
        """Return the task of this id, and whether it is new here."""
        task = self.tasks.get(uuid)
        if task is not None:
            return task, False
        task = self.tasks[uuid] = Task(uuid, self)
        while len(self.tasks) > self.max_tasks_in_memory:
            self.tasks.popitem(last=False)
        return task, True

    # Keeping: by pickle, as Flower does between two starts

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:  # events come in meanwhile
            kept = {"workers": self.workers.copy(), "tasks": self.tasks.copy()}
            kept = {**self.__dict__, **kept}
        del kept["_lock"]
        return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept)
        self._lock = threading.RLock()
        for task in self.tasks.values():
            task.cluster_state = self

    # Looking

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, Task]]:
        """Yield ids and tasks, those heard of last at the end."""
        with self._lock:
            items = list(islice(self.tasks.items(), limit or None))
        yield from items

    def tasks_by_time(
        self,
        limit: int | None = None,
        reverse: bool = True,  # noqa: FBT001, FBT002 (Celery)
    ) -> Iterator[tuple[str, Task]]:
        """Yield ids and tasks, those of the latest events first."""
        with self._lock:
            items = sorted(self.tasks.items(), key=lambda item: item[1].timestamp)
        if reverse:
            items.reverse()
        yield from items[:limit]

    tasks_by_timestamp = tasks_by_time

    @property
    def tasks_by_type(self) -> Index:
        """The tasks by name: see `Index`."""
        return Index(self, lambda task: task.name)

    @property
    def tasks_by_worker(self) -> Index:
        """The tasks by the name of the worker that had them: see `Index`."""
        return Index(self, lambda task: None if task.worker is None else task.worker.hostname)

    _tasks_by_type = tasks_by_type
    _tasks_by_worker = tasks_by_worker

    def task_types(self) -> list[str]:
        """Return the names of tasks heard of."""
        return sorted({task.name for task in self.tasks.values() if task.name})

    def alive_workers(self) -> Iterator[Worker]:
        """Yield the workers whose heartbeat came lately."""
        return (worker for worker in list(self.workers.values()) if worker.alive)

    # Forgetting

    def clear_tasks(self, ready: bool = True) -> None:  # noqa: FBT001, FBT002 (Celery)
        """Forget the tasks that are over; with `ready` off, those that are not, too."""
        with self._lock:
            for uuid, task in list(self.tasks.items()):
                if task.ready or not ready:
                    del self.tasks[uuid]

    def clear(self, ready: bool = True) -> None:  # noqa: FBT001, FBT002 (Celery)
        """Forget workers and counts as well; see `clear_tasks`."""
        with self._lock:
            self.workers.clear()
            self.event_count = self.task_count = 0
            self.clear_tasks(ready)

    def freeze_while(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function while no event is taken in. With `clear_after`, forget then."""
        clear_after = kwargs.pop("clear_after", False)
        with self._lock:
            try:
                return fun(*args, **kwargs)
            finally:
                if clear_after:
                    self.clear()

    def __repr__(self) -> str:
        return f"<State: events={self.event_count} tasks={self.task_count}>"


class Index:
    """A state's tasks by something, as Celery has them: `index[key]` is a set of tasks,
    `index(key)` gives ids and tasks, those of the latest events first."""

    def __init__(self, state: State, key_of: Callable[[Task], str | None]) -> None:
        self._state = state
        self._key_of = key_of

    def __getitem__(self, key: str) -> set[Task]:
        return {task for _, task in self._state.itertasks() if self._key_of(task) == key}

    def __call__(
        self,
        key: str,
        limit: int | None = None,
        reverse: bool = True,  # noqa: FBT001, FBT002 (Celery)
    ) -> Iterator[tuple[str, Task]]:
        items = self._state.tasks_by_time(reverse=reverse)
        return islice((item for item in items if self._key_of(item[1]) == key), limit)


# Anybody may send an event of any name, with any fields.


def _number(value: Any) -> float | None:
    """Return a number that can be counted and compared with, None for all else."""
    is_one = isinstance(value, (int, float)) and -_MOST < value < _MOST  # and so no NaN
    return value if is_one else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _others(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that neither a task nor a worker has a place of its own for."""
    return {
        name: value
        for name, value in fields.items()
        if name not in _OWN_NAMES and not name.startswith("_")
    }


_OWN_NAMES: Final = frozenset({*dir(Task("")), *dir(Worker(""))})
