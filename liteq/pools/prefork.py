"""The pool of child processes, seen from the parent.

Each child is fed by a stream of jobs, and needs a token for each that it starts. The
parent keeps the reading end of the tokens too: what the child has not started can be taken
back, and because the kernel hands each token to exactly one reader, a job that came back
is certain not to run. That answers the three questions a pool gets wrong most easily:

- Jobs behind one that turns out slow are taken back and given to others.
- When a child dies, the job it had taken is lost, and only that one.
- Before a child is killed for its job, all others are taken back. What it then still
  holds is that job, or nothing.

`liteq.pools.child` is the other side and describes what travels on the sockets.
"""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from liteq.loggers import get_logger
from liteq.pools.base import (
    WAIT_LIMIT,
    Births,
    Broken,
    Done,
    Due,
    Event,
    Job,
    LookAhead,
    LostJob,
    Pool,
    PoolOptions,
    Ready,
    Reported,
    Returned,
    Runner,
)
from liteq.pools.child import (
    DONE,
    FRAME,
    HELLO,
    JOB,
    LONG,
    PING,
    POKE,
    PONG,
    READY,
    REPORT,
    STOPPING,
)
from liteq.pools.childlinks import Child, kill, kill_group, signal_name
from liteq.pools.childstart import Starter
from liteq.shortage import advice

__all__ = ["ProcessPool"]

log = get_logger("liteq.pool")

HELLO_LIMIT: Final = 10.0  # a fork that gives no sign for so long hangs on some lock
START_LIMIT: Final = 1.0  # for an idle child to take a job: else it is stopped, or starves
SLOW_START: Final = 10.0  # say so, once
EXIT_LIMIT: Final = 10.0  # for a child that has nothing left to do but to end
CUT_OFF_LIMIT: Final = 1.0  # for one whose sockets are closed, so that it cannot answer
AT_ONCE: Final = 32  # children that are started in one turn of the loop
KILL_LIMIT: Final = 5.0  # how long stop(kill=True) waits for the kernel
READ_SIZE: Final = 262_144
# Twice as many jobs may be withdrawn from a child's stream, and a byte says how many are.
MOST_AHEAD: Final = 120

_HEAD: Final = FRAME.size
_unpack: Final = FRAME.unpack_from
_pack: Final = JOB.pack
_TOKENS: Final = tuple(bytes([value]) for value in range(256))
_QUIETLY: Final = getattr(socket, "MSG_NOSIGNAL", 0)  # a program may not ignore SIGPIPE
_new: Final = tuple.__new__  # a third of what Done(...) costs, on the busiest line


