"""What a worker is asked for, as it is understood: what cannot be meant is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from liteq import cpus
from liteq.exceptions import ImproperlyConfigured
from liteq.settingvalues import Unfit, seconds
from liteq.shares import split_weights

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.config import Settings

__all__ = ["concurrency_of", "grace_of", "limits_of", "queues_of"]


def queues_of(
    app: Liteq, wanted: Sequence[str] | None, excluded: Iterable[str]
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Return the queues to consume, and their weights if they are to be served in turns."""
    names, weights = _weights(wanted)
    left_out = set(excluded)
    found = dict.fromkeys(name for name in app.select_queues(names) if name not in left_out)
    if not found:
        raise ImproperlyConfigured("the worker has no queues to consume: -X excludes them all")
    return tuple(found), weights


def _weights(wanted: Sequence[str] | None) -> tuple[list[str] | None, dict[str, int]]:
    if wanted is None:
        return None, {}
    given = wanted.split(",") if isinstance(wanted, str) else wanted
    try:
        return split_weights(given)
    except ValueError as exc:
        raise ImproperlyConfigured(str(exc)) from None


def concurrency_of(conf: Settings, pool: str, given: int | None) -> int:
    """Return how many tasks run at once: those given, else what the settings say, else one for
    each CPU that the worker may use."""
    wanted = given or conf.worker_concurrency or cpus.available()
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ImproperlyConfigured(
            f"concurrency (how many tasks run at once) must be a whole number, not {wanted!r}"
        )
    return 1 if pool == "solo" else wanted


def limits_of(
    conf: Settings, soft: float | None, hard: float | None
) -> tuple[float | None, float | None]:
    """Return the time limits of tasks that have none of their own, in seconds."""
    return (
        _duration("soft_time_limit", soft) or conf.task_soft_time_limit,
        _duration("time_limit", hard) or conf.task_time_limit,
    )


def grace_of(conf: Settings, given: float | None = None) -> float:
    """Return how many seconds a warm stop waits for what runs: those given, if there are any,
    else what the settings say."""
    if (grace := _duration("grace", given)) is not None:
        return grace
    celerys: float = conf.worker_soft_shutdown_timeout
    own: float = conf.worker_shutdown_timeout
    return celerys if celerys and not conf.value_set_for("worker_shutdown_timeout") else own


def _duration(name: str, given: Any) -> float | None:
    try:
        return None if given is None else seconds(given)
    except Unfit as exc:
        raise ImproperlyConfigured(f"{name} = {given!r} {exc}") from None
