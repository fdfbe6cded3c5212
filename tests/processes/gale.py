"""A storm of every kind at once, over plain tasks and workflows, on any store.

While tasks, chains and chords (with failures, retries and replacements among them) are
sent, workers and their children are killed, stopped beyond their lease and resumed,
terminated, and the server they share is restarted. One seed decides it all. After the
storm comes a quiet time, then the verdict, from three sources:

- the *effect log*, to which each task appends when it starts, outside of the store;
- the *ledger*, to which each worker appends what its settlements were answered;
- the store itself, looked at again and again: what has ended must stay as it is.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liteq.brokers.base import FINAL_STATES, Record
from liteq.exceptions import BrokerUnavailable
from processes.calls import Call, Caller
from processes.storm import Storm

MORE_TASKS = """
@app.task(bind=True)
def fail(self, i, ms):
    note(i)
    time.sleep(ms / 1000)
    raise ValueError(i)

@app.task(bind=True, max_retries=3)
def flaky(self, i, ms):
    note(i)
    time.sleep(ms / 1000)
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return i * 2

@app.task(bind=True)
def become(self, i, ms):
    raise self.replace(work.si(i, ms))

@app.task
def collect(values, i):
    note(i)
    return values

@app.task(flush_every=4, flush_interval=0.3)
def batched(calls):
    for call in calls:
        note(call.args[0])
    time.sleep(max(call.args[1] for call in calls) / 1000)
    return [call.args[0] * 2 for call in calls]

@app.task
def alarm(i):
    note(i)
    return i * 2

