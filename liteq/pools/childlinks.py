"""What the parent of a prefork pool knows of one child, and the parent's ends of its links.

What travels on the links is described in `liteq.pools.child`; what is done with the child is
the pool's affair (`liteq.pools.prefork`).
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import weakref
from collections import deque
from io import FileIO
from typing import Any, Literal

from liteq.pools.base import Job, PoolOptions
from liteq.pools.child import Links
from liteq.pools.forking import Forked

__all__ = ["Child", "connect", "kill", "kill_group", "signal_name"]


class Child:
    """What the parent knows of one child, and its ends of the links."""

    __slots__ = (
        "__weakref__",
        "answers",
        "blocked",
        "born",
        "charge",
        "checked",
        "dead",
        "deaf",
        "fate",
        "frozen",
        "greeted",
        "held",
        "inbox",
        "jobs",
        "kill_at",
        "left",
        "life",
        "outgoing",
        "partial",
        "pid",
        "process",
        "queue",
        "ready",
        "retiring",
        "sentinel",
        "since",
        "soft_done",
        "tokens",
        "useful",
        "wanted",
        "warned",
        "withdrawn",
        "writing",
    )

    def __init__(
        self,
        tokens: socket.socket,
        inbox: socket.socket,
        jobs: socket.socket,
        answers: socket.socket,
        life: socket.socket,
        left: float,
    ) -> None:
        self.tokens = tokens
        self.inbox = inbox  # the child's end of `tokens`, kept to take jobs back
        self.jobs = jobs
        self.answers = answers
        self.life = life
        self.process: Any = None
        self.pid = 0
        self.sentinel: FileIO | int = -1  # readable when the process has ended

        self.held: deque[Job] = deque()  # in the order of its stream: the first one runs
        self.since = 0.0  # the first one became the first at
        self.checked = False  # whether it has taken the first one
        self.soft_done = False  # its soft limit was announced
        self.left = left  # it takes so many jobs more
        self.blocked = False  # nothing is to be put behind what it has now
        self.queue: list[
            bytes
        ] = []  # jobs for it that are sent together, before the loop sleeps
        self.outgoing: deque[memoryview] = deque()  # what its socket had no room for
        self.writing = False  # the selector waits to send that
        self.withdrawn = 0  # jobs in its stream that it is to pass over, modulo 256
        self.partial = bytearray()  # begin of a frame
        self.wanted = 0  # bytes that make it whole

        self.born = 0.0
        self.greeted = False  # it runs our code
        self.ready = False  # it takes jobs
        self.useful = False  # it has answered for a job
        self.warned = False
        self.retiring = False  # it gets no more jobs
        self.frozen = False  # it is stopped, or so busy that it does not take a job
        self.deaf = False  # its answers are not read any more
        self.charge = ""  # why it is to be killed, if it does not end by itself
        self.dead = False
        self.kill_at: float | None = None
        self.fate: tuple[Literal["died", "time_limit", "terminated"], str] | None = None

    def adopt(self, process: Any, now: float) -> None:
        """Take charge of the process that was started for these links."""
        self.process = process
        self.pid = process.pid
        self.born = now
        _children.add(self)
        with contextlib.suppress(OSError):  # it has, and runs another program, or ended
            os.setpgid(self.pid, self.pid)  # the child does so too: either may be late
        self.sentinel = self._open_sentinel()

    def _open_sentinel(self) -> FileIO:
        """Return what tells of the process's end. It knows whether it was closed, when its
        number may be another file's.

        A pipe, as `multiprocess` has, processes forked by a task keep open after the
        child's death; the kernel's own descriptor of the process is not fooled.
        """
        if not hasattr(os, "pidfd_open"):
            return FileIO(self.process.sentinel, closefd=isinstance(self.process, Forked))
        sentinel = FileIO(os.pidfd_open(self.pid))
        if not isinstance(self.process, Forked):
            self.process._popen.finalizer()  # closes the pipes: later children inherit less
        return sentinel

    @property
    def open(self) -> bool:
        """Whether it may be given jobs."""
        return self.ready and not (self.frozen or self.retiring or self.deaf or self.dead)

    def holds(self, key: int) -> bool:
        return any(job.key == key for job in self.held)

    def bury(self) -> str:
        """Return how the process ended, once nothing of it and its group is left.

        The group goes first: as long as its leader is not waited for, nobody else can
        have its number.
        """
        if not self.retiring or self.held or self.fate is not None:
            kill_group(self.pid, signal.SIGKILL)
        code = self.process.exitcode
        if code is None:  # somebody else waited for it
            return "exit status unknown"
        return f"exit status {code}" if code >= 0 else signal_name(-code)

    def close_parent_ends(self) -> None:
        self.tokens.close()
        self.jobs.close()
        self.answers.close()
        self.life.close()

    def close(self) -> None:
        self.close_parent_ends()
        self.inbox.close()
        if isinstance(self.sentinel, FileIO):
            self.sentinel.close()


_children: weakref.WeakSet[Child] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Close, in every process that a parent forks, its links to its children.

    A later child, or a process of the program's own, would keep the children alive when
    their parent is dead.
    """
    for child in list(_children):
        child.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


def connect(options: PoolOptions) -> tuple[Child, Links]:
    """Return the two sides of the links to a child that is yet to be born."""
    with contextlib.ExitStack() as stack:  # there may be no room for all of them
        pairs = []
        for _ in range(4):
            pairs.append(socket.socketpair())
            for end in pairs[-1]:
                stack.callback(end.close)
        stack.pop_all()
    (tokens, inbox), (jobs, child_jobs), (answers, child_answers), (life, child_life) = pairs
    for end in (tokens, jobs, answers):
        end.setblocking(False)
    links = Links(
        tokens=inbox,
        jobs=child_jobs,
        answers=child_answers,
        life=child_life,
        parent=os.getpid(),
        watch_memory=options.max_memory_per_child is not None,
    )
    left = math.inf if options.max_tasks_per_child is None else options.max_tasks_per_child
    return Child(tokens, inbox, jobs, answers, life, left), links


def kill(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def kill_group(pid: int, signum: int) -> None:
    """Signal a child and its sub-processes."""
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        kill(pid, signum)
    except PermissionError:  # one that changed its user; the others got the signal
        pass


def signal_name(signum: int) -> str:
    try:
        return f"signal {signum} ({signal.Signals(signum).name})"
    except ValueError:
        return f"signal {signum}"
