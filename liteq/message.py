"""A message: one request to run a task, as it is stored and carried.

A message is an immutable value with explicit fields. `pack()` turns it into a flat tuple of
plain values, which is what a store keeps and what a worker hands to its children;
`Message.unpack()` is the way back. Fields that a store needs for its decisions have a
place of their own in the tuple; the rare rest shares one JSON text, the *envelope*,
which is empty for most messages. `VERSION` is written into every envelope, and an
envelope of a later version is refused, not guessed at.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from liteq.exceptions import DecodeError

__all__ = ["PACKED_FIELDS", "VERSION", "Edge", "Message", "Packed"]

VERSION: Final = 1

Packed: TypeAlias = tuple[Any, ...]

PACKED_FIELDS: Final = (
    "id",
    "task",
    "body",
    "queue",
    "priority",
    "run_at",
    "expires_at",
    "retries",
    "time_limit",
    "soft_time_limit",
    "acks_late",
    "ignore_result",
    "max_deliveries",
    "result_expires",
    "envelope",
)


class Message(NamedTuple):
    """One request to run a task. Times are Unix seconds, durations are seconds.

    `run_at`: not started before. `expires_at`: not started after. `retries`: how often
    the task asked to be run again. `max_deliveries`: how many times it may be started
    again after its process died, before it becomes a dead letter (None: the store's
    default). `result_expires`: how long the settled message is kept (None: for ever).
    """

    id: str
    task: str
    body: bytes
    queue: str = "default"
    priority: int = 0
    run_at: float | None = None
    expires_at: float | None = None
    retries: int = 0
    time_limit: float | None = None
    soft_time_limit: float | None = None
    acks_late: bool = True
    ignore_result: bool = False
    max_deliveries: int | None = None
    result_expires: float | None = 86400.0

    # The envelope: what only the executing side, or a reader of the result, looks at.
    content_type: str = "json"
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    group_index: int | None = None
    headers: Mapping[str, Any] | None = None
    properties: Mapping[str, Any] | None = None
    shadow: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    reply_to: str | None = None
    replaced_task_nesting: int = 0
    stamps: Mapping[str, Any] | None = None
    stamped_headers: tuple[str, ...] | None = None
    store_errors: bool = False
    immutable: bool = False
    has_links: bool = False  # success edges leave here: the value is needed even if ignored
    # Of one that waits for others: they count from when the last of those has ended.
    countdown: float | None = None
    expires_in: float | None = None

    def pack(self) -> Packed:
        """Return the message as a tuple in the order of `PACKED_FIELDS`."""
        return (*self[:_HOT], None if self[_HOT:] == _DEFAULTS else self._envelope())

    @classmethod
    def unpack(cls, packed: Packed) -> "Message":
        """Return the message that `pack()` made this tuple of.

        Raises `DecodeError` if the envelope is damaged or of a later version.
        """
        text = packed[_HOT]
        return cls(*packed[:_HOT], **_read_envelope(text)) if text else cls(*packed[:_HOT])

    def _envelope(self) -> str:
        rest = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value, default in zip(
                self._fields[_HOT:], self[_HOT:], _DEFAULTS, strict=True
            )
            if value != default
        }
        rest["v"] = VERSION
        return json.dumps(rest, separators=(",", ":"))


_HOT: Final = PACKED_FIELDS.index("envelope")  # how many fields have a place of their own
_DEFAULTS: Final = tuple(Message._field_defaults.values())[-(len(Message._fields) - _HOT) :]
_ENVELOPE_NAMES: Final = frozenset(Message._fields[_HOT:])


def _read_envelope(text: str) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(text)
        version = fields.pop("v")
        stamped = fields.get("stamped_headers")
        if stamped is not None:
            fields["stamped_headers"] = tuple(stamped)
        later = version > VERSION
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as exc:
        raise DecodeError(f"the envelope of a message is damaged: {text:.200}") from exc
    if later:
        raise DecodeError(
            f"the message was written by a later liteq (envelope version {version}, "
            f"this liteq reads up to {VERSION}): upgrade this worker"
        )
    if unknown := fields.keys() - _ENVELOPE_NAMES:
        raise DecodeError(f"unknown fields in the envelope: {sorted(unknown)}")
    return fields


class Edge(NamedTuple):
    """What follows a message: `target` waits for `source` to end in one of two ways.

    `on` is "success" (a `link`: the target gets the result as its first argument,
    unless it is immutable) or "failure" (a `link_error`: the target gets the error).
    Both messages are enqueued in one step, the target waiting.
    """

    source: str
    target: str
    on: str
    position: int = 0
