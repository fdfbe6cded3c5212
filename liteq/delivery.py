"""What an attempt is given: a delivered message, and the arguments of its call.

Those are the message's own and, of one that waited for others, what these left for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from liteq import failure, parts
from liteq.context import Context
from liteq.exceptions import DecodeError, LiteqError, MessageTooLarge
from liteq.loggers import get_logger
from liteq.message import BODY, EXPIRES_AT, GATHER, ID, MAX_ENVELOPE, Message, Packed
from liteq.plan import Plan
from liteq.serializers import loads, loads_call

if TYPE_CHECKING:
    from liteq.brokers.base import Broker
    from liteq.brokers.values import Input
    from liteq.ciphers import Cipher
    from liteq.signing import Signer

__all__ = ["NO_CALLS", "Delivery", "FailedCalls", "Reader", "find_failed", "plain"]

logger = get_logger("liteq.delivery")

NOTHING: Final = b"null"  # what a store hands on for a value that is None or was not kept

_NO_NAMES: Final[tuple[str | None, ...]] = ()

# (source, kind, position, value): a brokers.values.Input, as it travels to a child.
InputTuple: TypeAlias = tuple[str, str, int, bytes]
# By id: the packed message, how often it was started, by which worker last, and its inputs.
FailedCalls: TypeAlias = dict[str, tuple[Packed, int, str | None, tuple[InputTuple, ...]]]

NO_CALLS: Final[FailedCalls] = {}


def find_failed(broker: Broker, inputs: Sequence[Input]) -> FailedCalls:
    """Return what the store still has of the calls whose errors are among these inputs: what
    error callbacks are told of them. A store that does not answer now holds nobody up."""
    ids = [one.source for one in inputs if one.kind == "error"]
    if not ids:
        return NO_CALLS
    try:
        return {
            id: (record.packed, record.deliveries, record.worker, plain(broker.inputs(id)))
            for id, record in broker.get(ids).items()
        }
    except LiteqError as exc:
        logger.warning("cannot look up the failed call for its error callback: %s", exc)
        return NO_CALLS


def plain(inputs: Sequence[Input]) -> tuple[InputTuple, ...]:
    """Return inputs as they travel to a child."""
    return tuple((one.source, one.kind, one.position, one.value) for one in inputs)


class Delivery:
    """A message given to the executor. `number` counts its starts, from 1.

    `message` may be the packed form, which is what a child gets: unpacking it all would
    take longer than a short task. `inputs` are the tuples of `brokers.values.Input`,
    `failed` what `find_failed` says of them. `arguments` (args, kwargs by id) are used in
    place of bodies. `eager`: run in place by `Task.apply`, so errors of hooks,
    `KeyboardInterrupt` and `SystemExit` go through to the caller. `expires_at`: when the
    message does by the clock of this machine, if that is not the store's.
    """

    __slots__ = ("arguments", "eager", "expires_at", "failed", "inputs", "number", "packed")

    def __init__(
        self,
        message: Message | Packed,
        number: int = 1,
        inputs: Sequence[InputTuple] = (),
        failed: FailedCalls = NO_CALLS,
        expires_at: float | None = None,
        *,
        arguments: Mapping[str, tuple[Sequence[Any], Mapping[str, Any]]] | None = None,
        eager: bool = False,
    ) -> None:
        packed: Packed = message.pack() if isinstance(message, Message) else message
        self.packed = packed
        self.expires_at: float | None = packed[EXPIRES_AT] if expires_at is None else expires_at
        self.number = number
        self.inputs = inputs
        self.failed = failed
        self.arguments = arguments
        self.eager = eager


class Reader:
    """Reads deliveries, as one process has it set.

    `accept`: formats that bodies may have; `result_serializer`: that of inputs. `signer`:
    what checks messages and opens inputs. `cipher`: what decrypts secrets. `most`: bytes of
    arguments that are read at all.
    """

    def __init__(
        self,
        *,
        accept: Sequence[str],
        result_serializer: str,
        signer: Signer | None,
        cipher: Cipher | None,
        most: int | None,
    ) -> None:
        self._accept = accept
        self._result_serializer = result_serializer
        self._signer = signer
        self._cipher = cipher
        self._most = most

    def admit(
        self, packed: Packed, inputs: Sequence[InputTuple], *, is_whole: bool = True
    ) -> None:
        """Raise `MessageTooLarge` or `InvalidSignature` for a message that is not to be read
        at all, or not with these inputs; `is_whole`: they are all that it waited for."""
        most = self._most
        if most is not None and len(packed[BODY]) > most:
            raise MessageTooLarge(
                f"the arguments take {len(packed[BODY])} bytes, more than the {most} of "
                "task_max_body_size here"
            )
        if packed[-1] is not None and len(packed[-1]) > MAX_ENVELOPE:
            raise MessageTooLarge(
                f"the envelope has {len(packed[-1])} characters, more than {MAX_ENVELOPE}"
            )
        if self._signer is not None:
            self._signer.check(packed)
            self._signer.check_inputs(packed, inputs, is_whole=is_whole)

    def arguments(
        self, delivery: Delivery, plan: Plan | None, message: Message | None
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return what to call the task with, or, without its plan, what it was called with:
        positional and keyword arguments. `message`: the one delivered, None for a usual one.
        Raises whatever reading the body or an input does."""
        immutable, names, kind = False, _NO_NAMES, "json"
        if message is not None:
            immutable, names = message.immutable, message.keywords or _NO_NAMES
            kind = message.content_type
        args: Sequence[Any]
        kwargs: Mapping[str, Any]
        given = delivery.arguments and delivery.arguments.get(delivery.packed[ID])
        args, kwargs = given or loads_call(
            delivery.packed[BODY], kind, self._accept, self._cipher
        )
        if delivery.inputs:
            inputs = sorted(delivery.inputs, key=_position)
            if names:
                kwargs = {**kwargs, **self._named(inputs, names)}
                inputs = [one for one in inputs if _name_of(one, names) is None]
            if not immutable:
                args = (*self._given(inputs, plan, args, kwargs, delivery), *args)
        return args, kwargs

    def _named(
        self, inputs: Sequence[InputTuple], names: Sequence[str | None]
    ) -> dict[str, Any]:
        """Return what inputs give by name."""
        named = ((_name_of(one, names), one) for one in inputs)
        return {
            name: self._value(kind, value, source)
            for name, (source, kind, _, value) in named
            if name
        }

    def _given(
        self,
        inputs: Sequence[InputTuple],
        plan: Plan | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        delivery: Delivery,
    ) -> list[Any]:
        """Return what the messages this one waited for put before its own arguments: for
        an error, where there is no plan to say what it takes, the id."""
        values: list[Any] = []
        for source, kind, _, value in inputs:
            if kind != "error":
                values.append(self._value(kind, value, source))
            elif plan is not None and plan.takes_error(args, kwargs):
                text = failure.read(value)["traceback"]
                values += (self._request(source, delivery), failure.rebuild(value), text)
            else:
                values.append(source)
        return values

    def _request(self, id: str, delivery: Delivery) -> Context:
        """Return the request of a call that failed: with no more than its id if it cannot be
        read, which may be what it failed of, and without arguments if they cannot, or if it
        is a gather, which has none."""
        if id not in delivery.failed:
            return Context(id=id)
        packed, number, worker, inputs = delivery.failed[id]
        try:
            if not delivery.eager:  # nobody has signed it, nor carried it
                self.admit(packed, inputs, is_whole=False)  # it may not have started
            message = Message.unpack(packed)
        except (DecodeError, MessageTooLarge):
            return Context(id=id)
        if message.task == GATHER:
            return Context.of(packed, number, None, None, message=message, hostname=worker)
        args = kwargs = None
        try:
            failed = Delivery(packed, inputs=inputs, arguments=delivery.arguments)
            args, kwargs = self.arguments(failed, None, message)
        except Exception:  # pickle may raise anything
            logger.warning(
                "the arguments of %s[%s] cannot be read", message.task, id, exc_info=True
            )
        return Context.of(packed, number, args, kwargs, message=message, hostname=worker)

    def _value(
        self,
        kind: str,
        value: bytes,
        source: str | None,
        gather: str | None = None,
        depth: int = 0,
    ) -> Any:
        """Return what an input stands for: a value, an exception, or a list of them.

        `source` is whose end it is, of a part None: it is in the list of `gather`, and in so
        many lists inside of each other.
        """
        match kind:
            case "error":
                return failure.rebuild(value)
            case "list":
                gather, depth = gather or source, depth + 1
                return [
                    self._value(kind, part, None, gather, depth)
                    for kind, part in parts.unpack(value)
                ]
            case _:
                if self._signer is not None:
                    value = self._signer.open(value, source, gather, depth)
                if value == NOTHING:
                    return None
                serializer = self._result_serializer
                return loads(value, serializer, (serializer,), self._cipher)


def _position(one: InputTuple) -> int:
    return one[2]


def _name_of(one: InputTuple, names: Sequence[str | None]) -> str | None:
    """Return the argument that an input becomes; None for one in front."""
    return names[one[2]] if 0 <= one[2] < len(names) else None
