"""Sending: from a call to its message in the store.

Every call takes this road: `Task.delay` → `Sender.call` → `Message` → `Broker.enqueue`.
What all calls of a task have in common is worked out once, for each revision of the
app's settings, so a plain `delay()` costs little more than its body and its id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from liteq import context, serializers, signals, texts
from liteq.calls import Defaults, checked_id, counted_from, merge, too_large, with_options
from liteq.ciphers import Cipher, Fingerprints
from liteq.djangothread import bridge
from liteq.exceptions import (
    AlreadyEnqueued,
    AlwaysEagerIgnored,
    BrokerUnavailable,
    ImproperlyConfigured,
    MessageError,
)
from liteq.ids import new_id
from liteq.message import Edge, Message, Workflow
from liteq.offload import off_loop, running_loop
from liteq.options import UNIQUE_OPTIONS, WITHOUT_EFFECT
from liteq.results.asyncresult import AsyncResult
from liteq.results.base import ResultBase
from liteq.rules import Rules, defaults_of
from liteq.settingvalues import pauses
from liteq.states import IGNORED

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.bulk import BulkResult
    from liteq.canvas import Graph, Signature
    from liteq.composing import Composed
    from liteq.results.eagerresult import EagerResult
    from liteq.task import Task

    AnyTask: TypeAlias = Task[..., Any]

__all__ = ["Sender"]

T = TypeVar("T")
AnyResult: TypeAlias = AsyncResult[Any]
Options: TypeAlias = dict[str, Any]
Args: TypeAlias = Sequence[Any] | None
Kwargs: TypeAlias = Mapping[str, Any] | None
_Graph: TypeAlias = tuple[list[Message], list[Edge]]


class Sender:
    """Makes the messages of one app's calls, and stores them. Threads share it."""

    def __init__(self, app: Liteq) -> None:
        self.app = app
        self._rules: Rules | None = None

    # The road

    def call(self, task: AnyTask, args: Args, kwargs: Kwargs, options: Options) -> AnyResult:
        """Send a call of a task and return its result; see `Task.apply_async`."""
        rules = self.rules()
        if rules.always_eager:
            return self._eager_call(task, args, kwargs, options)
        messages, edges = self._compose(rules, task, args, kwargs, options)
        stands = self.send(messages, edges, options)
        return self._result(messages[0], options, stands)

    async def acall(
        self, task: AnyTask, args: Args, kwargs: Kwargs, options: Options
    ) -> AnyResult:
        """Send a call like `call()`; only the store is waited for off the event loop, so
        what runs here now is the parent."""
        rules = self.rules()
        if rules.always_eager:
            return await self.off_loop(self._eager_call, task, args, kwargs, options)
        messages, edges = self._compose(rules, task, args, kwargs, options)
        stands = await self.asend(messages, edges, options)
        return self._result(messages[0], options, stands)

    def prepare(
        self, task: AnyTask, args: Args, kwargs: Kwargs, options: Options
    ) -> Callable[[], AnyResult]:
        """Return what sends a call of a task later, as when a transaction is committed, and
        returns its result. What cannot be sent raises now, and is entered in no trail. Its
        arguments are sent as they are now; what counts from the call counts from then."""
        unseen = {**options, "add_to_parent": False}  # it may never be sent
        messages, edges = self._compose(self.rules(), task, args, kwargs, unseen)
        for message in messages:
            texts.check(message.pack())
        return partial(self._send_prepared, task, messages, edges, options)

    def _send_prepared(
        self, task: AnyTask, messages: list[Message], edges: list[Edge], options: Options
    ) -> AnyResult:
        first = messages[0]
        if self.rules().always_eager:
            kind = first.content_type
            cipher = self.rules().cipher
            args, kwargs = serializers.loads_call(first.body, kind, (kind,), cipher)
            return self._eager_call(task, args, kwargs, {**options, "task_id": first.id})
        running = context.current()
        if running is not None and not running.called_directly:
            result = AsyncResult[Any](first.id, None, first.task, self.app)
            self._add_to_trail(running, result, options)
        now = self.app.clock.now()
        stands = self.send([counted_from(one, now) for one in messages], edges, options)
        return self._result(first, options, stands)

    def call_named(self, name: str, args: Args, kwargs: Kwargs, options: Options) -> AnyResult:
        """Send a call by the task's name; see `Liteq.send_task`."""
        messages, edges = self._compose_named(name, args, kwargs, options)
        stands = self.send(messages, edges, options)
        return self._result(messages[0], options, stands)

    async def acall_named(
        self, name: str, args: Args, kwargs: Kwargs, options: Options
    ) -> AnyResult:
        """Send a call like `call_named()`, the store off the event loop."""
        messages, edges = self._compose_named(name, args, kwargs, options)
        stands = await self.asend(messages, edges, options)
        return self._result(messages[0], options, stands)

    def call_many(
        self,
        task: AnyTask,
        calls: Iterable[Sequence[Any] | Mapping[str, Any]],
        options: Options,
    ) -> BulkResult[Any]:
        """Send many calls of a task; see `Task.enqueue_many`."""
        from liteq.bulk import send_calls  # late: few programs send in bulk

        return send_calls(self, task, calls, options)

    async def acall_many(
        self,
        task: AnyTask,
        calls: Iterable[Sequence[Any] | Mapping[str, Any]],
        options: Options,
    ) -> BulkResult[Any]:
        """Send many calls like `call_many()`, off the event loop."""
        return await self.off_loop(self.call_many, task, calls, options)

    def call_signatures(self, sigs: Iterable[Signature[Any]]) -> BulkResult[Any]:
        """Send many signatures; see `Liteq.enqueue_many`."""
        from liteq.bulk import send_signatures  # late: few programs send in bulk

        return send_signatures(self, sigs)

    async def acall_signatures(self, sigs: Iterable[Signature[Any]]) -> BulkResult[Any]:
        """Send many signatures like `call_signatures()`, off the event loop."""
        return await self.off_loop(self.call_signatures, sigs)

    async def off_loop(self, fun: Callable[..., T], *args: Any) -> T:
        """Have a function make calls off the event loop, for the task that runs here. If
        they are eager they run there: in no thread that others need meanwhile, and under
        Django in the one whose transaction they are to see."""
        if not self.rules().always_eager:
            return await off_loop(fun, *args)
        sync = bridge()
        if sync is not None:
            made: T = await sync.sync_to_async(fun)(*args)
            return made
        # Each loop has threads of its own for this: a call in a call waits for none of them.
        return await running_loop().run_in_executor(None, copy_context().run, fun, *args)

    def apply(
        self,
        task: AnyTask,
        args: Args,
        kwargs: Kwargs,
        options: Options,
        *,
        throw: bool | None = None,
    ) -> EagerResult[Any]:
        """Run a call in this process; see `Task.apply`."""
        from liteq import eager  # late: the executor is 3 ms that a mere sender saves

        args, kwargs = _arguments(args, kwargs)
        message = self.message(self.rules(), task.name, task, args, kwargs, options, body=b"")
        messages, edges = self._with_links(message, options)
        raises: bool = self.app.conf.task_eager_propagates if throw is None else throw
        made: EagerResult[Any] = eager.run(
            self.app, messages, edges, arguments=(args, kwargs), throw=raises
        )
        return made

    def compose(
        self,
        sig: Signature[Any] | Graph,
        args: Args = None,
        kwargs: Kwargs = None,
        options: Options | None = None,
        *,
        take_over: Message | None = None,
        part_of: str | None = None,
    ) -> Composed:
        """Return the messages and edges of a signature, of whatever kind; see
        `liteq.composing.compose`. Nothing is sent."""
        from liteq.composing import compose  # late: plain calls need none of it

        args, kwargs = _arguments(args, kwargs)
        return compose(
            self, sig, args, kwargs, options or {}, take_over=take_over, part_of=part_of
        )

    def call_composed(self, composed: Composed) -> Any:
        """Send what `compose()` returned, and return its result."""
        self._send_workflow(composed, {})
        return composed.result

    def call_workflow(
        self, sig: Signature[Any] | Graph, args: Args, kwargs: Kwargs, options: Options
    ) -> Any:
        """Send a chain, group or chord and return its result."""
        composed = self._compose_workflow(sig, args, kwargs, options)
        if self.rules().always_eager:
            return self._run_workflow(composed)
        self._send_workflow(composed, options)
        return composed.result

    async def acall_workflow(
        self, sig: Signature[Any] | Graph, args: Args, kwargs: Kwargs, options: Options
    ) -> Any:
        """Send a workflow like `call_workflow()`, the store off the event loop."""
        composed = self._compose_workflow(sig, args, kwargs, options)
        if self.rules().always_eager:
            return await self.off_loop(self._run_workflow, composed)
        if composed.messages:
            await self.asend(composed.messages, composed.edges, options, composed.workflow)
        return composed.result

    def apply_workflow(
        self, sig: Signature[Any] | Graph, args: Args, kwargs: Kwargs, options: Options
    ) -> Any:
        """Run a workflow in this process; see `Canvas.apply`."""
        throw = options.pop("throw", None)
        return self._run_workflow(self.compose(sig, args, kwargs, options), throw=throw)

    def _compose_workflow(
        self, sig: Signature[Any] | Graph, args: Args, kwargs: Kwargs, options: Options
    ) -> Composed:
        composed = self.compose(sig, args, kwargs, options)
        running = context.current()
        if composed.entry is not None and running is not None and not running.called_directly:
            self._add_to_trail(running, composed.entry, options)
        return composed

    def _send_workflow(self, composed: Composed, options: Options) -> None:
        if composed.messages:
            self.send(composed.messages, composed.edges, options, composed.workflow)

    def _run_workflow(self, composed: Composed, *, throw: bool | None = None) -> Any:
        if not composed.messages:
            return composed.result
        from liteq import eager  # late: the executor is 3 ms that a mere sender saves

        raises: bool = self.app.conf.task_eager_propagates if throw is None else throw
        return eager.run(
            self.app,
            composed.messages,
            composed.edges,
            composed.workflow,
            result=composed.result,
            throw=raises,
        )

    def send(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        options: Mapping[str, Any] | None = None,
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        """Store messages, in one step; return what was not stored since another has its
        unique key, by its id, with the id of that one.

        When the store cannot be reached it tries again, as `task_publish_retry_policy`
        says; that is safe, since a message that is there already is left as it is.
        """
        workflow = workflow or _linked(messages, edges)
        messages = self.ready(messages, edges)
        begun = self._begun()
        try:
            stands = self.app.broker.enqueue(messages, edges, workflow)
        except BrokerUnavailable as exc:
            stands = self._send_again(messages, edges, workflow, options or {}, exc)
        except AlreadyEnqueued as exc:
            messages = self._as_stored(messages, exc)
            stands = self.app.broker.enqueue(messages, edges, workflow)
        if begun is not None:
            self._tell(messages, stands, begun)
        return stands

    async def asend(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        options: Mapping[str, Any] | None = None,
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        """Store messages like `send()`, while the event loop goes on. Receivers of signals
        run off the loop."""
        workflow = workflow or _linked(messages, edges)
        if signals.before_task_publish.receivers:
            messages = await off_loop(self.ready, messages, edges)
        else:
            messages = self.ready(messages, edges)
        begun = self._begun()
        try:
            stands = await self.app.broker.aenqueue(messages, edges, workflow)
        except BrokerUnavailable as exc:
            stands = await self._asend_again(messages, edges, workflow, options or {}, exc)
        except AlreadyEnqueued as exc:
            messages = await off_loop(self._as_stored, messages, exc)
            stands = await self.app.broker.aenqueue(messages, edges, workflow)
        if begun is not None:
            await off_loop(self._tell, messages, stands, begun)
        return stands

    def _begun(self) -> float | None:
        """Return the time, if anybody wants to hear of what is stored from now on: a worker
        may have begun it, and said so, before the store has answered."""
        if signals.after_task_publish.receivers or self.rules().sends_events:
            return self.app.clock.now()
        return None

    def _tell(
        self, messages: Sequence[Message], stands: Mapping[str, str], begun: float
    ) -> None:
        """Say what was stored to whoever wants to hear of it."""
        stored = [one for one in messages if one.id not in stands]
        if signals.after_task_publish.receivers:
            from liteq import publishing  # late: few have receivers

            publishing.report(stored, self.app.cipher)
        if self.rules().sends_events:
            self.app.events.sent(stored, begun)

    def ready(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        around: Message | None = None,
    ) -> Sequence[Message]:
        """Return messages as they are stored: shown to the receivers of
        `before_task_publish`, then signed with what they wait for. All that is stored goes
        through here. `around`: see `binding.bind`."""
        if signals.before_task_publish.receivers:
            from liteq import publishing  # late: few have receivers

            messages = publishing.announce(messages, self.app.cipher)
        rules = self._rules or self.rules()  # they were looked at when these were made
        if (signer := rules.signer) is not None:
            bound = signer.bind(messages, edges, around)
            messages = [signer.sign(message) for message in bound]
        return messages

    def _as_stored(
        self, messages: Sequence[Message], error: AlreadyEnqueued
    ) -> Sequence[Message]:
        """Return messages whose ids are taken with the arguments as the store has them, where
        they are the same but for how a secret was encrypted: then the call may be repeated.
        Raises the error if none are."""
        rules = self.rules()
        if not rules.cipher.has_keys:
            raise error
        records, found = self.app.broker.get([one.id for one in messages]), []
        for message in messages:
            record = records.get(message.id)
            if record is not None and _says_the_same(message, record.message, rules.cipher):
                message = message._replace(body=record.message.body)
                message = message if rules.signer is None else rules.signer.sign(message)
            found.append(message)
        if found == list(messages):
            raise error
        return found

    def _send_again(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge],
        workflow: Workflow | None,
        options: Mapping[str, Any],
        error: BrokerUnavailable,
    ) -> Mapping[str, str]:
        for pause in self._pauses(options):
            time.sleep(pause)
            try:
                return self.app.broker.enqueue(messages, edges, workflow)
            except BrokerUnavailable as exc:
                error = exc
        raise error

    async def _asend_again(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge],
        workflow: Workflow | None,
        options: Mapping[str, Any],
        error: BrokerUnavailable,
    ) -> Mapping[str, str]:
        import asyncio  # late: whoever awaits this has it

        for pause in self._pauses(options):
            await asyncio.sleep(pause)
            try:
                return await self.app.broker.aenqueue(messages, edges, workflow)
            except BrokerUnavailable as exc:
                error = exc
        raise error

    def _pauses(self, options: Mapping[str, Any]) -> Iterator[float]:
        """Give the seconds before each further try, as the call or the settings say."""
        conf = self.app.conf
        wanted = options.get("retry")
        if not (conf.task_publish_retry if wanted is None else wanted):
            return
        own = options.get("retry_policy") or {}
        policy = {**conf.task_publish_retry_policy, **pauses(own)}
        most = policy.get("max_retries", 3)
        pause = policy.get("interval_start", 0.0)
        tries = 0
        while most is None or tries < most:
            tries += 1
            yield pause
            step, longest = policy.get("interval_step", 0.2), policy.get("interval_max", 1.0)
            pause = min(pause + step, longest)

    # A call and what follows it

    def _compose(
        self, rules: Rules, task: AnyTask, args: Args, kwargs: Kwargs, options: Options
    ) -> _Graph:
        """Return the message of a call, and those of its links with their edges."""
        args, kwargs = _arguments(args, kwargs)
        if self.defaults(rules, task.name, task).checks_arguments:
            task.check_arguments(args, kwargs)
        message = self.message(rules, task.name, task, args, kwargs, options)
        return self._entered(message, options)

    def _compose_named(self, name: Any, args: Args, kwargs: Kwargs, options: Options) -> _Graph:
        if not isinstance(name, str) or not name:
            raise TypeError(f"send_task takes the name of a task, not {name!r}")
        rules = self.rules()
        if rules.always_eager:
            import warnings  # late: rare

            warnings.warn(
                "task_always_eager has no effect on send_task: the call is sent",
                AlwaysEagerIgnored,
                stacklevel=4,
            )
        args, kwargs = _arguments(args, kwargs)
        task = self.app.tasks.get(name)
        message = self.message(rules, name, task, args, kwargs, options)
        return self._entered(message, options)

    def _entered(self, message: Message, options: Options) -> _Graph:
        """Return the message with its links, entered in the trail of the task that makes
        the call."""
        running = context.current()
        if running is not None and not running.called_directly:
            result = AsyncResult[Any](message.id, None, message.task, self.app)
            self._add_to_trail(running, result, options)
        if "link" in options or "link_error" in options:
            return self._with_links(message, options)
        return [message], []

    def _with_links(self, message: Message, options: Options) -> _Graph:
        from liteq.composing import compose_call  # late: few calls have links

        return compose_call(self, message, options.get("link"), options.get("link_error"))

    def _add_to_trail(
        self, running: context.Context, result: ResultBase, options: Mapping[str, Any]
    ) -> None:
        if not options.get("add_to_parent", True):
            return
        if getattr(running._task, "trail", True):
            running.children.append(result)

    def _result(
        self, message: Message, options: Mapping[str, Any], stands: Mapping[str, str]
    ) -> AnyResult:
        if stands:
            return self.stand_in(message, options, stands)
        kind: type[AnyResult] = options.get("result_cls") or AsyncResult
        result = kind(message.id, None, message.task, self.app)
        result.ignored = message.ignore_result
        return result

    def stand_in(
        self, message: Message, options: Mapping[str, Any], stands: Mapping[str, str]
    ) -> AnyResult:
        """Return the result of a call that was not stored, since another has its key: that
        of the other, or one that is over and says so."""
        if message.on_conflict == "skip":
            from liteq.results.eagerresult import EagerResult  # late: rare

            result: AnyResult = EagerResult(message.id, None, IGNORED, name=message.task)
        else:
            kind: type[AnyResult] = options.get("result_cls") or AsyncResult
            result = kind(stands[message.id], None, message.task, self.app)
            result.ignored = message.ignore_result
        result.duplicate = True
        running = context.current()
        if running is not None:  # its trail has the call that was to be
            for place, child in enumerate(running.children):
                if child.id == message.id:
                    skipped = message.on_conflict == "skip"
                    running.children[place : place + 1] = [] if skipped else [result]
                    break
        return result

    # One message

    def message(
        self,
        rules: Rules,
        name: str,
        task: AnyTask | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        options: Options,
        *,
        body: bytes | None = None,
        inherited: int | None = None,
    ) -> Message:
        """Return the message of one call: the task's template and what differs. `inherited`
        is the priority of the call that it stands behind in a workflow."""
        defaults = self.defaults(rules, name, task)
        template = defaults.template
        if body is None and defaults.keys is not None:
            limits = defaults.keys.text(args, kwargs, rules.cipher)
            template = template._replace(limits=limits)
        if body is None:
            kind = options.get("serializer") or template.content_type
            body = serializers.dumps_call(args, kwargs, kind, rules.cipher)
            if len(body) > rules.max_body_size:
                raise too_large(name, body, rules.max_body_size)
        running = context.current()
        if not options and running is None and inherited is None and defaults.is_plain:
            return defaults.message(new_id(), body)
        given = options.get("task_id")
        changed: dict[str, Any] = {"id": checked_id(given) if given else new_id(), "body": body}
        if without := options.keys() & WITHOUT_EFFECT.keys():
            self._say_without_effect(without, options)
        changed["content_type"] = kind = options.get("serializer") or template.content_type
        if not serializers.is_read(kind, rules.accept):
            raise serializers.unread(kind, rules.accept)
        # What it inherits gives way to its options and its route, as in Celery's `send_task`.
        changed.update(_inheritance(rules, running, inherited))
        merged = merge(template.task, args, kwargs, defaults.own, options, rules.router, task)
        if task is not None and (shadow := task.shadow_name(args, kwargs, options)):
            merged.setdefault("shadow", shadow)
        now = self.app.clock.now()
        message = with_options(template, merged, rules.router, now, rules.zone, **changed)
        if not UNIQUE_OPTIONS.isdisjoint(merged):
            from liteq.unique import as_unique  # late: few tasks are unique

            run = None if task is None else task.named_by
            message = as_unique(message, merged, run, args, kwargs, now, rules.cipher)
        if message.expires_at is not None and message.expires_at < now:
            _warn_of_expired(message, now - message.expires_at)
        return message

    def _say_without_effect(self, names: Iterable[str], options: Options) -> None:
        for name in sorted(names):
            if options[name]:
                self.app.say_once(f"no effect in liteq: {name}=… ({WITHOUT_EFFECT[name]})")

    def _eager_call(
        self, task: AnyTask, args: Args, kwargs: Kwargs, options: Options
    ) -> EagerResult[Any]:
        """Run a call in place of sending it, its arguments written and read as if it had
        been sent."""
        args, kwargs = _arguments(args, kwargs)
        if task.typing:
            task.check_arguments(args, kwargs)
        kind = options.get("serializer") or task.serializer
        cipher = self.app.cipher
        body = serializers.dumps_call(args, kwargs, kind, cipher)
        args, kwargs = serializers.loads_call(body, kind, (kind,), cipher)
        rest = {name: value for name, value in options.items() if name != "throw"}
        return self.apply(task, args, kwargs, rest, throw=options.get("throw"))

    # What is worked out of the settings

    def rules(self) -> Rules:
        """Return what the settings say now."""
        rules = self._rules
        revision = self.app.conf.revision
        if rules is None or rules.revision != revision:
            rules = self._rules = Rules(self.app, revision)
        return rules

    def defaults(self, rules: Rules, name: str, task: AnyTask | None) -> Defaults:
        """Return what the calls of a task have in common; None: one not known here."""
        if task is None:
            task = self.app.Task()
        defaults = task._defaults
        if defaults is None or defaults.revision != rules.revision:
            if name is None:
                kind = type(task).__name__
                raise ImproperlyConfigured(
                    f"a {kind} that is not registered has no name to be sent by: use what "
                    f"app.register_task({kind}) returns, or set the class attribute `name`"
                )
            self.app.annotate(task)
            defaults = defaults_of(rules, name, task)
            object.__setattr__(task, "_defaults", defaults)  # not an option of the task
        return defaults


