from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, signal
from typing import Any

import pytest
import redis_server
from api import app_in_memory, forget_current
from world import wait_until

from liteq import Liteq, Task, current_app, current_task
from liteq.exceptions import ImproperlyConfigured
from liteq.signals import task_postrun, task_prerun, worker_init, worker_ready

SCRIPT = """
import os, sys
from dataclasses import dataclass
from liteq import Liteq

app = Liteq("shop", broker_transport_options={"durability": "normal"})
FACTOR = 10

def scaled(n):
    return n * FACTOR

@app.task
def work(n):
    return scaled(n), os.getpid()

@app.task(bind=True)
def outer(self, n):
    return work.delay(n).id

@app.task
async def later(n):
    return n + 1

if __name__ == "__main__":
    with app.worker(concurrency=1, pool="prefork"):
        value, pid = work.delay(4).get(timeout=20)
        assert pid != os.getpid()
        inner = app.AsyncResult(outer.delay(5).get(timeout=20)).get(timeout=20)[0]
        print(value, inner, later.delay(1).get(timeout=20), work.name)
"""


@pytest.fixture
def app() -> Iterator[Liteq]:
    with app_in_memory() as app:
        yield app


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_a_worker_runs_tasks_in_the_program_itself(app: Liteq, pool: str) -> None:
    @app.task
    def pid() -> int:
        return os.getpid()

    @app.task
    async def twice(n: int) -> int:
        return n * 2

    with app.worker(pool=pool):
        assert pid.delay().get(timeout=20) == os.getpid()
        assert twice.delay(4).get(timeout=20) == 8

    assert app.broker.workers() == []


@pytest.mark.parametrize("pool", ["threads", "asyncio", "solo"])
def test_each_worker_of_a_program_has_its_own_app(app: Liteq, pool: str) -> None:
    told: list[tuple[str, str]] = []

    def tell(signal: Any = None, **_: Any) -> None:
        told.append((signal.name, current_app.main))

    @app.task
    def look() -> tuple[str, str]:
        return current_app.main, current_task.app.main

    @app.task
    async def alook() -> tuple[str, str]:
        return current_app.main, current_task.app.main

    with Liteq("other", broker="memory://"):
        for signal in (heard := (worker_ready, task_prerun, task_postrun)):
            signal.connect(tell)
        try:
            with app.worker(pool=pool):
                seen = [one.delay().get(timeout=20) for one in (look, alook)]
        finally:
            for signal in heard:
                signal.disconnect(tell)
        assert current_app.main == "other"

    assert seen == [("shop", "shop")] * 2
    assert set(told) == {(signal.name, "shop") for signal in heard}


def test_a_worker_in_the_program_learns_that_one_task_is_there_for_another(app: Liteq) -> None:
    @app.task
    def before() -> str:
        return "before"

    with app.worker():
        assert before.delay().get(timeout=20) == "before"
        app.tasks.unregister(before)

        @app.task
        def after() -> str:
            return "after"

        assert after.delay().get(timeout=20) == "after"


def test_what_runs_is_finished_before_the_worker_stops(app: Liteq) -> None:
    @app.task
    def work(n: int) -> int:
        return n

    with app.worker():
        result = work.delay(1)
        result.get(timeout=20)

    assert work.delay(2).detail == "queued"


def test_tasks_are_run_here_until_none_is_left(app: Liteq) -> None:
    @app.task
    def work(n: int) -> int:
        if n:
            work.delay(n - 1)
        return n

    results = [work.delay(3), work.apply_async((1,), countdown=60)]

    assert app.run_until_empty() == 4
    assert [result.detail for result in results] == ["succeeded", "scheduled"]


class Interrupting(Task[Any, Any]):
    """Its first call is interrupted from the terminal: by hooks, receivers or the task."""

    at = ""
    calls = 0

    def interrupt(self, here: str) -> None:
        if here == self.at and not self.calls:
            type(self).calls += 1
            os.kill(os.getpid(), SIGINT)

    def before_start(self, *args: Any) -> None:
        self.interrupt("before_start")

    def on_success(self, *args: Any) -> None:
        self.interrupt("on_success")

    def after_return(self, *args: Any) -> None:
        self.interrupt("after_return")


