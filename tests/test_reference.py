"""The tasks of a script in processes of their own: they do there what they do in the script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.process

HELPERS = """
UNSET = object()

import functools, sys
from liteq import Liteq

other = Liteq("other", set_as_current=False)
stream = sys.stderr  # what no copy can be made of


def announced(fun):
    @functools.wraps(fun)
    def inner(*args):
        return fun(*args), stream is sys.stderr
    return inner


def plain(n):
    return n + 100


@other.task
def elsewhere():
    pass
"""

SCRIPT = """
import abc, dataclasses, enum, functools, json, os, sys, threading, typing
import wsgiref.util
import helpers
from helpers import announced, elsewhere
from liteq import Liteq, Task, current_app, shared_task
from liteq.signals import task_prerun, worker_ready

app = Liteq("shop", broker_transport_options={"durability": "normal"})
app.config_from_object({"task_time_limit": 77})
app.conf.worker_pool_start_method = os.environ["START"]
said = open("said", "a", buffering=1)


def say(text):
    with open("said", "a") as file:
        file.write(text + "\\n")


class AppTask(Task):
    tag = "of the app"


app.Task = AppTask


class Base(Task):
    rate = 1

    def __init__(self):
        self.file, self.level = open(os.devnull), 1

    def on_failure(self, *args):
        say(f"base: {self.name}")
        super().on_failure(*args)


class Derived(Base):
    def on_failure(self, *args):
        super().on_failure(*args)
        say("derived")


@app.task(base=Derived, bind=True)
def with_base(self):
    raise ValueError(self.rate, self.level, self.file.name)


with_base.rate = 3
with_base.level = 9


@app.task(bind=True)
def attributes(self):
    return self.tag, self.max_retries, attributes is self, isinstance(attributes, Task)


attributes.max_retries = 7


@app.task
def hook():
    raise ValueError


hook.on_failure = lambda *args: say("assigned")

total = 0


def add_one():
    global total
    total += 1


@app.task
def globals_():
    add_one()
    add_one()
    return total


@app.task
def later_global():
    return LIMIT


def maker(k):
    def inner(n):
        return inner.__name__, n * k
    return app.task(inner, name=f"times {k}")


closure = maker(3)


@app.task
async def coroutine(n):
    return n + 1, current_app.main


@app.task
def recursive(n):
    return factorial(n), list(i for i in range(n))


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2

    def low(self):
        return self.name.lower()


@dataclasses.dataclass
class Animal:
    colour: Colour
    legs: int = 4
    names: list = dataclasses.field(default_factory=list)

    def told(self):
        return f"{self.colour.low()} {self.legs}"


@dataclasses.dataclass
class Bird(Animal):
    legs: int = 2

    def told(self):
        return "bird " + super().told()


@app.task
def values(one):
    return one.told(), [field.name for field in dataclasses.fields(one)], one


Held = typing.TypeVar("Held")


class Named(typing.Protocol):
    def name(self) -> str: ...


class Box(typing.Generic[Held]):
    def __init__(self, held: Held):
        self.held = held

    @functools.cached_property
    def twice(self) -> Held:
        return self.held * 2


class Numbers(Box[int]):
    __slots__ = ("more",)

    @classmethod
    def of(cls, *numbers):
        made = cls(sum(numbers))
        made.more = len(numbers)
        return made


@app.task
def classes():
    made = Numbers.of(1, 2)
    return made.twice, made.more, Named.__name__, lock.acquire(blocking=False)


lock = threading.RLock()


class Line(typing.TypedDict):
    price: int


class Order(Line, typing.Generic[Held], total=False):
    line: Line
    item: Held


class Book(Order[str]):
    pass


@app.task
def typed_dicts():
    keys = sorted(Book.__required_keys__), sorted(Book.__optional_keys__)
    of = Book.__orig_bases__[0].__args__ == (str,)
    return Book(price=1, item="x"), *keys, typing.is_typeddict(Book), of


class Size(enum.Enum):
    SMALL = (1, "s")
    LARGE = (2, "l")
    PACKED = enum.nonmember("in a box")

    def __new__(cls, value, short):
        made = object.__new__(cls)
        made._value_ = value
        made.short = short
        return made

    @classmethod
    def _missing_(cls, value):
        return cls.SMALL


class Rights(enum.Flag, boundary=enum.KEEP):
    READ = 1
    WRITE = 2
    BOTH = READ | WRITE


class Planet(enum.Enum):
    EARTH = (1.0, 2)

    def __init__(self, mass, moons):
        self.mass, self.moons = mass, moons


@app.task
def enums():
    flags = Rights(9).value, (Rights.READ | Rights.WRITE) is Rights.BOTH
    sizes = Size(2).short, Size("?").name, Size.PACKED, list(Size)
    return *flags, *sizes, Planet.EARTH.mass, Planet((1.0, 2)).moons


