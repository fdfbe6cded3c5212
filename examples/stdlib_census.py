"""The demo: parse every module of Python's standard library in parallel processes.

Run:  make demo        (or: python examples/stdlib_census.py)

One message per module. On the way, one of the processes is killed with SIGKILL, as the
kernel does when memory runs out. At the end stand what was found, and the proof that no
module was lost and none was counted twice: the sums of the tasks are compared with a count
made without any task.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from liteq import Liteq

app = Liteq("census")
LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
BRANCHES = (
    ast.If | ast.For | ast.While | ast.IfExp | ast.ExceptHandler | ast.With | ast.BoolOp
    | ast.comprehension | ast.Assert | ast.match_case
)  # fmt: skip
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


# The task


@app.task(bind=True)
def survey(self, module: str) -> dict:
    """Parse one module and return what is in it."""
    self.update_state(state="PARSING", meta={"module": module, "pid": os.getpid()})
    source = (LIBRARY / module).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in string literals
        tree = ast.parse(source, module)
    found: Counter[str] = Counter(lines=source.count(b"\n"))
    imports: set[str] = set()
    functions = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                branches = sum(isinstance(inner, BRANCHES) for inner in ast.walk(node))
                length = node.end_lineno - node.lineno + 1
                functions.append((length, branches, f"{module}: {node.name}"))
                found["async functions"] += isinstance(node, ast.AsyncFunctionDef)
                found["functions with a docstring"] += ast.get_docstring(node) is not None
            case ast.ClassDef():
                found["classes"] += 1
            case ast.Import(names=names):
                imports.update(name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(name), level=0):
                imports.add(name.partition(".")[0])
    found["functions"] = len(functions)
    return {
        "found": found,
        "imports": sorted(imports),
        "longest": max(functions, default=(0, 0, "")),
        "most branches": max(functions, key=lambda each: each[1], default=(0, 0, "")),
    }


# The program that sends the messages, watches, and kills


def main() -> int:
    options = argparse.ArgumentParser(description="A census of Python's standard library.")
    options.add_argument("-c", "--concurrency", type=int, default=max(2, os.cpu_count() or 2))
    options.add_argument("--modules", type=int, help="survey the N largest modules only")
    chosen = options.parse_args()
    screen = Screen()
    sizes = library(chosen.modules)
    direct = sum((LIBRARY / module).read_bytes().count(b"\n") for module in sizes)
    screen.title(f"A census of the standard library of Python {sys.version.split()[0]}")
    screen.say(
        f"{len(sizes):,} modules, {sum(sizes.values()) / 1e6:.1f} MB; "
        f"{chosen.concurrency} processes; no server, one SQLite file"
    )
    folder = tempfile.mkdtemp(prefix="census-")
    app.conf.broker_url = f"sqlite://{folder}/census.liteq"
    worker = start_worker(folder, chosen.concurrency)
    try:
        begun = time.perf_counter()
        results = {module: survey.delay(module) for module in sizes}
        screen.say(f"sent in {time.perf_counter() - begun:.2f} s, each one on disk\n")
        victim = watch(screen, len(results), worker, sizes)
        took = time.perf_counter() - begun
        values = {module: result.get(timeout=60) for module, result in results.items()}
        report(screen, values)
        proven = prove(screen, results, values, victim, direct)
        worker.terminate()
        code = worker.wait(30)
        screen.say(f"\n{took:.1f} s from the first message to the last result; "
                   f"the worker stopped with exit code {code}.")  # fmt: skip
        return 0 if proven and code == 0 else 1
    finally:
        worker.kill()
        worker.wait()
        app.close()
        shutil.rmtree(folder, ignore_errors=True)


def library(largest: int | None) -> dict[str, int]:
    """Return the size of each module, by its path in the library."""
    sizes = {}
    for folder, below, files in os.walk(LIBRARY):
        below[:] = sorted(set(below) - LEFT_OUT)
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix == ".py" and path.is_file():  # not a link to what is absent
                sizes[str(path.relative_to(LIBRARY))] = path.stat().st_size
    kept = sorted(sizes, key=sizes.__getitem__, reverse=True)[:largest]
    return {module: sizes[module] for module in sorted(kept)}


def start_worker(folder: str, concurrency: int) -> subprocess.Popen:
    """Start what a deployment would start: `liteq worker`."""
    command = [sys.executable, "-m", "liteq", "-A", __file__, "-b", app.conf.broker_url]
    command += ["worker", "--quiet", "-c", str(concurrency), "-f", f"{folder}/worker.log"]
    return subprocess.Popen(command)


def watch(screen: Screen, total: int, worker: subprocess.Popen, sizes: dict[str, int]) -> str:
    """Show the progress until nothing is left. Return the module whose process was killed."""
    victim, shown = "", -1
    begun = time.perf_counter()
    while True:
        states = app.broker.counts().get("default", {})
        done = total - sum(states.values())
        if not victim and done >= total * 0.3:
            victim = kill_one(screen, sizes)
        shown = screen.progress(done, total, shown, time.perf_counter() - begun)
        if done == total:
            return victim
        if worker.poll() is not None:
            raise SystemExit(f"\nthe worker ended with exit code {worker.returncode}")
        time.sleep(0.05)


def kill_one(screen: Screen, sizes: dict[str, int]) -> str:
    """Kill a process in the middle of a module; "" if none was busy long enough."""
    for module, pid in parsing():
        if sizes[module] < 30_000:
            continue
        os.kill(pid, signal.SIGSTOP)  # hold it, and look again: is it still at this one?
        time.sleep(0.3)
        if (module, pid) in parsing():
            os.kill(pid, signal.SIGKILL)
            screen.event(f"killed process {pid} with SIGKILL while it parsed {module}")
            return module
        os.kill(pid, signal.SIGCONT)
    return ""


def parsing() -> list[tuple[str, int]]:
    """Return which module each process is at, as the store knows it."""
    notes = [json.loads(r.note.meta) for r in app.broker.browse("running") if r.note]
    return [(note["module"], note["pid"]) for note in notes]


# What is printed at the end


def report(screen: Screen, values: dict[str, dict]) -> None:
    found: Counter[str] = Counter()
    imports: Counter[str] = Counter()
    for value in values.values():
        found.update(value["found"])
        imports.update(value["imports"])
    length, _, longest = max(value["longest"] for value in values.values())
    most = [value["most branches"] for value in values.values()]
    _, branches, branchy = max(most, key=lambda each: each[1])
    documented = found["functions with a docstring"] / max(1, found["functions"])
    screen.title("What was found")
    screen.row("lines", f"{found['lines']:,}")
    rest = f"{found['async functions']:,} async, {documented:.0%} with a docstring"
    screen.row("functions", f"{found['functions']:,}", rest)
    screen.row("classes", f"{found['classes']:,}")
    screen.row("longest function", f"{length:,}", f"lines, {longest}")
    screen.row("most branches", f"{branches:,}", branchy)
    top = imports.most_common(7)
    for position, (name, count) in enumerate(top):
        bar = screen.bar(count / top[0][1], 24)
        screen.row("" if position else "most imported", f"{count:,}", f"{bar} {name}")


def prove(screen: Screen, results, values, victim: str, direct: int) -> bool:
    """Compare what was sent, what the store recorded, and what a direct count says."""
    records = app.broker.get([result.id for result in results.values()])
    sent, outcomes = len(results), len(records)
    succeeded = sum(record.state == "succeeded" for record in records.values())
    again = [module for module, r in results.items() if records[r.id].deliveries > 1]
    lines = sum(value["found"]["lines"] for value in values.values())
    left = sum(sum(states.values()) for states in app.broker.counts().values())
    screen.title("What became of the messages")
    checks = [
        screen.check("sent", f"{sent:,}", "", holds=True),
        screen.check("outcomes", f"{outcomes:,}", f"one for each, {succeeded:,} succeeded",
                     holds=succeeded == outcomes == sent),
        screen.check("still in a queue", f"{left:,}", "", holds=left == 0),
        screen.check("delivered again", f"{len(again):,}", ", ".join(again),
                     holds=again == ([victim] if victim else [])),
        screen.check("lines, by the tasks", f"{lines:,}", "", holds=True),
        screen.check("lines, counted here", f"{direct:,}", "without any task",
                     holds=lines == direct),
    ]  # fmt: skip
    for attempt in results[victim].attempts if victim else []:
        later = records[results[victim].id].started_at - attempt.ended_at.timestamp()
        screen.say(f"    attempt {attempt.number}: {attempt.outcome}, {attempt.exception}; "
                   f"started again {later * 1000:.0f} ms later")  # fmt: skip
    if all(checks):
        screen.say(screen.paint("32", "\n  Nothing was lost, and nothing was counted twice."))
        return True
    screen.say(screen.paint("31", "\n  This does not add up: please report it."))
    return False


class Screen:
    """Calm output: colours and a live line on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.coloured = self.live and not os.environ.get("NO_COLOR")
        fancy = (sys.stdout.encoding or "").lower().startswith("utf")
        self.full, self.empty = ("━", "─") if fancy else ("#", ".")
        self.good, self.bad, self.cross = ("✓", "✗", "✗") if fancy else ("ok", "NO", "x")

    def paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.coloured and text else text

    def say(self, text: str) -> None:
        print(text if text.startswith((" ", "\n", "\x1b")) else f"  {text}", flush=True)

    def title(self, text: str) -> None:
        print(f"\n{self.paint('1', text)}", flush=True)

    def row(self, name: str, value: str, rest: str = "") -> None:
        print(f"  {name:<20}{value:>9}  {self.paint('2', rest)}".rstrip())

    def check(self, name: str, value: str, rest: str, *, holds: bool) -> bool:
        mark = self.paint("32", self.good) if holds else self.paint("31", self.bad)
        print(f"{mark:>1} {name:<20}{value:>9}  {self.paint('2', rest)}".rstrip())
        return holds

    def bar(self, part: float, width: int) -> str:
        full = max(1, round(part * width))
        return self.full * full + " " * (width - full)

    def event(self, text: str) -> None:
        """Say what happened, above the live line."""
        start = "\r\x1b[2K" if self.live else ""
        print(f"{start}  {self.paint('31', self.cross)} {text}", flush=True)

    def progress(self, done: int, total: int, shown: int, seconds: float) -> int:
        """Show how far it is: a live line, or a line for every tenth. Return what is shown."""
        part = done / total
        text = f"{int(part * 100):3}%  {done:,} of {total:,} modules  {seconds:.1f} s"
        if self.live:
            full = round(part * 30)
            bar = self.paint("36", self.full * full) + self.paint("2", self.empty * (30 - full))
            print(f"\r\x1b[2K  {bar} {text}", end="\n" if done == total else "", flush=True)
        elif (tenth := int(part * 10)) > shown:
            shown = tenth
            print(f"  {text}", flush=True)
        return shown


if __name__ == "__main__":
    sys.exit(main())
