"""The store's contract: what every broker promises, in the terms of `liteq.brokers.values`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from liteq.brokers.values import (
    FINAL_STATES,
    Aside,
    Attempt,
    Events,
    Input,
    Lease,
    Letter,
    Node,
    Note,
    QueueInfo,
    Record,
    RevokeAnswer,
    Rewrite,
    Said,
    Schedule,
    State,
    Step,
    WorkerInfo,
    WorkflowInfo,
)
from liteq.clock import Clock, system_clock
from liteq.exceptions import BrokerError
from liteq.limits import Limit, LimitInfo
from liteq.message import Edge, Message, Workflow
from liteq.offload import off_loop
from liteq.outcome import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from liteq.brokers.keeping import Keeper
    from liteq.brokers.moving import Shelf
    from liteq.brokers.searching import Found, Search

__all__ = [
    "DEFAULT_MAX_DELIVERIES",
    "EVENTS_KEPT",
    "EVENTS_KEPT_FOR",
    "FINAL_STATES",
    "HELLO",
    "LETTERS_KEPT",
    "MAIL",
    "ORDERS",
    "Aside",
    "Attempt",
    "Broker",
    "Events",
    "Input",
    "Lease",
    "Letter",
    "Mailbox",
    "Node",
    "Note",
    "QueueInfo",
    "Record",
    "RevokeAnswer",
    "Rewrite",
    "Said",
    "Schedule",
    "State",
    "Step",
    "WorkerInfo",
    "WorkflowInfo",
]

DEFAULT_MAX_DELIVERIES: Final = 3
HELLO: Final = "hello"  # the wake-up that says a worker has come
ORDERS: Final = "orders"  # the wake-up that says a run is to be ended
MAIL: Final = "mail"  # the wake-up that says a letter has come, or a listener
LETTERS_KEPT: Final = 1_000  # letters that wait for one receiver at most
EVENTS_KEPT: Final = 10_000  # events kept for slow listeners
EVENTS_KEPT_FOR: Final = 60.0  # seconds
_BEATS_PER_LEASE: Final = 6
_MISSED_BEATS: Final = 3  # after so many a worker counts as stuck


class Mailbox(ABC):
    """Where a process is woken: by `watch()`ed messages that settled, or by new work.

    A wake-up may come for nothing, or be lost; whoever waits looks at the store again after
    at most `poll_interval` seconds.
    """

    name: str = ""  # what letters to it are addressed to
    poll_interval: float = 0.5
    _leases: Sequence[Lease] = ()

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that is readable after a wake-up, or -1 if there is none
        (the caller then polls every `poll_interval` seconds)."""

    @abstractmethod
    def receive(self) -> set[str]:
        """Take all wake-ups without blocking. Return the ids of messages that settled (or
        reported something, if they were watched for it), `HELLO` if a worker has come,
        `ORDERS` if a run is to be ended, `MAIL` if there are letters, and "" for any
        other reason to look."""

    @abstractmethod
    def wait(self, timeout: float | None) -> set[str]:
        """Block until a wake-up or for `timeout` seconds; return what `receive()` does."""

    def leases(self) -> Sequence[Lease]:
        """Take the leases that have come with the wake-ups received so far, for a worker that
        stands by (see `Broker.step`)."""
        taken, self._leases = self._leases, ()
        return taken

    def mend(self) -> None:  # noqa: B027 (most have nothing that can break)
        """Listen again, if a lost connection has made the mailbox deaf. May block."""

    def is_gone(self) -> bool:
        """Tell whether nobody can ever reach it again: who listens here asks for another
        one."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Give up the address."""


