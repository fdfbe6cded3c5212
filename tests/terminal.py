"""The command line as a user meets it, in a project of its own: for tests of its commands."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import liteq
import liteq.cli.root  # with click, of which there is to be one: see `Here.forget`
from liteq.cli import main
from liteq.current import apps
from liteq.discovery import find_app

TASKS = """
from liteq import Liteq

app = Liteq("shop")


@app.task
def add(x, y):
    return x + y


@app.task
def fail():
    raise ValueError("no stock")
"""
JOBS = TASKS.replace("shop", "jobs")
PATIENCE = 30  # seconds that a condition may take on a busy machine


class Project:
    """A folder with a tasks.py, and the command run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.behind: list[str] = []  # what a command is run behind
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("LITEQ_", "CELERY_"))
        }
        self.environ |= {"PYTHONPATH": str(Path(liteq.__file__).parents[1]), "NO_COLOR": "1"}
        self.write("tasks.py", TASKS)

    def write(self, name: str, text: str) -> Path:
        file = self.folder / name
        file.write_text(text)
        return file

    def __call__(
        self, *words: str, stdin: str = "", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.behind, sys.executable, "-m", "liteq", *words],
            cwd=self.folder,
            env=self.environ | environ,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a command with what a shell makes of the words behind it."""
        return self._run(["sh", "-c", f'exec "$0" -m liteq {line}', sys.executable])

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def ok(self, *words: str, **environ: str) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self(*words, **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def at_terminal(self, *words: str, **environ: str) -> str:
        """Run a command whose output is a terminal; return what it wrote there."""
        reading, writing = os.openpty()
        env = self.environ | {"COLUMNS": "160", "TERM": "xterm"} | environ
        env = {name: value for name, value in env.items() if value}
        try:
            with subprocess.Popen(
                [sys.executable, "-m", "liteq", *words],
                cwd=self.folder, env=env, stdin=writing, stdout=writing, stderr=writing,
            ):  # fmt: skip
                os.close(writing)
                text = b""
                while True:
                    try:
                        some = os.read(reading, 65_536)
                    except OSError:  # the end, at a terminal
                        break
                    if not some:
                        break
                    text += some
        finally:
            os.close(reading)
        return text.decode()

    def python(self, code: str) -> str:
        done = self._run([sys.executable, "-c", code])
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Running:
    """A command that goes on, and what it has written to stderr so far."""

    def __init__(self, project: Project, words: Sequence[str], **environ: str) -> None:
        self.process = subprocess.Popen(
            [*project.behind, sys.executable, "-m", "liteq", *words],
            cwd=project.folder,
            env=project.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()

    def wait_for(self, pattern: str) -> str:
        """Return the first line of stderr in which the pattern is found."""

        def found() -> str | None:
            return next((line for line in self.lines if re.search(pattern, line)), None)

        with self._more:
            line = self._more.wait_for(found, PATIENCE)
        assert line is not None, "\n".join(self.lines)
        return line

    def end(self, number: int | None = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code when the process has ended."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), "what outlived the command has its output open"
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


class Here:
    """The command in this process: much quicker, and enough where nothing is started."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd
        self.modules = set(sys.modules)

    def __call__(self, *words: str, stdin: str = "") -> Ended:
        self.forget()
        before, sys.stdin = sys.stdin, io.StringIO(stdin)
        try:
            status = main(words)
        finally:
            sys.stdin = before
        return Ended(status, *self.capfd.readouterr())

    def ok(self, *words: str) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def burst(self, module: str = "tasks") -> None:
        """Run what can be claimed: `liteq worker --burst` without its processes."""
        self.forget()
        find_app(module).app.run_until_empty()

    def forget(self) -> None:
        """Let the next command import the project anew, as a new process does."""
        for app in apps():
            app.close()
        for name in set(sys.modules) - self.modules:
            if not name.startswith("liteq"):
                del sys.modules[name]


@pytest.fixture
def here(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Here]:
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    for name in set(os.environ) - set(project.environ):
        monkeypatch.delenv(name)
    here = Here(capfd)
    yield here
    here.forget()


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have this process in another zone than UTC, where its app is."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def start(project: Project) -> Iterator[Callable[..., Running]]:
    """Start a command that goes on; it is killed at the end of the test."""
    running: list[Running] = []

    def start(*words: str, **environ: str) -> Running:
        running.append(Running(project, words, **environ))
        return running[-1]

    yield start
    for process in running:
        process.close()


def wait_until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)
    return value