def _inheritance(
    rules: Rules, running: context.Context | None, priority: int | None
) -> dict[str, Any]:
    """Return the fields that a call has from the task that makes it. `priority`: that of the
    call that it stands behind, which goes before the task's."""
    fields: dict[str, Any] = {}
    if running is not None and running.id is not None:
        fields.update(root_id=running.root_id, parent_id=running.id)
        if priority is None and running.message is not None:
            priority = running.message.priority
    if rules.inherits_priority and priority is not None:
        fields["priority"] = priority
    return fields


def _warn_of_expired(message: Message, ago: float) -> None:
    from liteq.loggers import get_logger  # late: rare

    get_logger("liteq.app").warning(
        "Task %s[%s] expired %.3f s before it was sent: it will end revoked",
        message.task,
        message.id,
        ago,
    )


def _says_the_same(message: Message, stored: Message, cipher: Cipher) -> bool:
    """Tell whether two messages differ in nothing of their arguments but how secrets are
    encrypted. (Of those in JSON: nothing else of a store is to be read unchecked.)"""
    if {message.content_type, stored.content_type} != {"json"}:
        return False
    comparing = Fingerprints(cipher)
    try:
        one, other = (
            serializers.dumps_call(*serializers.loads_call(body), cipher=comparing)
            for body in (message.body, stored.body)
        )
    except MessageError:
        return False
    return one == other


def _linked(messages: Sequence[Message], edges: Sequence[Edge]) -> Workflow | None:
    return Workflow(messages[0].id, f"{messages[0].task} with links") if edges else None


def _arguments(args: Args, kwargs: Kwargs) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if args is None:
        args = ()
    elif not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a list or a tuple, not {type(args).__name__}")
    if kwargs is None:
        kwargs = {}
    elif type(kwargs) is not dict and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a mapping, not {type(kwargs).__name__}")
    return args, kwargs