@pytest.mark.parametrize(
    "at",
    ["before_start", "body", "coroutine", "on_success", "after_return", "prerun", "postrun"],
)
def test_ctrl_c_ends_what_runs_here_and_nothing_is_lost(app: Liteq, at: str) -> None:
    class Base(Interrupting): ...

    Base.at = at

    @app.task(bind=True, base=Base)
    def work(self: Any) -> int:
        self.interrupt("body")
        return self.request.delivery_info["redelivered"]

    @app.task(bind=True, base=Base, name="later")
    async def later(self: Any) -> int:
        self.interrupt("coroutine")
        return self.request.delivery_info["redelivered"]

    def before(sender: Any, **_: Any) -> None:
        sender.interrupt("prerun")

    def after(sender: Any, **_: Any) -> None:
        sender.interrupt("postrun")

    task_prerun.connect(before)
    task_postrun.connect(after)
    task = later if at == "coroutine" else work
    results = [task.delay(), task.delay()]

    with pytest.raises(KeyboardInterrupt):
        app.run_until_empty()
    found = [(result.state, result.attempts) for result in results]
    assert app.run_until_empty() == 2

    assert found == [("PENDING", [])] * 2
    assert [result.get(timeout=20) for result in results] == [False, False]


def test_a_worker_that_cannot_start_says_so(app: Liteq) -> None:
    with pytest.raises(ImproperlyConfigured, match="in memory"), app.worker(pool="prefork"):
        pass
    with pytest.raises(ImproperlyConfigured), app.worker(pool="no such pool"):
        pass


@pytest.mark.traced
@pytest.mark.process
def test_functions_of_a_script_run_in_processes_of_their_own(tmp_path: Path) -> None:
    script = tmp_path / "prog.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parent.parent

    done = subprocess.run(
        [sys.executable, str(script)],
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["40", "50", "2", "prog.work"]


@pytest.mark.traced
@pytest.mark.process
def test_an_app_of_a_module_is_imported_by_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop_mod.py").write_text(
        "import os\nfrom liteq import Liteq\n"
        "app = Liteq('shop', broker_transport_options={'durability': 'normal'})\n"
        "@app.task\ndef pid(): return os.getpid()\n"
    )
    (tmp_path / "shop_more.py").write_text(
        "from shop_mod import app\n"
        "@app.task\ndef limits(): return app.conf.task_time_limit, app.conf.timezone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import shop_mod  # type: ignore[import-not-found]

    try:
        assert shop_mod.app.reference() == "shop_mod:app"
        shop_mod.app.conf.imports = ("shop_more",)  # what is set later goes with it
        shop_mod.app.conf.task_time_limit = 33
        shop_mod.app.conf.task_routes = lambda name, *_, **__: None
        with shop_mod.app.worker(concurrency=1, pool="prefork"):
            assert shop_mod.pid.delay().get(timeout=20) != os.getpid()
            limits = shop_mod.app.send_task("shop_more.limits").get(timeout=20)
            assert tuple(limits) == (33, shop_mod.app.conf.timezone)
    finally:
        shop_mod.app.close()
        del sys.modules["shop_mod"]
        forget_current()


OWNER = """
import ctypes, os, signal, sys
from liteq import Liteq

app = Liteq("shop", broker_transport_options={"durability": "normal"})
app.conf.worker_shutdown_timeout = 0

# uwsgi, say, forks in C, where Python is told nothing.
forks = {"Python": os.fork, "C": ctypes.PyDLL(None).fork}


def live_on(fork):
    forked = fork()
    if forked == 0:
        while True:
            signal.pause()
    return forked


@app.task
def work():
    pass


if __name__ == "__main__":
    with app.worker(concurrency=1, pool="prefork") as worker:
        forked = live_on(forks[sys.argv[1]])
        if len(sys.argv) > 2:
            print(forked, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        child = os.fork()
        if child == 0:
            sys.exit()  # leaves the context, too
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert work.delay().get(timeout=20) is None
    os.kill(forked, signal.SIGKILL)
    print(worker.returncode)
"""


def owner(tmp_path: Path, *words: str) -> str:
    """Run a program that owns a worker process, and has forked one that lives on; return what
    it said. That goes to a file: the end of a pipe would come with that of the other."""
    script = tmp_path / "prog.py"
    script.write_text(OWNER)
    root = Path(__file__).parent.parent
    with open(tmp_path / "said", "w+") as said:
        subprocess.run(
            [sys.executable, str(script), *words],
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=said,
            check=False,
        )
        said.seek(0)
        return said.read()


@pytest.mark.process
@pytest.mark.parametrize("language", ["Python", "C"])
def test_a_worker_process_stops_though_a_process_that_was_forked_lives_on(
    language: str, tmp_path: Path
) -> None:
    assert owner(tmp_path, language) == "0\n"


@pytest.mark.process
def test_a_worker_process_ends_with_its_owner_though_what_that_forked_lives_on(
    tmp_path: Path,
) -> None:
    forked = int(owner(tmp_path, "Python", "and die"))

    try:
        with Liteq("shop", broker=f"sqlite:///{tmp_path}/shop.liteq") as app:
            wait_until(lambda: not app.broker.workers(), 20)
    finally:
        os.kill(forked, SIGKILL)
        forget_current()


def test_a_worker_that_is_interrupted_at_its_start_ends(app: Liteq) -> None:
    held = threading.Event()

    def begin(**_: Any) -> None:
        os.kill(os.getpid(), SIGINT)
        held.wait(20)

    def release(signum: int, frame: Any) -> None:
        held.set()
        raise KeyboardInterrupt

    worker_init.connect(begin)
    before = signal(SIGINT, release)
    try:
        with pytest.raises(KeyboardInterrupt), app.worker():
            pytest.fail("it was entered")
    finally:
        signal(SIGINT, before)
        worker_init.disconnect(begin)

    assert app.broker.workers() == []
    assert not [each for each in threading.enumerate() if each.name == "liteq-worker"]


INTERRUPTED = """
import os, signal, threading
from liteq import Liteq

app = Liteq("shop", broker_transport_options={"durability": "normal"})


@app.task
def work():
    return "done"


@app.task
def wait():
    threading.Event().wait()


def interrupt():  # as a terminal does, and Jupyter
    try:
        os.killpg(0, signal.SIGINT)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
"""
CAUGHT = """
if __name__ == "__main__":
    with app.worker(concurrency=1, pool="prefork") as worker:
        for _ in range(2):
            interrupt()
            print(work.delay().get(timeout=20), worker.poll())
    print(worker.returncode)
"""
AT_START = """
if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: print("interrupted"))
    with app.worker(concurrency=1, pool="prefork"):
        print(work.delay().get(timeout=20))
"""
AGAIN = """
app.conf.worker_shutdown_timeout = 600

if __name__ == "__main__":
    with app.worker(concurrency=1, pool="prefork"):
        try:
            result = wait.delay()
            while result.detail != "running":
                threading.Event().wait(0.02)
            raise KeyboardInterrupt
        finally:
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.5)
"""


def interrupted(tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "prog.py").write_text(INTERRUPTED + program)
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, "prog.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
        check=False,
    )