class Shape(abc.ABC):
    @abc.abstractmethod
    def draw(self): ...


@Shape.register
class Square:
    @staticmethod
    @app.task
    def draw():
        return Square.name

    name = "square"


@app.task
def abstract():
    return isinstance(Square(), Shape), Square.draw()


@app.task
@announced
def decorated(n):
    return helpers.plain(n)


class Multiply(Task):
    def __init__(self, by):
        self.by = by

    def run(self, n):
        return n * self.by


class Opening(Task):
    def __init__(self):
        self.made = (n for n in [1])  # no copy of it can be made

    def run(self):
        return next(self.made), self.extra


instance = app.register_task(Multiply(5))
of_class = app.register_task(Opening)
of_class.extra = "set later"
of_module = app.task(name="of a module")(helpers.plain)


@shared_task
def shared():
    return sorted(app.tasks.own())


@app.task
def settings():
    conf = app.conf
    return conf.task_time_limit, conf.task_soft_time_limit, conf.task_routes.__name__


mark = helpers.UNSET


@app.task
def below():
    return wsgiref.util.guess_scheme({}), mark is helpers.UNSET


def route(name, *args, **options):
    return None


app.conf.task_soft_time_limit = 66
app.conf.task_routes = route


@task_prerun.connect(sender=globals_)
def before(**options):
    say("prerun")


@worker_ready.connect
def ready(**options):
    say(f"ready: {app.main}")


LIMIT = 1
calls = {
    "with_base": (with_base,),
    "attributes": (attributes,),
    "hook": (hook,),
    "globals": (globals_,),
    "later_global": (later_global,),
    "closure": (closure, 4),
    "coroutine": (coroutine, 1),
    "recursive": (recursive, 4),
    "values": (values, Bird(Colour.BLUE, names=["x"])),
    "classes": (classes,),
    "typed_dicts": (typed_dicts,),
    "enums": (enums,),
    "abstract": (abstract,),
    "decorated": (decorated, 1),
    "instance": (instance, 2),
    "of_class": (of_class,),
    "of_module": (of_module, 1),
    "shared": (shared,),
    "settings": (settings,),
    "below": (below,),
}

if __name__ == "__main__":
    LIMIT = 2
    with app.worker(concurrency=1, pool=os.environ["POOL"]):
        found = {
            name: repr(task.delay(*args).get(timeout=20, propagate=False))
            for name, (task, *args) in calls.items()
        }
    print(json.dumps({**found, "said": sorted(open("said").read().split("\\n"))}))
