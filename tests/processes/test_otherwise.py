"""Workers on a system that lacks what Linux alone has: `otherwise/sitecustomize.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from world import uncovered

HERE = Path(__file__).parent.parent

TASKS = """
import os, signal
from liteq import Liteq, chord

app = Liteq("other")

@app.task
def size(data):
    return len(data)

@app.task
def total(sizes):
    return sum(sizes)

@app.task(bind=True)
def die_once(self):
    if self.request.deliveries == 1:
        if os.fork() == 0:  # it keeps open what its parent had
            os.setsid()
            with open("copy", "w") as file:
                file.write(str(os.getpid()))
            signal.pause()
        while not os.path.exists("copy"):
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGKILL)
    return self.request.deliveries

if __name__ == "__main__":
    assert not hasattr(os, "pidfd_open")
    for n in (10, 3_000, 100_000, 1_000_000):
        assert size.delay("x" * n).get(timeout=20) == n
    sizes = [size.s("x" * n) for n in range(300)]
    assert chord(sizes, total.s()).delay().get(timeout=20) == 44_850
    assert die_once.delay().get(timeout=20) == 2
    with open("copy") as file:
        os.kill(int(file.read()), signal.SIGKILL)
    print("all is well")
"""


def test_a_worker_needs_nothing_that_only_linux_has(tmp_path: Path) -> None:
    folder = tmp_path / ("a folder with a long name " * 4)
    folder.mkdir()
    (folder / "tasks.py").write_text(TASKS)
    path = os.pathsep.join([str(HERE / "otherwise"), str(HERE.parent)])

    done = subprocess.run(
        [sys.executable, "-m", "liteq", "run", "tasks.py"],
        cwd=folder,
        env=uncovered() | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (0, "all is well\n"), done.stderr
