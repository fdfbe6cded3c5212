"""For Flask: an extension that gives each Flask app a liteq app of its own.

    queue = FlaskLiteq()            # beside the other extensions

    @queue.task
    def welcome(user_id): ...       # runs within the Flask app's context

    def create_app():
        app = Flask(__name__)
        app.config.from_prefixed_env()
        queue.init_app(app)
        return app

`liteq -A "proj:create_app()" worker`, or `flask --app proj liteq worker`. The liteq app is
`app.extensions["liteq"]`; its settings are the keys `LITEQ_…` of `app.config`, or a mapping
`LITEQ`; its store is in the instance folder unless `LITEQ_BROKER_URL` says where.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import click
import flask

from liteq import context, current, signals
from liteq.app import Liteq
from liteq.body import is_coroutine
from liteq.definition import check_values, share
from liteq.exceptions import ImproperlyConfigured
from liteq.plan import is_async

__all__ = ["FlaskLiteq"]

_NAME = "liteq"  # in `app.extensions`, and of the command

if TYPE_CHECKING:
    _App = Liteq  # what it stands for, so that its attributes have their types
else:
    _App = object


class FlaskLiteq(_App):
    """The extension: stands for the liteq app of the Flask app whose context is active.

    `queue.task` makes a task of every Flask app that has the extension; all else
    (`queue.conf`, `queue.send_task()`, `queue.AsyncResult` …) is that of its liteq app, a
    `Liteq`. Where no context is active it stands for that of the only Flask app that has it;
    with several, `RuntimeError`: one of them must not get the other's calls.

    Options are those of `Liteq`, for each of them: `FlaskLiteq(include=["proj.tasks"])`.
    """

    def __init__(self, app: flask.Flask | None = None, **options: Any) -> None:
        self._options = options
        self._constructors: list[Callable[[Liteq], object]] = []
        self._apps: WeakSet[_LiteqOfFlask] = WeakSet()
        self._is_used = False  # a Flask app has had it
        self._is_shared = False  # several have: also if the others are gone since, or not yet
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask) -> None:
        """Give a Flask app its liteq app and the command `flask liteq`.

        Its `config` is read when a setting is first needed. Raises `RuntimeError` if it has
        a liteq app already.
        """
        if _NAME in app.extensions:
            raise RuntimeError(f"{app!r} has the extension liteq already: call init_app once")
        made = app.extensions[_NAME] = _LiteqOfFlask(app, self._options)
        self._is_used, self._is_shared = True, self._is_used
        self._apps.add(made)
        for construct in self._constructors:
            construct(made)
        app.cli.add_command(_command(made))

    if not TYPE_CHECKING:

        def task(self, fun=None, **options):
            """Make a task of every Flask app that has this extension, those that come later
            too; options as for `Liteq.task`.

            What it returns stands for the copy of the Flask app whose context is active.
            """
            check_values(options)
            every = self._for_each, self._stands_for
            if fun is not None:
                return share(fun, options, *every)
            return lambda fun: share(fun, options, *every)

        def __getattr__(self, name):
            if name.startswith("__"):  # asked by copy, pickle, inspect: of this very object
                raise AttributeError(name)
            return getattr(self._stands_for(), name)

    def __repr__(self) -> str:
        return f"<FlaskLiteq of {len(self._apps)} Flask apps>"

    def _for_each(self, construct: Callable[[Liteq], object]) -> None:
        self._constructors.append(construct)
        for app in list(self._apps):
            construct(app)

    def _stands_for(self) -> Liteq:
        found = _of_context()
        if found in self._apps:
            assert found is not None
            return found
        if flask.has_app_context():
            raise RuntimeError(
                f"{flask.current_app.name!r} does not have this extension: call "
                "init_app(app) where the Flask app is made"
            )
        if not self._is_shared:
            for app in self._apps:
                return app
        which = "several Flask apps have" if self._apps else "no Flask app has"
        raise RuntimeError(
            f"which liteq app? {which} this extension, and no context of one is active: "
            "call init_app(app), and work within  with app.app_context():"
        )


class _LiteqOfFlask(Liteq):
    """The liteq app of one Flask app: what runs in an attempt runs within its context."""

    def __init__(self, app: flask.Flask, options: Mapping[str, Any]) -> None:
        self.flask = app
        super().__init__(
            app.name,
            **{"config_source": _Config(app.config), "namespace": _NAME, **options},
        )
        self.module = app.import_name  # another process looks there first
        self._home = app.instance_path
        signals.worker_process_init.connect(self._leave_to_parent)

    def surround(self, code: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function of a task, or a hook, as an attempt calls it: within a new
        context of the Flask app, whose teardown functions are told how it ended.

        A call in place (eager mode, `apply()`) within a context of this app stays in it, and
        with it in its database session: it is a part of that request or test. Whatever a
        worker runs gets a new one, even if the worker itself was started within a context.
        """

        def within(*args: Any, **kwargs: Any) -> Any:
            with self._place():
                value = code(*args, **kwargs)
                if not is_coroutine(value):
                    return value
            return self._awaited(value)  # it was made there, and begins now

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            with self._place():
                return await code(*args, **kwargs)

        return awaited if is_async(code) else within

    async def _awaited(self, coroutine: Any) -> Any:
        with self._place():
            return await coroutine

    def _place(self) -> AbstractContextManager[object]:
        running = context.current()
        in_place = running is not None and running.is_eager
        if in_place and _of_context() is self:
            return nullcontext()
        pushed: AbstractContextManager[object] = self.flask.app_context()
        return pushed

    def _leave_to_parent(self, **_: Any) -> None:
        """In a child: let Flask-SQLAlchemy open connections of its own. Those that the parent
        had opened are dropped, not closed: the driver's last words on the shared socket would
        end the parent's session too."""
        database: Any = self.flask.extensions.get("sqlalchemy")
        if hasattr(type(database), "engines"):
            with self.flask.app_context():
                for engine in database.engines.values():
                    engine.dispose(close=False)

    def __reduce__(self) -> Any:
        raise ImproperlyConfigured(
            f"the Flask app {self.flask.name!r} cannot be sent to another process: put it "
            "into a module by its name, where that can import it, or use pool='threads'"
        )


class _Config(Mapping[str, Any]):
    """What a Flask app's config says of liteq: `LITEQ_<NAME>`, which win, and `LITEQ`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def __getitem__(self, key: str) -> Any:
        return self._settings()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings())

    def __len__(self) -> int:
        return len(self._settings())

    def _settings(self) -> dict[str, Any]:
        mapping = self._config.get("LITEQ")
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ImproperlyConfigured(
                f"LITEQ in the Flask app's config is {mapping!r}: expected a mapping of "
                "settings, as in  LITEQ={'broker_url': …}"
            )
        settings = {f"LITEQ_{key.upper()}": value for key, value in (mapping or {}).items()}
        own = {key: v for key, v in self._config.items() if key.startswith("LITEQ_")}
        return {**settings, **own}


def _of_context() -> Liteq | None:
    """Return the liteq app of the Flask app whose context is active."""
    if not flask.has_app_context():
        return None
    found: Liteq | None = flask.current_app.extensions.get(_NAME)
    return found


def _command(app: Liteq) -> click.Command:
    """Return `flask liteq …`, which hands its words to the command line of liteq."""

    @click.command(
        _NAME,
        add_help_option=False,  # liteq has its own, and for each of its commands
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
        short_help="Run and look after background tasks.",
    )
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def hand_over(words: tuple[str, ...]) -> None:
        sys.exit(app.start(list(words) or ["--help"]))

    return hand_over


current.look_around(_of_context)