class ProcessPool(Pool):
    """Jobs run in child processes, which can be killed: every limit can be kept."""

    kind = "prefork"
    can_soft = True
    can_hard = True

    def __init__(self, factory: Callable[[], Runner], options: PoolOptions) -> None:
        self._factory = factory
        self._options = options
        self._now = options.monotonic
        self._target = options.concurrency
        self._ahead = LookAhead(min(options.max_lookahead, MOST_AHEAD))
        self._starter: Starter
        self._selector: selectors.BaseSelector
        self._buffer = bytearray(READ_SIZE)
        self._view = memoryview(self._buffer)

        self._children: list[Child] = []
        self._idle: list[Child] = []  # last in, first out; entries may be out of date
        self._turns: deque[Child] = deque()  # accepting children, by turns
        self._unsent: list[Child] = []  # whose queues are to be sent; some twice
        self._backlog: deque[Job] = deque()  # in nobody's hands yet
        self._backlog_since = 0.0
        self._events: list[Event] = []

        self._to_replace: deque[Child] = deque()  # roll(): one after the other
        self._births = Births()
        self._broken = False
        self._stopping = False

    # The loop's side

    def start(self, selector: selectors.BaseSelector) -> None:
        self._starter = Starter(self._factory, self._options, selector)
        self._selector = selector
        self._start_missing(self._now())

    def capacity(self) -> int:
        now = self._now()
        limit = self._ahead.limit
        room: float = -len(self._backlog)
        for child in self._turns:
            if child.held and now - child.since > WAIT_LIMIT:
                child.blocked = True
            if not child.blocked:
                room += min(limit, child.left) - len(child.held)
        return int(room) if room > 0 else 0

    def submit(self, job: Job) -> None:
        if not self._backlog:
            child = self._choose(job)
            if child is not None:
                self._give(child, job)
                return
            self._backlog_since = self._now()
        self._backlog.append(job)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def tick(self, now: float) -> float | None:
        due = Due(now)
        for child in tuple(self._children):
            self._watch(child, due)
        self._empty_backlog(due)
        self._roll_on()
        self._start_missing(now)
        if self._unsent:
            for child in self._unsent:
                self._send_queue(child)
            self._unsent.clear()
        if self._missing():
            due.at(self._births.next_at)
        return 0.0 if self._events else due.seconds()

    def running(self) -> dict[int, int]:
        return {c.held[0].key: c.pid for c in self._children if c.held}

    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def alive(self) -> int:
        return len(self._children)

    def resize(self, concurrency: int) -> None:
        self._target = max(concurrency, 1)
        self._births.next_at = 0.0
        for child in sorted(self._children, key=lambda c: len(c.held)):
            if self._staying() <= self._target:
                break
            if not child.retiring:
                self._retire(child)
        self._feed()

    def roll(self) -> None:
        self._to_replace = deque(c for c in self._children if not c.retiring)
        self._roll_on()

    def dump(self) -> None:
        for child in self._children:
            if child.greeted:  # before that, the signal would kill it
                kill(child.pid, signal.SIGUSR2)

    def terminate(self, key: int, signum: int = signal.SIGTERM) -> bool:
        if self._drop_waiting(key):
            return True
        child = next((c for c in self._children if c.holds(key)), None)
        if child is None:
            return False
        if not self._isolate(child, key):
            self._drop_waiting(key)
        elif signum == signal.SIGUSR1:
            self._poke(child, key)
        else:
            child.fate = ("terminated", f"terminated by {signal_name(signum)}")
            self._retire(child)
            kill_group(child.pid, signum)
        self._feed()
        return True

    def recall(self) -> None:
        for child in self._children:
            self._backlog.extend(self._take_back(child))
        self._return_backlog()

    def stop(self, *, kill: bool = False) -> None:
        self._stopping = True
        self._to_replace.clear()
        self.recall()
        for child in self._children:
            if not child.retiring:
                self._retire(child)
        if kill:
            self._kill_all()
        elif self._options.stopping():
            self._tell_stopping()

    # Feeding

    def _feed(self) -> None:
        """Give waiting jobs to children, in order, while there is room."""
        backlog = self._backlog
        placed = False
        while backlog:
            child = self._choose(backlog[0])
            if child is None:
                break
            self._give(child, backlog.popleft())
            placed = True
        if placed and backlog:
            self._backlog_since = self._now()

    def _choose(self, job: Job) -> Child | None:
        idle = self._idle
        while idle:
            child = idle.pop()
            if child.open and not child.held:
                return child
        if len(job.payload) > LONG:
            return None  # what it is put behind could take long, or what comes behind it
        limit = self._ahead.limit
        turns = self._turns
        for child in turns:
            load = len(child.held)
            if load < limit and load < child.left and not child.blocked:
                turns.rotate(-1)
                return child
        return None

    def _give(self, child: Child, job: Job) -> None:
        payload = job.payload
        size = len(payload)
        head = _pack(job.key, size)
        if child.held:
            if not child.queue:
                self._unsent.append(child)
            child.queue.append(head + payload)
        else:
            child.since = self._now()
            child.soft_done = False
            child.checked = False
            if size > LONG:
                child.blocked = True
                self._send(child, head, 0)
                self._send(child, payload, 1)
            else:
                self._send(child, head + payload, 1)
        child.held.append(job)

    def _send_queue(self, child: Child) -> None:
        """Send what the child is to do next, which it is given while it does something."""
        queue = child.queue
        if queue and not child.dead:
            self._send(child, b"".join(queue), len(queue))
        queue.clear()

    def _send(self, child: Child, data: bytes, tokens: int) -> None:
        """Send jobs, or a part of one, and the tokens of those that are begun with that. A
        child that has a token waits for what its job lacks; one that has ended needs neither,
        and its tokens will be taken back."""
        try:
            sent = 0 if child.writing else child.jobs.send(data, _QUIETLY)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = len(data)
        if sent < len(data):
            child.outgoing.append(memoryview(data)[sent:])
            if not child.writing:
                child.writing = True
                self._selector.register(
                    child.jobs, selectors.EVENT_WRITE, lambda mask: self._send_more(child)
                )
        child.tokens.send(_TOKENS[child.withdrawn] * tokens)

    def _send_more(self, child: Child) -> None:
        """Send some of what the child's socket had no room for."""
        if child.dead:  # since the selector looked
            return
        outgoing = child.outgoing
        try:
            rest = outgoing[0][child.jobs.send(outgoing[0], _QUIETLY) :]
        except BlockingIOError:
            return
        except OSError:  # see `_send`
            outgoing.clear()
        else:
            if rest:
                outgoing[0] = rest
            else:
                outgoing.popleft()
        if not outgoing:
            child.writing = False
            self._selector.unregister(child.jobs)

    def _take_back(self, child: Child) -> list[Job]:
        """Return the jobs that the child had not started, which it now never will."""
        if not child.held:
            return []
        count = len(child.queue)
        child.queue.clear()
        with contextlib.suppress(BlockingIOError):
            while taken := child.inbox.recv(256, socket.MSG_DONTWAIT):
                child.withdrawn = (child.withdrawn + len(taken)) % 256
                count += len(taken)
        if not count:
            return []
        back = [child.held.pop() for _ in range(count)]
        back.reverse()
        child.blocked = bool(child.held)  # by the slow job, until it is done
        if not child.held:
            self._sound_out(child)
        return back

    def _sound_out(self, child: Child) -> None:
        """The child had not even taken its first job. No more for it until it answers."""
        child.frozen = child.blocked = True
        with contextlib.suppress(OSError):  # retired: it gets no more anyway
            self._send(child, _pack(PING, 0), 1)

    def _now_idle(self, child: Child) -> None:
        if child.open:
            self._idle.append(child)

    def _put_back(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait again, before those that came later."""
        if not self._backlog:
            self._backlog_since = self._now()
        self._backlog.extendleft(reversed(list(jobs)))

    def _drop_waiting(self, key: int) -> bool:
        for job in self._backlog:
            if job.key == key:
                self._backlog.remove(job)
                self._events.append(LostJob(key, "terminated before its start", "terminated"))
                return True
        return False

    def _return_backlog(self) -> None:
        self._events.extend(Returned(job.key) for job in self._backlog)
        self._backlog.clear()

    # Answers

    def _on_answers(self, child: Child) -> None:
        if self._read(child) and self._backlog:
            self._feed()

    def _read(self, child: Child) -> bool:
        """Take in what the child has said. False if there was nothing."""
        if child.deaf or child.dead:  # since the selector looked
            return False
        try:
            size = child.answers.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError:
            size = 0
        if size == 0:
            self._cut_off(child, "closed its channel to the worker and was killed")
            return False
        data = bytes(self._view[:size])
        if child.partial:
            child.partial += data
            if len(child.partial) < child.wanted:
                return True
            data = bytes(child.partial)
            child.partial.clear()
        rest = self._parse(child, data)
        if rest < len(data):
            child.partial += data[rest:]
            child.wanted = _frame_size(child.partial)
        return True

    def _parse(self, child: Child, data: bytes) -> int:
        """Act on the whole frames; return where the first that is not whole begins."""
        start = 0
        end = len(data)
        held = child.held
        events = self._events
        done = 0
        took = 0.0
        while end - start >= _HEAD:
            length, kind, key, runtime, memory = _unpack(data, start)
            body = start + _HEAD
            stop = body + length
            if stop > end:
                break
            start = stop
            if kind == DONE:
                if not held or held[0].key != key:
                    self._cut_off(child, f"answered for a job it did not have ({key})")
                    return end
                held.popleft()
                events.append(_new(Done, (key, data[body:stop], runtime)))
                done += 1
                took += runtime
                if memory:
                    self._check_memory(child, memory)
            elif kind == REPORT:
                if child.holds(key):
                    events.append(Reported(key, data[body:stop]))
            elif kind == PONG:
                child.frozen = child.blocked = False
                self._now_idle(child)
            elif kind == HELLO:
                child.greeted = True
            elif kind == READY:
                self._on_ready(child, memory)
        if done:
            self._ahead.note(took / done)
            self._next_job(child, done)
        return start

    def _next_job(self, child: Child, done: int) -> None:
        """Some jobs of the child are done; it is now at the next one, if it has any."""
        self._births.useful()
        child.left -= done
        child.since = self._now()
        child.soft_done = False
        child.checked = True  # it is awake
        child.blocked = False
        child.useful = True
        if child.left <= 0 and not child.retiring:
            self._retire(child)
        elif not child.held:
            self._now_idle(child)

    def _on_ready(self, child: Child, memory: int) -> None:
        most = self._options.max_memory_per_child
        if most is not None and memory > most:
            self._break(
                f"max_memory_per_child is {most} KiB, but a child has {memory} KiB before "
                "its first task: every task would cost a process"
            )
            return
        child.ready = True
        self._births.ready()
        self._events.append(Ready(child.pid))
        if not child.retiring:
            self._turns.append(child)
            self._idle.append(child)
        self._roll_on()
        self._feed()

    def _check_memory(self, child: Child, memory: int) -> None:
        most = self._options.max_memory_per_child
        if most is not None and memory > most and not child.retiring:
            log.info("child %d has %d KiB, above %d: replaced", child.pid, memory, most)
            self._retire(child)

    # Time

    def _watch(self, child: Child, due: Due) -> None:
        """Do what time demands of one child."""
        if child.kill_at is not None:
            if due.reached(child.kill_at):
                child.kill_at = None
                if child.deaf and child.fate is None:
                    child.fate = ("died", f"the child process {child.charge}")
                kill_group(child.pid, signal.SIGKILL)
        elif child.held:
            self._watch_job(child, due)
        elif child.retiring:
            child.kill_at = due.now + EXIT_LIMIT
            due.at(child.kill_at)
        elif not child.ready:
            self._watch_start(child, due)

    def _watch_job(self, child: Child, due: Due) -> None:
        job = child.held[0]
        if not child.checked and due.reached(child.since + START_LIMIT):
            child.checked = True
            self._put_back(self._take_back(child))
            if not child.holds(job.key):
                self._feed()
                return
        if job.hard is not None and due.reached(child.since + job.hard):
            if self._isolate(child, job.key):
                reason = f"hard time limit ({job.hard:g}s) exceeded"
                child.fate = child.fate or ("time_limit", reason)
                self._retire(child)
                kill_group(child.pid, signal.SIGKILL)
            self._feed()
            return
        soft_due = job.soft is not None and not child.soft_done
        if soft_due and due.reached(child.since + (job.soft or 0.0)):
            if self._isolate(child, job.key):
                child.soft_done = True
                self._poke(child, job.key)
            self._feed()
            due.at(due.now)  # the child may have another job now, with limits of its own
            return
        if len(child.held) > 1 and due.reached(child.since + WAIT_LIMIT):
            self._put_back(self._take_back(child))
            self._feed()

    def _watch_start(self, child: Child, due: Due) -> None:
        if not child.greeted and self._options.start_method == "fork":
            if due.reached(child.born + HELLO_LIMIT):
                log.error(
                    "child %d gave no sign of life for %g s and is killed: it probably "
                    "waits for a lock that another thread held at the fork",
                    child.pid,
                    HELLO_LIMIT,
                )
                kill_group(child.pid, signal.SIGKILL)
                child.kill_at = due.now + KILL_LIMIT
        elif not child.warned and due.reached(child.born + SLOW_START):
            child.warned = True
            log.warning("child %d is not ready after %g s", child.pid, SLOW_START)

    def _empty_backlog(self, due: Due) -> None:
        """Give back what nobody was free for: some other worker may be."""
        if not self._backlog:
            return
        self._feed()
        if self._backlog and due.reached(self._backlog_since + WAIT_LIMIT):
            self._return_backlog()

    def _poke(self, child: Child, key: int) -> None:
        """Tell the child that the soft limit of this job has passed.

        A signal cannot say which job it is for, and the child may just be done with it;
        so the key goes ahead by the socket, and the child compares.
        """
        if not child.greeted:
            return
        try:
            child.answers.send(POKE.pack(key))
        except OSError:
            return
        kill(child.pid, signal.SIGUSR1)

    def _tell_stopping(self) -> None:
        """Have the jobs that run know, when they ask, that the worker is to stop. No signal:
        it would break into what a job does that never asks."""
        for child in self._children:
            if child.held:
                with contextlib.suppress(OSError):  # it dies
                    child.answers.send(POKE.pack(STOPPING))

    def _isolate(self, child: Child, key: int) -> bool:
        """Take back all that the child has not started, and read all it has answered.

        After that it holds one job at most, which it has taken, and cannot get another:
        True if that is `key`. Without this, a kill might hit the next job.
        """
        self._put_back(self._take_back(child))
        while self._read(child):
            pass
        return child.holds(key)

    # Children

    def _missing(self) -> int:
        if self._stopping or self._broken:
            return 0
        # One that only has to end needs no place; one that still runs a job does, or
        # more jobs than allowed would run at once.
        taken = sum(not c.retiring or bool(c.held) for c in self._children)
        return max(self._target - taken, 0)

    def _staying(self) -> int:
        return sum(not child.retiring for child in self._children)

    def _start_missing(self, now: float) -> None:
        """Start children, few at a time: between them the loop hears that it is to stop."""
        for _ in range(AT_ONCE):
            if not self._missing() or now < self._births.next_at:
                break
            try:
                self._start_child()
            except OSError as exc:
                lacking = advice(exc) or str(exc)
                if self._births.were_ready:  # it has worked: what is missing may come back
                    wait = self._births.lacking(now)
                    log.error("cannot start a child: %s; trying again in %g s", lacking, wait)  # noqa: TRY400
                else:
                    self._failed(now, f"cannot start a child: {lacking}", ready=False)

    def _start_child(self) -> None:
        child = self._starter.start()
        self._children.append(child)
        self._selector.register(
            child.answers, selectors.EVENT_READ, lambda mask: self._on_answers(child)
        )
        self._selector.register(
            child.sentinel, selectors.EVENT_READ, lambda mask: self._on_exit(child)
        )

    def _retire(self, child: Child) -> None:
        """Give the child no more jobs. It ends when it is through with those it has."""
        child.retiring = True
        self._no_more_turns(child)
        self._send_queue(child)
        child.tokens.shutdown(socket.SHUT_WR)

    def _no_more_turns(self, child: Child) -> None:
        if child in self._turns:
            self._turns.remove(child)

    def _cut_off(self, child: Child, charge: str) -> None:
        """The child cannot be understood any more: if it does not end, kill it.

        This is also the first sign of nearly every death, the second being its sentinel.
        """
        child.deaf = True
        child.charge = charge
        self._selector.unregister(child.answers)
        self._no_more_turns(child)
        if child.kill_at is None:
            child.kill_at = self._now() + CUT_OFF_LIMIT

    def _on_exit(self, child: Child) -> None:
        """A child process has ended: account for its jobs, and replace it."""
        if child.dead:
            return
        self._put_back(self._take_back(child))
        while self._read(child):
            pass
        child.dead = True
        status = child.bury()
        self._forget(child)
        useful = child.useful or bool(child.held)
        self._lose(child, status)
        if not child.retiring and not useful:
            log.error("child %d ended: %s", child.pid, status)
            self._failed(self._now(), status, ready=child.ready)
        self._roll_on()
        self._feed()

    def _forget(self, child: Child) -> None:
        if not child.deaf:
            self._selector.unregister(child.answers)
        if child.writing:
            self._selector.unregister(child.jobs)
        self._selector.unregister(child.sentinel)
        self._children.remove(child)
        self._no_more_turns(child)
        child.close()

    def _lose(self, child: Child, status: str) -> None:
        """Report the job that died with its child: one at most, the rest was taken back."""
        kind, reason = child.fate or ("died", f"the child process ended: {status}")
        for job in child.held:
            self._events.append(LostJob(job.key, reason, kind))
        child.held.clear()

    def _failed(self, now: float, why: str, *, ready: bool) -> None:
        """A child was of no use: wait before the next one, or give up."""
        if self._births.failed(now, ready=ready):
            self._break(f"children keep ending at their start: {why}")

    def _break(self, reason: str) -> None:
        if not self._broken:
            self._broken = True
            self._events.append(Broken(reason))
            self.stop()

    def _roll_on(self) -> None:
        """Replace the next child, once the one before it has a successor."""
        if not self._to_replace or self._stopping or self._broken:
            return
        if self._missing() or any(c.retiring or not c.ready for c in self._children):
            return
        while self._to_replace:
            child = self._to_replace.popleft()
            if not child.dead and not child.retiring:
                self._put_back(self._take_back(child))
                self._retire(child)
                return

    def _kill_all(self) -> None:
        for child in self._children:
            if child.fate is None:
                child.fate = ("terminated", "the pool was stopped")
            child.kill_at = None
            kill_group(child.pid, signal.SIGKILL)
        give_up = self._now() + KILL_LIMIT
        with selectors.DefaultSelector() as ends:
            for child in self._children:
                ends.register(child.sentinel, selectors.EVENT_READ, child)
            while self._children and (left := give_up - self._now()) > 0:
                for key, _ in ends.select(left):
                    ends.unregister(key.fileobj)
                    self._on_exit(key.data)
        for child in tuple(self._children):  # the kernel does not let go of it
            child.dead = True
            self._forget(child)
            self._lose(child, "unknown")


def _frame_size(partial: bytearray) -> int:
    """Return the size of the frame that begins here (of a header, if it is not whole)."""
    if len(partial) < FRAME.size:
        return FRAME.size
    return FRAME.size + int(FRAME.unpack_from(partial)[0])