LEDGER = os.open({ledger!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
step = app.broker.step

def recorded(worker, **options):
    answer = step(worker, **options)
    for (lease, outcome), accepted in zip(options.get("settlements", ()), answer.accepted):
        words = "accepted" if accepted else "refused", lease.id, lease.token
        os.write(LEDGER, ("%s %s %d " % words + type(outcome).__name__ + "\\n").encode())
    return answer

app.broker.step = recorded
"""

FINAL_OUTCOMES = {"Succeeded", "Failed", "Ignored", "Revoked"}


class Gale(Storm):
    """A storm that records what it did and what became of it."""

    def __init__(self, folder: Path, *, workers: int = 3, **options: Any) -> None:
        super().__init__(folder, **options)
        self.seed = options.get("seed", 0)
        self.ledger = folder / "ledger"
        source = (folder / "storm_app.py").read_text()
        source += MORE_TASKS.replace("{ledger!r}", repr(str(self.ledger)))
        (folder / "storm_app.py").write_text(source)
        self.app.conf.task_publish_retry = False  # it repeats what was not answered itself
        self.caller = Caller(self.app, self.random, batches=True)
        self.expected = self.caller.expected
        self.acknowledged: list[Call] = []
        self.unanswered: list[Call] = []
        self.to_repeat: list[Call] = []
        self.seen: dict[str, Record] = {}
        self.changed: list[str] = []
        self.redriven: set[str] = set()  # dead letters that were given a fresh start
        self.places = [f"w{n}" for n in range(workers)]
        self.at_work = {name: self.start_worker(name) for name in self.places}
        self.asleep: dict[str, tuple[float, list[int]]] = {}  # when to resume whom

    # What is sent

    def send(self) -> None:
        """Send one call, of a random kind."""
        self._send(self.caller.any())

    def send_one(self, ms: int | None = None) -> None:
        """Send a plain call."""
        self._send(self.caller.one(ms))

    def _send(self, call: Call) -> None:
        self._resume()  # or one that was stopped in a transaction would hold up each call
        try:
            call.send()
        except BrokerUnavailable:
            self.note(f"unanswered {call.kind} {call.ids[-1]}")
            # It is there, or it is not: half of them are sent again, which is safe.
            again = self.random.random() < 0.5
            (self.to_repeat if again else self.unanswered).append(call)
        else:
            self.acknowledged.append(call)

    def repeat(self) -> None:
        """Send again what was not answered, as long as there are answers. (A worker that
        was stopped in the middle of a transaction keeps a store from writing.)"""
        while self.to_repeat:
            try:
                self.to_repeat[-1].send()
            except BrokerUnavailable:  # it has waited by itself
                return
            self.acknowledged.append(self.to_repeat.pop())

    # What happens

    def note(self, text: str) -> None:
        self.actions.append(f"{time.time():.3f} {text}")

    def blow(self, seconds: float, *, restart: Callable[[], None] | None = None) -> None:
        """Do one thing after another until the time is over; then let all come to rest."""
        end = time.monotonic() + seconds
        deeds: dict[Callable[[], None], int] = {
            self._kill_child: 6,
            self._kill_worker: 3,
            self._stop_worker: 5,
            self._end_worker: 2,
        }
        if restart is not None:
            deeds[restart] = 2
        while time.monotonic() < end:
            for _ in range(self.random.randint(1, 6)):
                self.send()
            self.random.choices(list(deeds), list(deeds.values()))[0]()
            self.repeat()
            self._resume()
            self._supervise()
            self._look()
            time.sleep(self.random.uniform(0.1, 0.5))  # paces the storm

    def _awake(self) -> list[str]:
        return [name for name in self.places if name not in self.asleep]

    def _kill_child(self) -> None:
        name = self.random.choice(self.places)
        if children := self.children(self.at_work[name]):
            self.signal(self.random.choice(children), signal.SIGKILL)

    def _kill_worker(self) -> None:
        name = self.random.choice(self.places)
        self.asleep.pop(name, None)
        self.kill_tree(self.at_work[name])
        self.at_work[name] = self.start_worker(name)

    def _stop_worker(self) -> None:
        awake = self._awake()
        if len(awake) < 2:
            return  # one is left to take over
        for _ in range(2 * len(awake)):  # something for it to hold
            self.send_one(ms=300)
        time.sleep(0.15)  # paces the storm
        name = self.random.choice(awake)
        worker = self.at_work[name]
        pids = [worker.pid, *self.children(worker)]
        for pid in pids:
            self.signal(pid, signal.SIGSTOP)
        resume_at = time.monotonic() + self.lease * self.random.uniform(1.0, 3.5)
        self.asleep[name] = (resume_at, pids)

    def _resume(self, *, all_of_them: bool = False) -> None:
        for name, (resume_at, pids) in list(self.asleep.items()):
            if all_of_them or time.monotonic() > resume_at:
                del self.asleep[name]
                self.random.shuffle(pids)
                for pid in pids:
                    self.signal(pid, signal.SIGCONT)

    def _end_worker(self) -> None:
        awake = self._awake()
        if not awake:
            return
        name = self.random.choice(awake)
        worker = self.at_work[name]
        self.signal(worker.pid, signal.SIGTERM)
        worker.wait(20)
        self.at_work[name] = self.start_worker(name)

    def _supervise(self) -> None:
        """Start those again that ended by themselves: who finds no server at its start."""
        for name, worker in self.at_work.items():
            if worker.poll() is not None:
                self.note(f"ended {name} with {worker.returncode}")
                self.asleep.pop(name, None)
                self.at_work[name] = self.start_worker(name)

    def _look(self) -> None:
        """Compare some calls with what they were when they were first seen at an end."""
        ids = list(self.expected)
        try:
            records = self.app.broker.get(self.random.sample(ids, min(60, len(ids))))
        except BrokerUnavailable:
            return
        self._remember(records)

    def _remember(self, records: dict[str, Record]) -> None:
        for id, record in records.items():
            if record.state not in FINAL_STATES:
                if id in self.seen:
                    self.changed.append(id)
                continue
            first = self.seen.setdefault(id, record)
            if first != record:
                self.changed.append(id)

    def calm(self, within: float = 120.0) -> None:
        """Resume all workers, and return when nothing is left to do."""
        self._resume(all_of_them=True)
        end = time.monotonic() + within
        while self.to_repeat or self.unfinished():
            self.repeat()
            self._supervise()
            if time.monotonic() > end:
                raise AssertionError(f"not over after {within:g} s of calm\n{self.story()}")
            time.sleep(0.05)

    # The verdict

    def judge(self) -> Counter[str]:
        """Return what became of all, in the words of the trade; raise if it is wrong."""
        broker = self.app.broker
        records = broker.get(list(self.expected))
        self._remember(records)
        verdict = Counter({f"calls of kind {k}": n for k, n in self._kinds().items()})
        verdict["attempted"] = len(self.expected)
        verdict["workflows"] = sum(len(c.ids) > 1 for c in self.acknowledged)
        due = [id for call in self.acknowledged for id in call.ids]
        for call in self.unanswered:
            there = [id for id in call.ids if id in records]
            verdict["recovered"] += len(there)
            verdict["half sent"] += 0 < len(there) < len(call.ids)
            due += there
        verdict["acknowledged"] = sum(len(call.ids) for call in self.acknowledged)
        started = Counter(effect.number for effect in self.effects())
        for id in due:
            self._compare(id, records.get(id), started, verdict)
        verdict["starts"] = sum(started.values())
        known = {self.expected[id].number for id in due}
        verdict["unexpected"] += len(started.keys() - known)
        accepted, verdict["refused"] = self._settled()
        verdict["double-settled"] = sum(
            len(tokens) > 1 + (id in self.redriven) for id, tokens in accepted.items()
        )
        verdict["changed after their end"] = len(self.changed)
        running = [flow for flow in broker.workflows(100_000) if flow.state == "running"]
        verdict["workflows without an end"] = len(running)
        for bad in (
            "lost",
            "unexpected",
            "double-settled",
            "half sent",
            "changed after their end",
            "workflows without an end",
        ):
            assert not verdict[bad], f"{bad}: {verdict[bad]}\n{self.story(verdict)}"
        assert verdict["ok"] == len(due), self.story(verdict)
        return verdict

    def _kinds(self) -> Counter[str]:
        return Counter(call.kind for call in self.acknowledged)

    def _compare(
        self, id: str, record: Record | None, started: Counter[int], verdict: Counter[str]
    ) -> None:
        expected = self.expected[id]
        assert expected.number is not None
        starts = started[expected.number]
        if record is None or record.state not in FINAL_STATES:
            verdict["lost"] += 1
            self.note(f"lost {id}: {record and record.state}")
            return
        value = json.loads(record.result or b"null") if record.state == "succeeded" else None
        right = record.state == expected.state and (starts > 0) == expected.runs
        if right and (record.state != "succeeded" or value == expected.value):
            verdict["ok"] += 1
        else:
            verdict["unexpected"] += 1
            self.note(f"unexpected {id}: {record.state} {value}, {expected}, {starts} starts")

    def _settled(self) -> tuple[dict[str, set[str]], int]:
        """Return by id the leases whose final outcome was accepted, and how many were
        refused."""
        accepted: dict[str, set[str]] = {}
        refused = 0
        text = self.ledger.read_text() if self.ledger.exists() else ""
        for line in text.splitlines():
            answer, id, token, outcome = line.split()
            if answer == "refused":
                refused += 1
            elif outcome in FINAL_OUTCOMES:
                accepted.setdefault(id, set()).add(token)
        return accepted, refused

    def deeds(self) -> dict[str, int]:
        """Return what was done, and how often."""
        return dict(Counter(action.split()[1] for action in self.actions))

    def story(self, verdict: Counter[str] | None = None) -> str:
        """Return all that is needed to see what happened: seed, verdict, deeds, logs."""
        log = self.folder / "actions.log"
        log.write_text("\n".join(self.actions))
        tail = "\n".join(self.actions[-60:])
        logs = "\n".join(self.log_of(name)[-2000:] for name in self.places)
        return f"seed {self.seed}\n{dict(verdict or {})}\n{tail}\n(all in {log})\n{logs}"
