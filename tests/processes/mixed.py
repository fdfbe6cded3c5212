"""A storm over several versions of liteq at once, which share a store and upgrade it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from world import wait_until

from processes.calls import Call, Expected
from processes.gale import Gale
from processes.versions import ROOT

TESTS: Final = Path(__file__).parents[1]
ATTIC: Final = "attic"  # a queue that nobody consumes

MORE = """
import liteq
TREE = os.path.dirname(os.path.dirname(liteq.__file__))
SETTLED = os.open({settled!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
inner = app.broker.step

def counted(worker, **options):
    answer = inner(worker, **options)
    if any(answer.accepted):
        os.write(SETTLED, ("%d %s\\n" % (sum(answer.accepted), TREE)).encode())
    return answer

app.broker.step = counted
"""

FILL = """
import sys, time, apsw
from liteq import Liteq
from liteq.ids import new_id
from liteq.message import Message
url, count = sys.argv[1], int(sys.argv[2])
app = Liteq("storm", broker=url, set_as_current=False)
for _ in range(count // 1000):
    body = b"[[0, 0], {}]" + b" " * 200
    app.broker.enqueue(
        [Message(new_id(), "storm_app.work", body, "attic") for _ in range(1000)]
    )
app.close()
db = apsw.Connection(url.removeprefix("sqlite:///") + "/store.db")
db.execute("UPDATE message SET state = 8, settled_at = ? WHERE seq % 2 = 0", (time.time(),))
db.close()
"""


def environment(tree: Path, *more: Path) -> dict[str, str]:
    """Return the environment of a process that is to run the liteq of this tree."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tree, *more)))}
    if tree != ROOT:  # a copy has the bytecode of what it is a copy of beside it
        environ.pop("PYTHONPYCACHEPREFIX", None)
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return environ


class Sender:
    """A process that sends calls, and the sheet on which it says what it did."""

    def __init__(self, url: str, sheet: Path, tree: Path, seed: int, first: int, option: str):
        self.sheet = sheet
        self.tree = tree
        self.read = 0
        self.answered = False
        self.refused = False
        command = [sys.executable, str(TESTS / "processes" / "sender.py"), url, str(sheet)]
        with sheet.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, str(seed), str(first), option],
                env=environment(tree, TESTS),
                stdout=log,
                stderr=log,
            )

    def lines(self) -> list[list[Any]]:
        """Return what it has said since the last time."""
        text = self.sheet.read_text() if self.sheet.exists() else ""
        said = text[self.read : text.rfind("\n") + 1]
        self.read += len(said)
        return [json.loads(line) for line in said.splitlines()]


class Mixed(Gale):
    """A storm that the versions of these trees enter one after the other, and share.

    Workers of all versions that have entered take each other's place, forward and back. The
    calls with an option that only later versions know (`special`) may become dead letters:
    at the end, when all workers are of the last version, they get a fresh start.
    """

    def __init__(
        self, folder: Path, trees: Sequence[Path], *, seed: int, url: str | None = None
    ) -> None:
        self.trees = trees
        self.admitted: list[Path] = [trees[0]]
        self.url = url or f"sqlite:///{folder / 'store'}"
        self.senders: list[Sender] = []
        self.pending: dict[str, Call] = {}  # by sheet, what its sender is about to say
        self.special: dict[str, Expected] = {}
        self.special_calls: list[Call] = []
        self.waits: list[tuple[float, float]] = []  # how long a call took, and when (Unix)
        self.upgraded: list[tuple[float, float]] = []
        self.refused: list[tuple[Call, str]] = []  # with the reason
        self.stored = 0
        super().__init__(folder, workers=0, lease=2.0, seed=seed, url=url)
        with (folder / "storm_app.py").open("a") as source:
            source.write(MORE.replace("{settled!r}", repr(str(folder / "settled"))))

    # Versions

    def open(self, workers: int) -> None:
        """Let the first version begin."""
        self.places = [f"w{number}" for number in range(workers)]
        self.at_work = {name: self.start_worker(name) for name in self.places}
        self.start_sender(self.trees[0])

    def admit(self, tree: Path) -> None:
        """Let another version in, which upgrades the store under the others."""
        self._resume(all_of_them=True)
        self.admitted.append(tree)
        self.note(f"admit {tree.name}")
        began, sender = time.time(), self.start_sender(tree)
        wait_until(lambda: self.collect() or sender.answered, within=60)
        self.upgraded.append((began, time.time()))
        name = self.random.choice(self.places)
        self.kill_tree(self.at_work[name])
        self.at_work[name] = self.start_worker(name, tree=tree)

    def start_worker(
        self, name: str = "w", concurrency: int = 2, *, tree: Path | None = None, **_: Any
    ) -> subprocess.Popen[bytes]:
        tree = tree or self.random.choice(self.admitted)
        return super().start_worker(name, concurrency, env=environment(tree))

    def start_sender(self, tree: Path) -> Sender:
        number = len(self.senders) + 1
        sheet = self.folder / f"sent{number}"
        steps = self.trees.index(tree) - self.trees.index(ROOT)
        option = f"later{steps}" if steps > 0 else ""
        seed = self.random.randrange(1 << 30)
        sender = Sender(self.url, sheet, tree, seed, number * 10**7, option)
        self.senders.append(sender)
        return sender

    def fill(self, count: int) -> None:
        """Store so many messages in a queue of no worker, half of them ended."""
        command = [sys.executable, "-c", FILL, self.url, str(count)]
        subprocess.run(command, env=environment(self.trees[0]), check=True)
        self.stored = count

    def unfinished(self) -> int:
        counts = self.app.broker.counts()
        return sum(sum(by.values()) for queue, by in counts.items() if queue != ATTIC)

    # What happens

    def blow_over(self, seconds: float) -> None:
        """Let each version enter in its turn, with all that can befall them."""
        phase = seconds / len(self.trees)
        for tree in self.trees:
            if tree != self.trees[0]:
                self.admit(tree)
            self._phase(phase, here=self.admitted[-1] == ROOT or ROOT in self.admitted)

    def _phase(self, seconds: float, *, here: bool) -> None:
        deeds: dict[Callable[[], None], int] = {
            self._kill_child: 6,
            self._kill_worker: 4,
            self._end_worker: 2,
            self._kill_sender: 3,
        }
        if here:  # a process of this version may use the store
            deeds[self._stop_worker] = 3
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.random.choices(list(deeds), list(deeds.values()))[0]()
            self.repeat()
            self._resume()
            self._supervise()
            self.collect()
            if here:
                self.send()
                self._look()
            time.sleep(self.random.uniform(0.1, 0.5))  # paces the storm

    def _kill_sender(self) -> None:
        alive = [one for one in self.senders if one.process.poll() is None]
        if not alive:
            return
        sender = self.random.choice(alive)
        self.note("kill sender")
        sender.process.kill()
        sender.process.wait()
        self.start_sender(sender.tree)

    def _supervise(self) -> None:
        super()._supervise()
        for sender in self.senders:
            code = sender.process.poll()
            log = sender.sheet.with_suffix(".log").read_text()
            expected = code in (None, -signal.SIGKILL) or sender.refused
            assert expected, f"a sender ended with {code}\n{log}"

    def collect(self) -> None:
        """Read what the senders have said."""
        for sender in self.senders:
            key = sender.sheet.name
            for word, *rest in sender.lines():
                if word == "try":
                    kind, ids, expected = rest
                    self._expect(kind, ids, [Expected(*one) for one in expected])
                    self.pending[key] = Call(kind, tuple(ids), self._never)
                    continue
                call = self.pending.pop(key)
                if word == "ok":
                    if sender.answered:  # the first opens the store, and may upgrade it
                        self.waits.append((rest[0], rest[1]))
                    sender.answered = True
                    self.acknowledged.append(call)
                elif word == "refused":
                    self.refused.append((call, rest[0]))
                    sender.refused = True
                else:
                    self.unanswered.append(call)
            if sender.process.poll() is not None and key in self.pending:
                self.unanswered.append(self.pending.pop(key))

    def _expect(self, kind: str, ids: list[str], expected: list[Expected]) -> None:
        known = self.special if kind == "special call" else self.expected
        known.update(zip(ids, expected, strict=True))

    @staticmethod
    def _never() -> None:
        raise AssertionError("what another process has sent is not sent again")

    def stop_senders(self) -> None:
        for sender in self.senders:
            sender.process.kill()
            sender.process.wait()
        self.collect()

    def settle_down(self) -> Counter[str]:
        """Go on with the last version alone, until all is over; return the verdict."""
        self._resume(all_of_them=True)
        self.stop_senders()
        self.admitted = [self.trees[-1]]
        for name, worker in self.at_work.items():
            worker.terminate()
            worker.wait(30)
            self.at_work[name] = self.start_worker(name)
        self.calm()
        unread = self._redrive()
        self.calm()
        self.expected.update(self.special)
        verdict = self.judge()
        verdict["special calls"] = len(self.special)
        verdict["dead letters, redriven"] = unread
        if self.stored:
            kept = self.app.broker.counts()[ATTIC]["queued"]
            assert kept == self.stored / 2, f"{kept} of {self.stored / 2:g} in the attic"
        return verdict

    def _redrive(self) -> int:
        records = self.app.broker.get(list(self.special))
        dead = {id: record.dead for id, record in records.items() if record.dead is not None}
        for id, reason in dead.items():
            assert "unknown fields in the envelope: ['later" in reason, (id, reason)
        self.redriven = set(self.app.broker.redrive(dead))
        assert self.redriven == dead.keys()
        return len(dead)

    # The verdict

    def settled_by(self) -> Counter[str]:
        """Return how many settlements were accepted of each version."""
        counts: Counter[str] = Counter()
        for line in (self.folder / "settled").read_text().splitlines():
            number, tree = line.split(" ", 1)
            counts["this" if Path(tree) == ROOT else Path(tree).name] += int(number)
        return counts

    def longest_wait(self) -> float:
        """Return how long a call took at most while another version came in; 0.0 if there
        was none then."""
        waits = (
            took
            for took, end in self.waits
            for began, ready in self.upgraded
            if end - took < ready and end > began
        )
        return max(waits, default=0.0)

    def close(self) -> None:
        for sender in self.senders:
            sender.process.kill()
            sender.process.wait()
        super().close()
