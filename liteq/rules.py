"""What holds for all calls until a setting changes: an app's rules, each task's defaults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, tzinfo
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from liteq import serializers
from liteq.calls import Defaults, lifetime, merge, with_options
from liteq.ciphers import KEYLESS
from liteq.limits import Keys
from liteq.message import Message
from liteq.options import UNIQUE_OPTIONS, checked_deliveries, checked_limits, checked_priority
from liteq.redaction import Redactor
from liteq.routes import Router

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.ciphers import Cipher
    from liteq.signing import Signer
    from liteq.task import Task

    AnyTask: TypeAlias = Task[..., Any]

__all__ = ["Rules", "defaults_of"]

_OWN: Final = (
    "queue",
    "exchange",
    "routing_key",
    "delivery_mode",
    "priority",
    "expires",
    "time_limit",
    "soft_time_limit",
    *sorted(UNIQUE_OPTIONS),
)


class Rules:
    """What sending needs of an app's settings, under one revision of them."""

    def __init__(self, app: Liteq, revision: int) -> None:
        conf = app.conf
        self.revision = revision
        self.router = Router(
            conf.task_routes,
            conf.task_queues,
            default_queue=conf.task_default_queue,
            create_missing=conf.task_create_missing_queues,
        )
        self.zone: tzinfo | None = _zone(  # None: the machine's own
            conf.timezone if conf.value_set_for("timezone") else None,
            enable_utc=conf.enable_utc,
        )
        self.accept: tuple[str, ...] = conf.accept_content
        self.always_eager: bool = conf.task_always_eager
        self.inherits_priority: bool = conf.task_inherit_parent_priority
        self.max_body_size: int = conf.task_max_body_size
        self.keeps_results = app.keeps_results
        self.sends_events: bool = conf.task_send_sent_event
        self._sensitive: tuple[str, ...] = conf.task_sensitive_names
        self._tasks = app.tasks

        self._encryption_keys = conf.encryption_keys
        self._signing = conf.security_keys, conf.security_accept_unsigned

    @cached_property
    def signer(self) -> Signer | None:
        keys, accepts_unsigned = self._signing
        if not keys:
            return None
        from liteq.signing import Signer  # late: 3 ms that only who signs pays

        return Signer(keys, accepts_unsigned=accepts_unsigned)

    @cached_property
    def cipher(self) -> Cipher:
        if not self._encryption_keys:
            return KEYLESS
        from liteq.encryption import Keyring  # late: for those who have keys

        return Keyring(self._encryption_keys)

    @cached_property
    def redactor(self) -> Redactor:
        return Redactor(self._sensitive, self._secrets_of)

    def _secrets_of(self, name: str) -> tuple[Sequence[str], str | Iterable[str]] | None:
        task = self._tasks.get(name)
        return None if task is None else (task.all_parameters, task.sensitive)


def defaults_of(rules: Rules, name: str, task: AnyTask) -> Defaults:
    """Return what the calls of a task have in common. Raises `TypeError` or `ValueError` for
    invalid options of the task."""
    hard, soft = checked_limits(task.time_limit, task.soft_time_limit)
    own = {key: value for key in _OWN if (value := task.own_option(key)) is not None}
    template = Message(
        id="",
        task=name,
        body=b"",
        queue=rules.router.queue(own),
        priority=checked_priority(0 if task.priority is None else task.priority),
        time_limit=hard,
        soft_time_limit=soft,
        acks_late=bool(task.acks_late),
        ignore_result=bool(task.ignore_result) or not rules.keeps_results,
        max_deliveries=checked_deliveries(task.deliveries_allowed()),
        result_expires=lifetime(task.result_expires),
        content_type=task.serializer or "json",
        store_errors=bool(task.store_errors_even_if_ignored),
    )
    keys = Keys(limits, task.named_by) if (limits := task.limits()) else None
    if keys is not None and not any(limit.key for limit in limits):
        template, keys = template._replace(limits=keys.text((), {})), None
    is_plain = rules.router.is_static and not task.has_shadow_names() and keys is None
    if is_plain:
        merged = merge(name, (), {}, own, {}, rules.router, task)
        is_plain = merged.pop("expires", None) is None  # that counts from each call
        is_plain = is_plain and UNIQUE_OPTIONS.isdisjoint(merged)
        is_plain = is_plain and serializers.is_read(template.content_type, rules.accept)
        template = with_options(template, merged, rules.router, 0.0, rules.zone)
    return Defaults(
        rules.revision,
        template,
        own,
        is_plain=is_plain,
        checks_arguments=bool(task.typing),
        keys=keys,
    )


def _zone(given: Any, *, enable_utc: bool) -> tzinfo | None:
    if isinstance(given, tzinfo):
        return given
    if given is None:
        return UTC if enable_utc else None
    if given == "UTC":
        return UTC
    from zoneinfo import ZoneInfo  # late: 3 ms that only other zones than UTC pay

    return ZoneInfo(given)
