"""What a pool's child does with a job: the executor behind a door of bytes.

A job is `marshal` of the fields of a `Delivery` (packed message, number, inputs as tuples,
the calls that they say failed, when it expires here), its answer
`marshal` of `outcome.encode()`, a report `marshal` of the
fields of a `Note` or of a `Rewrite`. A job of many calls is `marshal` of a list of such jobs,
its answer of a list of such outcomes, a report of the call's place and such a report. Marshal
is the fastest way between processes that run the same Python; nothing of it is ever stored.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from liteq import outcome
from liteq.body import Body
from liteq.brokers.values import Lease, Note, Rewrite, Said
from liteq.delivery import NO_CALLS, Delivery, FailedCalls, plain
from liteq.executor import Executor, ExecutorSettings, TaskLike
from liteq.outcome import Outcome
from liteq.signals import worker_process_init, worker_process_shutdown

__all__ = [
    "RunnerFactory",
    "TaskRunner",
    "job",
    "job_of_many",
    "read_answer",
    "read_answers",
    "read_report",
    "read_report_of_many",
]

Send = Callable[[bytes], None]

_FORMAT: Final = 2  # of marshal: later ones look for what occurs twice, which takes longer


# The worker's side of the door


def job(lease: Lease, failed: FailedCalls = NO_CALLS, expires_at: float | None = None) -> bytes:
    """Return the payload of a job for this lease. `failed`: see `delivery.find_failed`;
    `expires_at`: by the clock of this machine."""
    inputs = plain(lease.inputs) if lease.inputs else ()
    fields = (lease.packed, lease.delivery, inputs, failed, expires_at)
    return marshal.dumps(fields, _FORMAT)


def job_of_many(jobs: list[bytes]) -> bytes:
    """Return the payload of one job for the calls that these are for."""
    return marshal.dumps(jobs, _FORMAT)


def read_answer(payload: bytes) -> Outcome:
    """Return the outcome in a runner's answer."""
    return outcome.decode(marshal.loads(payload))


def read_answers(payload: bytes) -> list[Outcome]:
    """Return the outcomes in a runner's answer to a job of many calls."""
    return [outcome.decode(encoded) for encoded in marshal.loads(payload)]


def read_report_of_many(payload: bytes) -> tuple[int, Said]:
    """Return which of many calls a runner's report is about, and what it says."""
    place, said = marshal.loads(payload)
    return place, read_report(said)


def read_report(payload: bytes) -> Said:
    """Return what a task says, in a runner's report."""
    fields = marshal.loads(payload)
    return Rewrite(*fields) if len(fields) == 1 else Note(*fields)


# The child's side


class TaskRunner:
    """Runs one job at a time; each child of a pool has its own. See `pool.Runner`."""

    def __init__(self, executor: Executor, *, own_process: bool = False) -> None:
        """`own_process`: the child is a process, so `worker_process_init` and
        `worker_process_shutdown` are sent in it."""
        self._executor = executor
        self._own_process = own_process
        self._body = Body()
        self._stopping: Callable[[], bool] = bool

    def start(self, stopping: Callable[[], bool]) -> None:
        """Tell the user's code that the child begins. What a receiver raises is logged;
        `SystemExit` ends the child, which has run nothing yet."""
        self._stopping = stopping
        if self._own_process and worker_process_init.receivers:
            worker_process_init.send(None)

    def stop(self) -> None:
        """End the event loop of this child, and tell the user's code that it ends."""
        self._body.close()
        if self._own_process and worker_process_shutdown.receivers:
            worker_process_shutdown.tell(None, pid=os.getpid(), exitcode=0)

    def run(self, payload: bytes, report: Send, key: int) -> bytes:
        """Run a job and return the answer. Whatever the task raises is in the answer."""
        self._body.attempt = key
        fields = marshal.loads(payload)
        if type(fields) is list:
            from liteq import batch  # late: few tasks take many calls

            tell = partial(self._report_of_many, report)
            return _answers(batch.run(self._executor, _many(fields), tell, self._body))
        ended = self._executor.run(Delivery(*fields), partial(self._report, report), self._body)
        return marshal.dumps(outcome.encode(ended), _FORMAT)

    async def arun(self, payload: bytes, report: Send, key: int) -> bytes:
        """Run a job of an `async def` task on the running loop.

        Raises `CancelledError`, and gives no answer, if the current asyncio task is
        cancelled: that is how the pool ends a job.
        """
        self._body.attempt = key
        fields = marshal.loads(payload)
        if type(fields) is list:
            from liteq import batch  # late: few tasks take many calls

            tell = partial(self._report_of_many, report)
            return _answers(await batch.arun(self._executor, _many(fields), tell, self._body))
        ended = await self._executor.arun(
            Delivery(*fields), partial(self._report, report), self._body
        )
        return marshal.dumps(outcome.encode(ended), _FORMAT)

    def is_async(self, payload: bytes) -> bool:
        """Tell whether the job's task is an `async def`."""
        fields = marshal.loads(payload)
        if type(fields) is list:
            fields = marshal.loads(fields[0])
        return self._executor.is_async(fields[0][1])

    def interrupt(self, key: int) -> None:
        """Raise `SoftTimeLimitExceeded` inside the body of this job's task.

        If the body has yet to begin, it is raised at the beginning. At most once for a job;
        never in a hook that follows, nor in another job. In the thread that runs the job (a
        signal handler) this raises; another thread gets the exception at its next bytecode, a
        coroutine at its `await`.
        """
        self._body.interrupt(key)

    def _report(self, send: Send, said: Said) -> bool:
        """Send what a task says; tell whether that is a good place for its body to end. A hook
        after the body, and a body that is past its soft limit, are ending anyway."""
        send(marshal.dumps(tuple(said), _FORMAT))
        return type(said) is Rewrite and self._body.runs() and self._stopping()

    def _report_of_many(self, send: Send, place: int, said: Said) -> bool:
        """Send what is said of one call of many. None of them can leave the others' body."""
        send(marshal.dumps((place, marshal.dumps(tuple(said), _FORMAT)), _FORMAT))
        return False


def _many(jobs: list[bytes]) -> list[Delivery]:
    return [Delivery(*marshal.loads(one)) for one in jobs]


def _answers(outcomes: list[Outcome]) -> bytes:
    return marshal.dumps([outcome.encode(one) for one in outcomes], _FORMAT)


class RunnerFactory:
    """Makes the runners of a pool, which may be in other processes: it can be pickled.

    `load(*reference)` gives the tasks; it is called once in each process, by the first
    runner made there.
    """

    def __init__(
        self,
        load: Callable[..., Mapping[str, TaskLike]],
        reference: Sequence[Any] = (),
        settings: ExecutorSettings | None = None,
        *,
        own_process: bool = False,
    ) -> None:
        self.load = load
        self.reference = reference
        self.settings = settings or ExecutorSettings()
        self.own_process = own_process
        self._executor: Executor | None = None

    def __call__(self) -> TaskRunner:
        if self._executor is None:
            self._executor = Executor(self.load(*self.reference), self.settings)
        return TaskRunner(self._executor, own_process=self.own_process)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_executor": None}  # the other process makes its own
