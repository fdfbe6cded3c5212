"""`liteq watch`: follow one task to its end."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from liteq.cli.exits import Exit
from liteq.cli.front import Seconds, command, completing
from liteq.cli.output import STATE_COLOURS, json_text, moment, shown, span
from liteq.cli.session import Session
from liteq.cli.streams import say

if TYPE_CHECKING:
    from liteq.app import Liteq
    from liteq.brokers.values import Record

__all__ = ["watch"]

_WIDTH: Final = 30  # characters of the bar
_SPINNER: Final = "|/-\\"


@command()
@click.argument("id", shell_complete=completing("ids"))
@click.option("--timeout", type=Seconds(min=0), metavar="SEC", help="Give up after this long.")
@click.option("--json", "as_json", is_flag=True, help="Print each change as one line of JSON.")
def watch(id: str, timeout: float | None, as_json: bool) -> int:
    """Follow a task to its end, with a progress bar.

    The bar shows what the task reports with `self.progress(done, total)` or
    `update_state(state="PROGRESS", meta={"current": …, "total": …})`. If the output is not
    a terminal, each change is printed as a line. The exit code is 0 if the task succeeded,
    1 if not, and 124 if it has not ended in time.

    \b
    liteq watch 01a1fd0b-d381 --timeout 60
    """
    from liteq.operating import error_of, follow, resolve

    app = Session.current().app
    id = resolve(app.broker, id)
    kind = _Documents if as_json else _Bar if sys.stderr.isatty() else _Lines
    screen: _Screen = kind(app)
    deadline = None if timeout is None else time.monotonic() + timeout
    last: Record | None = None
    for record in follow(app.broker, id):
        if record is not None:
            last = record
        assert last is not None  # the first is always there
        screen.show(last)
        if last.final:
            break
        if deadline is not None and time.monotonic() >= deadline:
            screen.end()
            say(f"liteq: {shown(id)} has not ended: {last.state}")
            return Exit.TIMEOUT
    screen.end()
    assert last is not None
    if last.state == "succeeded":
        return Exit.OK
    error = error_of(last.result) if last.state == "failed" else None
    why = f"{error['type']}: {error['message']}" if error else last.revoked or last.state
    say(f"liteq: {shown(why)}")
    return Exit.FAILED


class _Screen:
    """Where a task is shown as it changes."""

    def __init__(self, app: Liteq) -> None:
        self.app = app

    def show(self, record: Record) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """Leave the line."""

    def said(self, record: Record) -> tuple[str, float | None]:
        """Return what is to be said of a task, and which part of it is done (0 to 1)."""
        if record.state != "running" or record.note is None:
            return "", None
        progress = self.app.AsyncResult(record.id).without_keys().progress
        if progress is None:
            return record.note.state, None
        text = f"{progress.done:g}"
        if progress.total:
            text += f"/{progress.total:g}"
        if progress.message:
            text += f"  {progress.message}"
        return text, progress.fraction


class _Lines(_Screen):
    """A line for each change of state, and for each tenth of its progress."""

    def __init__(self, app: Liteq) -> None:
        super().__init__(app)
        self._last: Any = None

    def show(self, record: Record) -> None:
        text, part = self.said(record)
        told = (record.state, text if part is None else int(part * 10))
        if told == self._last:
            return
        self._last = told
        percent = "" if part is None else f"  {part:.0%}"
        click.echo(f"{record.state}{percent}{f'  {shown(text)}' if text else ''}")


class _Documents(_Screen):
    """A JSON document in a line for each change."""

    def __init__(self, app: Liteq) -> None:
        super().__init__(app)
        self._last: Any = None

    def show(self, record: Record) -> None:
        told: dict[str, Any] = {
            "id": record.id,
            "task": record.outline.task,
            "state": record.state,
            "progress": None,
            "started": moment(record.started_at),
            "settled": moment(record.settled_at),
            "worker": record.worker,
        }
        if record.state == "running" and record.note is not None:
            progress = self.app.AsyncResult(record.id).without_keys().progress
            told["progress"] = None if progress is None else progress._asdict()
        if told != self._last:
            self._last = told
            click.echo(json_text(told))


class _Bar(_Screen):
    """One line that is drawn again and again."""

    def __init__(self, app: Liteq) -> None:
        super().__init__(app)
        self._looks = 0

    def show(self, record: Record) -> None:
        text, part = self.said(record)
        self._looks += 1
        if record.state == "succeeded":
            part = 1.0
        if part is not None:
            full = int(min(max(part, 0.0), 1.0) * _WIDTH)
            drawn = f"[{'#' * full}{'-' * (_WIDTH - full)}] {part:4.0%}"
        else:
            drawn = f"[{_SPINNER[self._looks % 4]}]" if not record.final else ""
        state = click.style(record.state, fg=STATE_COLOURS.get(record.state))
        now = self.app.clock.now()
        took = ""
        if record.started_at is not None:
            took = span((record.settled_at or now) - record.started_at)
        line = "  ".join(
            filter(None, (shown(record.outline.task), drawn, state, took, shown(text)))
        )
        click.echo(f"\r\x1b[K{line}", nl=False, err=True, color=None)

    def end(self) -> None:
        say()
