"""Routing: which queue, and which other options, a task name is sent with.

`task_routes` is read once into routers, which are asked in order; the first that answers
wins. A route is a mapping of call options, or just the name of a queue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, Final, TypeAlias

from liteq.exceptions import ImproperlyConfigured, QueueNotFound
from liteq.settingvalues import Queue

__all__ = ["Route", "Router"]

Route: TypeAlias = Mapping[str, Any]
_Ask: TypeAlias = Callable[[str, Any, Any, Mapping[str, Any], Any], Any]


class Router:
    """The routing rules of an app.

    `routes` is the setting `task_routes`: a mapping from exact names, globs or compiled
    patterns to routes; a callable `(name, args, kwargs, options, task=None)`; the dotted
    path of one; an object with `route_for_task`; or a list of any of these or of
    (pattern, route) pairs. `queues` is `task_queues`.
    """

    def __init__(
        self,
        routes: Any = None,
        queues: Any = None,
        *,
        default_queue: str = "default",
        create_missing: bool = True,
    ) -> None:
        self.queues: Final = _by_name(queues)
        self.default_queue: Final = default_queue
        self._create_missing: Final = create_missing
        self._asks, self.is_static = _read_routes(routes)

    def route(
        self,
        name: str,
        args: Any = (),
        kwargs: Any = None,
        options: Mapping[str, Any] | None = None,
        task: Any = None,
    ) -> Route:
        """Return the options that the rules give this call: {} if none applies."""
        for ask in self._asks:
            answer = ask(name, args, kwargs or {}, options or {}, task)
            if answer is not None:
                return _as_route(answer, name)
        return {}

    def queue(self, options: Mapping[str, Any]) -> str:
        """Return the name of the queue that these options lead to.

        Raises `QueueNotFound` for one that is not declared, if missing queues are not
        to be created.
        """
        chosen = options.get("queue")
        if chosen is None:
            return self._by_routing_key(options.get("routing_key")) or self.default_queue
        name = getattr(chosen, "name", chosen)
        if not isinstance(name, str) or not name:
            raise TypeError(f"queue must be a name or a Queue, not {chosen!r}")
        if not self._create_missing and name != self.default_queue and name not in self.queues:
            raise QueueNotFound(
                f"queue {name!r} is not in task_queues ({', '.join(self.queues) or 'empty'}), "
                "and task_create_missing_queues is off"
            )
        return name

    def select(self, queues: Iterable[str] | str | None) -> tuple[str, ...]:
        """Return the names of queues to consume: see `Liteq.select_queues`."""
        if not queues:
            return tuple(self.queues) or (self.default_queue,)
        wanted = queues.split(",") if isinstance(queues, str) else queues
        wanted = tuple(dict.fromkeys(name.strip() for name in wanted if name.strip()))
        if not self._create_missing:
            known = {*self.queues, self.default_queue}
            if missing := [name for name in wanted if name not in known]:
                raise ImproperlyConfigured(
                    f"queue {missing[0]!r} is not in task_queues ({', '.join(sorted(known))}), "
                    "and task_create_missing_queues is off"
                )
        return wanted

    def _by_routing_key(self, key: Any) -> str | None:
        if key is None:
            return None
        return next((q.name for q in self.queues.values() if q.routing_key == key), None)


def _by_name(queues: Any) -> dict[str, Queue]:
    """Return the queues of `task_queues` by name."""
    return {queue.name: queue for queue in queues or ()}


def _read_routes(routes: Any) -> tuple[list[_Ask], bool]:
    """Return the routers to ask, and whether they look at the task's name alone."""
    if not routes:
        return [], True
    given = routes if isinstance(routes, (list, tuple)) else [routes]
    if all(map(_is_pair, given)):
        given = [given]
    routers = [_load(route) for route in given]
    static = all(isinstance(router, (Mapping, list, tuple)) for router in routers)
    return [_asker(router) for router in routers], static


def _load(route: Any) -> Any:
    """Return what a dotted path names, a class's instance, and all else as it is."""
    if isinstance(route, str):
        module, _, name = route.replace(":", ".").rpartition(".")
        if not module:
            raise ImproperlyConfigured(f"task_routes: {route!r} is not a dotted path")
        route = getattr(import_module(module), name)
    return route() if isinstance(route, type) else route


def _asker(router: Any) -> _Ask:
    if _is_pair(router):
        router = [router]
    if isinstance(router, Mapping):
        return _table(list(router.items()))
    if isinstance(router, (list, tuple)):
        return _table(list(router))
    if hasattr(router, "route_for_task"):
        return lambda name, args, kwargs, options, task: router.route_for_task(
            name, args, kwargs
        )
    if callable(router):
        return lambda name, args, kwargs, options, task: router(
            name, args, kwargs, options, task=task
        )
    raise ImproperlyConfigured(f"task_routes: {router!r} is not a route")


def _is_pair(given: Any) -> bool:
    return (
        isinstance(given, (list, tuple))
        and len(given) == 2
        and isinstance(given[0], (str, re.Pattern))
        and isinstance(given[1], (Mapping, str))
        and not (isinstance(given[1], str) and isinstance(given, list))
    )


def _table(pairs: Sequence[tuple[Any, Any]]) -> _Ask:
    """Return a router: exact names first, then patterns in their order."""
    exact = {key: route for key, route in pairs if isinstance(key, str) and "*" not in key}
    patterns = [(_pattern(key), route) for key, route in pairs if key not in exact]

    def ask(name: str, *_: Any) -> Any:
        if name in exact:
            return exact[name]
        return next((route for match, route in patterns if match(name)), None)

    return ask


def _pattern(key: Any) -> Callable[[str], Any]:
    if isinstance(key, re.Pattern):
        return key.match
    from fnmatch import translate  # late: few apps have routes

    return re.compile(translate(key)).match


def _as_route(answer: Any, name: str) -> Route:
    if isinstance(answer, str):
        return {"queue": answer}
    if isinstance(answer, Mapping):
        return answer
    raise ImproperlyConfigured(
        f"task_routes: the route of {name!r} must be a mapping or a queue's name, "
        f"not {answer!r}"
    )