class Broker(ABC):
    """The store: queues, leases, results and what follows from them, in one place.

    Promises, each with a contract test of the same number that runs on every broker:

    1.  *Durable.* When `enqueue()` returns, the messages survive the death of any
        process. (What survives a power loss, each broker says itself.)
    2.  *At least once.* A message whose worker died without settling is delivered
        again: at once when its death is seen on the same host, otherwise when its
        heartbeat is older than `lease_timeout`.
    3.  *One outcome.* Each message gets exactly one final outcome; a stale holder's
        settle returns False and changes nothing.
    4.  *One step.* Outcome, result and all that follows become visible together or not
        at all. An error from a writing verb is an unknown outcome: the same call with
        the same ids and tokens may always be repeated.
    5.  *Nothing is dropped.* What cannot be run is kept: as a dead letter with its
        reason and its bytes, or parked for a worker that knows its task.
    6.  *In time.* Never claimed before `run_at`, never claimed after `expires_at`.
    7.  *In order.* A claim takes the highest priority (9 before 0), then the oldest,
        over all the queues it names. What has come due takes its place in that order a
        slice of each queue in a step; nothing is claimed before all of it has.
    8.  *Revoked is revoked.* A message revoked before its start is never claimed,
        whoever restarts; one revoked while it runs gets no further attempt.
    9.  *Each tick once.* `fire()` for the same entry and instant takes effect once,
        however many beats call it, and enqueues in the same step.
    10. *Every workflow ends.* A message that waits starts after all it waits for has
        ended as it was to; lists are in the order of positions, whatever ended first;
        and when that is no longer possible, it ends in the same step as what prevented it.
    11. *At most once, if asked.* A message with `acks_late=False` is never claimed
        twice: if its process dies, it has failed with `WorkerLostError`.

    12. *Limits hold.* Over all workers, the starts of the messages under a rate are never
        closer than it allows, and never do more run at once than a `most` allows. The
        claim decides by its own clock, in its own step: what it takes, it charges; a
        slot is free in the step in which its lease ends, whatever ends it. Those with
        other keys, or without limits, are never held up by one that must wait, and keys
        that wait for one bucket take turns.

    13. *Once, if unique.* At most one message that has not ended holds a `unique_key`,
        whoever enqueues at the same time. The key is taken in the step that stores the
        message, and free with the one that ends or deletes it, whatever that is; no death of
        a process leaves it held, and no clock takes it from one that is alive. One that has
        expired before its start is not alive: who wants its key ends it first.

    An instance may be used by any thread, and after a fork by the child as well.
    Every verb raises `BrokerUnavailable` while the store cannot be reached, and one that
    stores something `QueueFull` while there is no room for it. Both pass, and the call may be
    repeated; any other `BrokerError` stays until somebody mends its cause.
    """

    clock: Clock = system_clock
    lease_timeout: float = 60.0
    slowest_beat: float = 5.0  # seconds: also how late a deleted store is noticed
    # Seconds after which a call gives up on a store that is there and does not answer.
    longest_call: float = 0.0
    max_deliveries: int = DEFAULT_MAX_DELIVERIES
    # By how many seconds the store's clock is ahead of `clock`, if it is another machine's: as
    # it was told with the last leases, and by the last `get()`, of messages that expire, or by
    # the last `time()`.
    ahead: float = 0.0
    directory: str | None = None  # the folder of a store in files

    @property
    def place(self) -> str | None:
        """Where other processes find the store: its folder, or its URL without a password. None
        for one in the memory of this process."""
        return self.directory

    @property
    def folder(self) -> Path | None:
        """The folder of a store in files (`directory`)."""
        from pathlib import Path  # late: 10 ms

        return Path(self.directory) if self.directory is not None else None

    def now(self) -> float:
        """Return the time by the clock that decides which messages have expired. See
        `ahead`."""
        return self.clock.now() + self.ahead

    def time(self) -> float:
        """Return the same, after asking the store."""
        return self.now()

    # Moving work

    @abstractmethod
    def enqueue(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        """Store messages in one step, each target of an edge waiting for its source, and
        all of them known as the workflow, if one is given.

        How an end is handed on to those that wait for it:

        - a success starts those behind "success" edges, and is a gather's part;
        - a failure starts those behind "failure" edges, and so does a revocation (with a
          `TaskRevokedError`). Those behind "success" edges end as their source did:
          failed with the same error, or revoked; they are `upstream`, and their own
          "failure" edges are not set off, so that a chain's error callback runs once;
          but those of a task behind a gather are, for the task stands for its chord;
        - `Ignored` has no value to hand on: what waits for it is revoked, upstream;
        - a gather with the policy "fail" fails with `failure.chord_error` of the part that
          failed first, or, if that has such an error already, with the same; if that was
          ignored, it is revoked. It is `upstream`, and its own "failure" edges are set off;
        - but if the part ended `upstream` as what all parts stand behind has (a call on the
          way to it, that did not run either, has the gather's own `parent_id`), the gather
          ends as a step does, with the same error, and sets nothing off;
        - with another policy it counts its parts however they end. In the list of "collect"
          a `TaskRevokedError` or `Ignore` stands for a part that has neither value nor error;
        - what ended `upstream` keeps the inputs that still come, for a redrive.

        Gathers are no work: `counts()` and `browse()` leave them out.

        Returns, by its id, what was not stored since another holds its unique key, with the
        id of that one, which stands for it. In a workflow no call can be left out: a key
        that is held is a `DuplicateTask` then, whatever the message says.

        An id that is there already with the same task and body is left as it is, so the
        call may be repeated. Raises `AlreadyEnqueued` if task or body differ,
        `DuplicateTask` if a message is unique and says so, and
        `QueueFull` if there is no room, in the store or in a queue with a `max_length`:
        that is how many messages may be queued, scheduled or parked there. It is exact
        over all producers that know it, and binds them alone: what a settle, a `fire()` or
        a redrive puts into a queue is never refused. Nothing is stored then.
        """

    async def aenqueue(
        self,
        messages: Sequence[Message],
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> Mapping[str, str]:
        """Do what `enqueue()` does, and let the running event loop go on meanwhile. As with
        all coroutines of a store, a call that is cancelled may have taken effect."""
        return await off_loop(self.enqueue, messages, edges, workflow)

    @abstractmethod
    def step(
        self,
        worker: int,
        *,
        settlements: Sequence[tuple[Lease, Outcome]] = (),
        notes: Sequence[tuple[Lease, Said]] = (),
        queues: Sequence[str] = (),
        limit: int = 0,
        tasks: Collection[str] | None = None,
        ignore_rates: bool = False,
        idle: bool = False,
    ) -> Step:
        """Settle, note and claim for one worker: one transaction, one trip.

        Notes for a lease that was lost are dropped. Notes that came before a settlement in
        the same step are written first, so the next attempt has the checkpoint.

        Claims up to `limit` messages of those `queues` that are not paused, if their task is
        in `tasks` (None: any task); messages of other tasks are parked. Messages found
        expired are revoked. With `ignore_rates` neither checks nor charges rates.

        `idle` says that the worker holds no lease, and brings no settlement. What is leased to
        it in the store all the same is given back, uncounted, before the claim. From then on
        the worker *stands by*: whenever it holds no lease, a message that is enqueued alone in
        one of these queues, with nothing before it in any of them and nothing to be said about
        it, may be leased to it in the step that stores it, and `Mailbox.leases()` brings the
        lease. `Step.standby` is the token of such leases, another one whenever something was
        given back; the worker takes no lease with another token than it was last told. One
        that has not beaten for `stuck_after` seconds does not stand by, nor one for which a
        queue is paused, or where limits are declared. The next step with `idle` is how a worker
        learns of a lease that was lost on the way, as it does of messages whose wake-up was.
        """

    def settle(self, worker: int, lease: Lease, outcome: Outcome) -> bool:
        """Record the outcome of one lease; False if the lease had been lost."""
        return self.step(worker, settlements=[(lease, outcome)]).accepted[0]

    def claim(
        self,
        worker: int,
        queues: Sequence[str],
        limit: int = 1,
        tasks: Collection[str] | None = None,
    ) -> tuple[Lease, ...]:
        """Take up to `limit` leases, in the order in which they are to be run."""
        return self.step(worker, queues=queues, limit=limit, tasks=tasks).leases

    # Who is alive

    @abstractmethod
    def register(
        self, name: str, queues: Sequence[str], concurrency: int, details: Mapping[str, Any]
    ) -> int:
        """Enter a worker of this process, alive until `unregister()` or its death.
        Return its id, new at every call."""

    @abstractmethod
    def beat(
        self,
        worker: int,
        details: Mapping[str, Any] | None = None,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
    ) -> bool:
        """Say that the worker lives, and what has changed about it. False: it was given
        up for dead meanwhile, its leases are gone, and it must `register()` anew."""

    def disown(self, worker: int, held: Callable[[], Collection[Lease]]) -> int:
        """Take back what the worker holds in the store and knows nothing of, and return how
        much it was. For a worker to call with its heartbeat. `held` tells what it knows of:
        called when it is leased no more as it stands by, to look first at what was on its way.

        A server that comes back from an outage, or another that takes its place, may have
        lost a settlement that it had acknowledged. Its message would be leased for as long as
        the worker lives, and nobody would run it. It ends as if the worker had died. A store
        that loses nothing while its workers live has nothing to do.
        """
        return 0

    @abstractmethod
    def unregister(self, worker: int) -> None:
        """Take the worker out. Leases that it still holds are released, uncounted; those
        with `acks_late=False` may have been started, and are lost."""

    @abstractmethod
    def reclaim(self, worker: int | None = None) -> int:
        """Take the leases of dead workers back and return how many there were.

        Each message is queued again at once with its delivery counted, or becomes a dead
        letter at `max_deliveries`. `worker` (the caller) is never thought dead.
        """

    @abstractmethod
    def workers(self) -> list[WorkerInfo]:
        """Return the workers that are alive."""

    @abstractmethod
    def roster(self, dead_for: float = 3600.0) -> list[WorkerInfo]:
        """Return all workers that did not leave by themselves, with their `state`: "alive";
        "stuck", if the process is there and its heartbeat is not; "dead", for `dead_for`
        seconds or until another worker has taken the name."""

    @property
    def beat_interval(self) -> float:
        """How often a worker is to `beat()`, in seconds."""
        return min(self.slowest_beat, self.lease_timeout / _BEATS_PER_LEASE)

    @property
    def stuck_after(self) -> float:
        """How old the heartbeat of a worker that is well may be, in seconds."""
        return _MISSED_BEATS * self.beat_interval

    def peers(self) -> list[int]:
        """Return descriptors that become readable when another worker of this host may
        have died, so that its leases can be reclaimed at once. The caller owns them."""
        return []

    # Steering

    @abstractmethod
    def revoke(
        self, ids: Iterable[str], *, terminate: str | None = None
    ) -> dict[str, RevokeAnswer]:
        """Keep messages from running, and say for each what became of it.

        "revoked": it will never start. "running": it runs and may finish, but gets no
        further attempt; its worker is told, which may not have started it yet.
        "signalled": `terminate` named a signal ("SIGTERM") and its worker was told to end
        the run. "settled": it was over. "unknown": no such id.
        """

    @abstractmethod
    def redrive(self, ids: Iterable[str]) -> list[str]:
        """Give failed and dead messages a fresh start; return the ids of those.

        What ended `upstream` because of one of them waits again, unless something else
        that it waits for has failed too and is not among these ids. One that is
        `upstream` itself is passed over: it comes back with what it waited for. So is one
        whose unique key another holds by now (see `holder()`). It starts even if it has
        expired, unless a signature covers its expiry: then it keeps that time, and is passed
        over if it has come. An error callback that was called for one of them waits to be
        called again, and a gather that had counted its failure and is not over waits for it
        again.
        """

    def purge(self, queues: Sequence[str] | None = None, *, dead: bool = False) -> int:
        """Delete what waits in these queues (None: all), or, with `dead`, the dead
        letters instead. Return how many. What is running stays.

        It goes slice by slice: an error says how many were deleted before it.
        """
        total = 0
        try:
            for number in self._purge(queues, dead=dead):
                total += number
        except BrokerError as exc:
            if not total:
                raise
            raise type(exc)(f"{exc}; {total:,} messages were deleted before that") from exc
        return total

    @abstractmethod
    def _purge(self, queues: Sequence[str] | None, *, dead: bool) -> Iterable[int]:
        """Delete a slice for each step, and give its number."""

    @abstractmethod
    def age(self, queues: Sequence[str], seconds: float) -> int:
        """Raise priorities against starvation; return how many.

        What has been claimable for n times `seconds` gets the priority n, if its own is
        lower: after nine times that long it has the highest, and goes before all that
        came later. One call looks at the first hundred in line of each priority; who wants
        this calls it repeatedly. Nobody else changes a priority, so that promise 7 holds with
        the new one.
        """

    @abstractmethod
    def pause(self, queue: str) -> bool:
        """Keep all workers from claiming from a queue until it is resumed, whoever restarts.
        What runs goes on. False: it was paused already."""

    @abstractmethod
    def resume(self, queue: str) -> bool:
        """Let workers claim from a paused queue again, and wake them; False if it was not
        paused."""

    # Letters: commands to workers, and their replies

    @abstractmethod
    def post(self, letters: Sequence[Letter]) -> list[bool]:
        """Leave letters and wake those they are for. For each, return whether it was left:
        not for a worker that is gone, nor where `LETTERS_KEPT` wait already."""

    @abstractmethod
    def collect(self, to: int | str) -> list[bytes]:
        """Take the letters for a worker or a mailbox, oldest first, each of them once; what
        is too old is dropped."""

    # Events

    @abstractmethod
    def listen(self, mailbox: Mailbox, seconds: float) -> int:
        """Have events kept, and the mailbox woken by them, for so long (0: no more).
        Return the number of the last event, to read on from. Workers hear of it at once,
        or with their next step."""

    @abstractmethod
    def emit(self, events: Sequence[bytes]) -> bool:
        """Append to the stream and wake who listens. Nothing is kept if nobody does:
        returns whether somebody did. Of what a slow listener has not read, the last
        `EVENTS_KEPT` of the last `EVENTS_KEPT_FOR` seconds stay."""

    @abstractmethod
    def events(self, after: int, limit: int = 1000) -> Events:
        """Return the events after that number, oldest first. If the stream is not that far,
        since the store has lost data, all that are kept, and that one was missed."""

    # Limits

    @abstractmethod
    def declare_limits(self, tasks: Mapping[str, Sequence[Limit]]) -> None:
        """Declare which limits the messages of these tasks are under, replacing what was
        declared before; this holds for waiting messages too. A message that does not name one
        of them itself (`Message.limits`) is under it without a key."""

    @abstractmethod
    def override_limit(
        self, name: str, limit: Limit | None, *, task: str | None = None
    ) -> None:
        """Put a limit of this name in force whatever is declared, at once and for every
        worker, until it is overridden anew; None: what is declared holds again. `task`: one
        whose messages are under it although its code declares none of this name."""

    @abstractmethod
    def limits(self) -> list[LimitInfo]:
        """Return all limits, declared or overridden, by name."""

    # Looking

    @abstractmethod
    def queues(self) -> list[QueueInfo]:
        """Return the queues that hold anything or are paused, by name."""

    @abstractmethod
    def claimable(self, queues: Sequence[str], most: int) -> int:
        """Count what is claimable in these queues now, up to `most`."""

    @abstractmethod
    def holder(self, unique_key: str) -> str | None:
        """Return the id of the message that holds a key, None if it is free. One that has
        expired before its start holds none; it is ended by who takes its key, if not before."""

    @abstractmethod
    def get(self, ids: Sequence[str]) -> dict[str, Record]:
        """Return the records of those ids that are in the store."""

    async def aget(self, ids: Sequence[str]) -> dict[str, Record]:
        """Do what `get()` does, and let the running event loop go on meanwhile."""
        return await off_loop(self.get, ids)

    @abstractmethod
    def inputs(self, id: str) -> tuple[Input, ...]:
        """Return what the messages that this one waited for have left for it, in order."""

    @abstractmethod
    def attempts(self, id: str) -> list[Attempt]:
        """Return the latest `ATTEMPTS_KEPT` attempts of a message that did not succeed, oldest
        first. Their numbers count all."""

    @abstractmethod
    def browse(
        self, state: State | Literal["dead"], *, queue: str | None = None, limit: int = 50
    ) -> list[Record]:
        """Return messages in a state, oldest first; "dead" means dead letters."""

    @abstractmethod
    def find(self, search: Search, *, before: int | None = None) -> Iterator[Found]:
        """Yield the messages looked for, the latest first; with `before`, those that came
        before the one with that number.

        The store is read in bounded slices as the answer is taken, so one may stop at any
        time. What changes its state meanwhile may be missed.
        """

    @abstractmethod
    def complete(self, prefix: str, limit: int = 2) -> list[str]:
        """Return up to `limit` ids that begin with this text."""

    @abstractmethod
    def counts(self) -> dict[str, dict[State, int]]:
        """Return how many unfinished messages there are, by queue and state. Those that wait
        for another attempt are counted as "scheduled"."""

    # Workflows

    @abstractmethod
    def workflow(self, id: str) -> WorkflowInfo | None:
        """Return what is known of a workflow, None if there is none with a node left."""

    @abstractmethod
    def workflows(self, limit: int = 50) -> list[WorkflowInfo]:
        """Return workflows, the latest first."""

    @abstractmethod
    def nodes(self, workflow: str) -> tuple[list[Node], list[Edge]]:
        """Return a workflow's nodes in the order in which they were enqueued, gathers
        among them, and the edges between them."""

    # Schedules

    @abstractmethod
    def schedules(self, names: Sequence[str] | None = None) -> list[Schedule]:
        """Return all periodic entries, or those of these names that exist, by name."""

    @abstractmethod
    def schedule_names(self) -> list[str]:
        """Return the names of all periodic entries, in order."""

    @abstractmethod
    def put_schedule(self, schedule: Schedule, *, revision: int | None = None) -> bool:
        """Write an entry, its `last_…`, `total` and `revision` aside, and wake the beats.

        With `revision`, only if the entry still has that one (0: if there is none of that
        name); return whether it had. The first write sets `last_…` and `total` as given.
        """

    @abstractmethod
    def remove_schedule(self, name: str) -> bool:
        """Delete an entry, and wake the beats; return whether there was one."""

    @abstractmethod
    def fire(
        self,
        name: str,
        due_at: float,
        next_due_at: float | None,
        *,
        revision: int,
        messages: Sequence[Message] = (),
        edges: Sequence[Edge] = (),
        workflow: Workflow | None = None,
    ) -> bool:
        """Move an entry from one instant to its next, and enqueue, in one step.

        Nothing is done and False returned if the entry is not due at `due_at` any more,
        is paused, or has another revision. Without messages the instant is passed over:
        `total` and the `last_…` fields stay. So it is if one of them is unique, its key is
        held, and nothing of it would be stored or taken over.
        """

    @abstractmethod
    def lead(self, beat: str, until: float) -> bool:
        """Take or keep the lease of the leading beat until then (Unix seconds); False if
        another beat has one that has not run out. Fires are safe without it: it keeps
        beats from doing the same work at the same time."""

    @abstractmethod
    def unlead(self, beat: str) -> None:
        """Give up the lease, if this beat has it, and wake the other beats."""

    # Results

    @abstractmethod
    def watch(
        self, ids: Sequence[str], mailbox: Mailbox, *, notes: bool = False
    ) -> dict[str, Record]:
        """Have the mailbox woken when these messages settle; with `notes`, when they
        report something as well.

        Returns the records of those that are settled now: looking and registering are
        one step, so no settle falls between them. Ids unknown to the store are skipped.
        """

    async def awatch(self, ids: Sequence[str], mailbox: Mailbox) -> dict[str, Record]:
        """Do what `watch()` does, and let the running event loop go on meanwhile."""
        return await off_loop(self.watch, ids, mailbox)

    @abstractmethod
    def mailbox(self, worker: int | None = None, *, beat: bool = False) -> Mailbox:
        """Open a mailbox; with a worker's id, one that new work wakes too; with `beat`,
        one that a changed schedule or a lease that was given up wakes."""

    @abstractmethod
    def store(
        self,
        id: str,
        state: str,
        value: bytes | None,
        *,
        task: str = "",
        expires: float | None = 86400.0,
    ) -> None:
        """Write a state for an id from outside of any lease: `update_state` with another
        call's id, or an eager result. A final message is left alone.

        A final state for an id that is not in the store is a result from outside: the id is
        used, a message that is enqueued under it is a repeat or refused, and nothing is there
        that could be run again. Another one is
        an early note. It is no message: no count or list has it, nothing waits for it, and to
        `revoke()` it is unknown. A message that is enqueued under its id takes its place. It
        is deleted after `expires` seconds, counted from the last of them."""

    @abstractmethod
    def forget(self, ids: Iterable[str]) -> None:
        """Delete what is settled of these, with its attempts."""

    # Keeping house

    def changed(self) -> bool:
        """Tell whether others may have put anything into the store, or changed it, since
        this thread last asked. Cheaper than looking for it: a worker asks every second, or
        with each heartbeat where nothing happens, in case a wake-up was lost. Where the store
        cannot tell, always True."""
        return True

    def next_due(self, queues: Sequence[str]) -> float | None:
        """Return `Step.next_due` of a worker of these queues without a step, or an earlier
        instant: a look that waits for nobody. Where a step is as cheap, always now."""
        return self.clock.now()

    @abstractmethod
    def maintain(self) -> bool:
        """Do one small slice of upkeep: delete expired results, revoke expired messages,
        give up parked ones, drop old letters and events. Return whether there is more to do
        now."""

    @abstractmethod
    def check(self) -> None:
        """Look whether the store is the one that was met here last: if another has taken its
        place, `losses` counts it. Raises `StoreLost` if it was a file and is gone."""

    @property
    @abstractmethod
    def losses(self) -> int:
        """How often another store was found here in place of the known one. What was sent at
        a lower count, and is not in the store, was lost with that one."""

    @abstractmethod
    def close(self) -> None:
        """Close what this process has open. The instance may be used again."""

    # For who operates the store. One in memory ends with its process, and is not looked after:
    # its `facts()` and `keeper()` raise `ImproperlyConfigured`.

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return figures of the store: sizes in bytes, and, as `states`, how many messages
        are in which state. Each broker adds its own."""

    def persistence(self) -> str:
        """Say in a few words what of the store survives the death of its server; "" if it has
        none."""
        return ""

    def keeper(self) -> Keeper | None:
        """Return who looks after the store's file: backups, checks. None for a store on a
        server."""
        return None

    @abstractmethod
    def shelf(self) -> Shelf:
        """Return the store as something to be moved (see `moving`)."""