"""


def ran(
    folder: Path, text: str, *, notebook: bool = False, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a script; as a notebook: one whose `__main__` has no file."""
    (folder / "helpers.py").write_text(HELPERS)
    (folder / "prog.py").write_text(text)
    return subprocess.run(
        [sys.executable, *(["-c", text] if notebook else ["prog.py"])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


Found = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the script finds, from one run of each kind."""

    @cache
    def run(pool: str, start: str, *, notebook: bool) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("script")
        done = ran(folder, SCRIPT, notebook=notebook, POOL=pool, START=start)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    return run


EXPECTED = {
    "with_base": "ValueError(3, 9, '/dev/null')",
    "attributes": "('of the app', 7, True, True)",
    "hook": "ValueError()",
    "globals": "2",
    "later_global": "2",
    "closure": "('inner', 12)",
    "coroutine": "(2, 'shop')",
    "recursive": "(24, [0, 1, 2, 3])",
    "values": "('bird blue 2', ['colour', 'legs', 'names'], "
    "Bird(colour=<Colour.BLUE: 2>, legs=2, names=['x']))",
    "classes": "(6, 2, 'Named', True)",
    "typed_dicts": "({'price': 1, 'item': 'x'}, ['price'], ['item', 'line'], True, True)",
    "enums": "(9, True, 'l', 'SMALL', 'in a box', [<Size.SMALL: 1>, <Size.LARGE: 2>], 1.0, 2)",
    "abstract": "(True, 'square')",
    "decorated": "(101, True)",
    "instance": "10",
    "of_class": "(1, 'set later')",
    "of_module": "101",
    "settings": "(77, 66, 'route')",
    "below": "('http', True)",
}


@pytest.mark.parametrize("notebook", [False, True])
@pytest.mark.parametrize(
    ("pool", "start"), [("threads", "fork"), ("prefork", "fork"), ("prefork", "spawn")]
)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_of_a_script_does_the_same_in_each_pool(
    name: str, pool: str, start: str, notebook: bool, found: Found
) -> None:
    assert found(pool, start, notebook=notebook)[name] == EXPECTED[name]


@pytest.mark.parametrize("notebook", [False, True])
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("name", ["shared", "said"])
def test_the_tasks_hooks_and_receivers_of_a_script_are_the_same_in_its_children(
    name: str, start: str, notebook: bool, found: Found
) -> None:
    here, there = (
        found(pool, how, notebook=notebook)[name]
        for pool, how in (("threads", "fork"), ("prefork", start))
    )

    assert there == here


REFUSED = """
import sqlite3
from helpers import elsewhere
from liteq import Liteq, Task
from liteq.exceptions import ImproperlyConfigured
from liteq.signals import task_prerun

app, another = Liteq("shop"), Liteq("another", set_as_current=False)
connection = sqlite3.connect(":memory:")


@another.task
def of_another():
    pass


@app.task
def fine():
    return elsewhere.name


{defect}

if __name__ == "__main__":
    try:
        with app.worker(concurrency=1, pool="prefork"):
            print(fine.delay().get(timeout=20))
    except ImproperlyConfigured as exc:
        print(exc)
"""


@pytest.mark.parametrize(
    ("defect", "what"),
    [
        ("@app.task\ndef bad(): return connection", "'connection' of the script cannot be"),
        ("@app.task\ndef bad(): of_another.delay()", "'of_another' of the script cannot be"),
        ("fine.connection = connection", "the task 'prog.fine' cannot be"),
        (
            "@task_prerun.connect\ndef heard(db=connection, **_): pass",
            "of task_prerun cannot be",
        ),
        (
            "app.conf.task_routes = lambda *_, db=connection, **__: None",
            "the settings cannot be",
        ),
        (
            "class Base:\n    def __init_subclass__(cls, tag): pass\n"
            "class Tagged(Base, tag=1): pass\n@app.task\ndef bad(): return Tagged",
            "'Tagged' of the script cannot be",
        ),
        (
            "class Blind:\n    def __reduce__(self): return len, ()\nfine.blind = Blind()",
            "the task 'prog.fine' cannot be",
        ),
        ("used = connection", "helpers.elsewhere"),
    ],
)
def test_what_cannot_be_sent_is_told_to_the_caller(
    defect: str, what: str, tmp_path: Path
) -> None:
    done = ran(tmp_path, REFUSED.format(defect=defect))

    assert done.returncode == 0, done.stderr
    assert what in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "made",
    [
        "file = open('kept', 'w+'); print('precious', file=file, flush=True)",
        "file = open('kept', 'wb'); file.write(b'precious'); file.close()",
        "file = open('kept', 'x'); print('precious', file=file, flush=True)",
        "import tempfile; file = tempfile.NamedTemporaryFile(dir='.', prefix='kept')\n"
        "file.write(b'precious'); file.flush(); import os; os.link(file.name, 'kept')",
        "import os, tempfile; file = tempfile.TemporaryDirectory(dir='.')\n"
        "os.mkdir(file.name + '/precious'); os.symlink(file.name + '/precious', 'kept')",
    ],
)
def test_no_copy_empties_or_removes_a_file(made: str, tmp_path: Path) -> None:
    defect = f"{made}\n@app.task\ndef bad(): return file"
    kept = "import os; assert os.path.isdir('kept') or 'precious' in open('kept').read()"

    done = ran(tmp_path, REFUSED.format(defect=defect) + f"    {kept}")

    assert done.returncode == 0, done.stderr
    assert "would empty or remove a file" in done.stdout


OF_MODULE = """
from helpers import elsewhere, other
from liteq.signals import task_prerun


@task_prerun.connect
def heard(**_):
    print("heard", flush=True)


@other.task
def own():
    return elsewhere.name


if __name__ == "__main__":
    with other.worker(concurrency=1, pool="prefork"):
        print(elsewhere.delay().get(timeout=20), own.delay().get(timeout=20))
"""
WITH_BEAT = """
from liteq import Liteq

app = Liteq("shop")


@app.task
def tick():
    pass


app.add_periodic_task(3600, tick, name="hourly")

if __name__ == "__main__":
    with app.worker(concurrency=1, pool="prefork", beat=True):
        while not app.schedules.list():
            tick.delay().get(timeout=20)
    print([entry.name for entry in app.schedules.list()])
"""


def test_what_a_script_adds_to_the_app_of_a_module_is_known_in_its_children(
    tmp_path: Path,
) -> None:
    done = ran(tmp_path, OF_MODULE)

    assert done.stdout.split() == ["heard", "heard", "None", "helpers.elsewhere"], done.stderr


def test_the_periodic_entries_of_a_script_are_declared_in_its_children(tmp_path: Path) -> None:
    assert ran(tmp_path, WITH_BEAT).stdout == "['hourly']\n"