@pytest.mark.process
def test_a_worker_process_outlives_an_interrupt_that_the_program_catches(
    tmp_path: Path,
) -> None:
    done = interrupted(tmp_path, CAUGHT)

    assert done.stdout.splitlines() == ["done None", "done None", "0"], done.stderr


@pytest.mark.process
def test_a_worker_process_that_starts_outlives_an_interrupt(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if 'liteq.embedded' in ' '.join(sys.orig_argv): os.killpg(0, signal.SIGINT)\n"
    )

    done = interrupted(tmp_path, AT_START)

    assert done.stdout.splitlines() == ["interrupted", "done"], done.stderr


@pytest.mark.process
def test_one_more_interrupt_has_given_back_what_the_end_of_the_block_waits_for(
    tmp_path: Path,
) -> None:
    done = interrupted(tmp_path, AGAIN)

    assert done.returncode == -SIGINT, done.stderr
    with Liteq("shop", broker=f"sqlite:///{tmp_path}/shop.liteq") as app:
        assert app.broker.workers() == []
        assert list(app.broker.counts().values()) == [{"queued": 1}]
    forget_current()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("kind", ["sqlite", "memory", "redis"])
def test_a_closed_app_leaves_no_file_open(kind: str, tmp_path: Path) -> None:
    def files() -> set[tuple[str, str]]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the one that lists them
                found.add((name, os.readlink(f"/proc/self/fd/{name}")))
        return {one for one in found if ".so" not in one[1]}  # libffi keeps itself open

    match kind:
        case "sqlite":
            url = f"sqlite:///{tmp_path}/{'long' * 30}/store"  # beyond a socket's address
        case "memory":
            url = "memory://"
        case _:
            redis_server.require()
            url = f"{redis_server.shared()}&namespace={redis_server.namespace_of(tmp_path)}"
    app = Liteq("shop", broker=url)

    @app.task
    def double(n: int) -> int:
        return 2 * n

    gc.collect()
    before = files()
    with app.worker(concurrency=2, pool="threads"):
        assert double.delay(2).get(timeout=10) == 4
    app.close()
    assert not files() - before
    with app.worker(concurrency=1, pool="solo"):  # it may be used again
        assert double.delay(3).get(timeout=10) == 6
    app.close()
    assert not files() - before


def test_the_name_of_one_queue_is_no_list_of_letters(tmp_path: Path) -> None:
    with (
        Liteq("shop", broker=f"sqlite://{tmp_path}/s", set_as_current=False) as app,
        app.worker(queues="mail", concurrency=1),
    ):
        assert [list(one.queues) for one in app.broker.workers()] == [["mail"]]
