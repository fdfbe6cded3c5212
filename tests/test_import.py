from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from world import uncovered

import liteq

HEAVY = (
    "redis",
    "click",
    "croniter",
    "dateutil",
    "multiprocess",
    "dill",
    "asyncio",
    "sqlite3",
    "django",
)
# What a sender of plain calls has no use for: 25 ms.
NEEDLESS = {
    "dataclasses",
    "inspect",
    "logging",
    "pathlib",
    "random",
    "traceback",
    "liteq.canvas",
    "liteq.composing",
    "liteq.replacing",
    "liteq.results.groupresult",
    "liteq.result",
    "liteq.results.resultset",
    "liteq.workflows",
}
# What a program that sends nothing has no use for, nor one that has not yet: 20 ms.
UNSENT = {
    "json",
    "struct",
    "liteq.arguments",
    "liteq.results.asyncresult",
    "liteq.builtin",
    "liteq.calls",
    "liteq.carrying",
    "liteq.failure",
    "liteq.ids",
    "liteq.limits",
    "liteq.message",
    "liteq.offload",
    "liteq.retrying",
    "liteq.routes",
    "liteq.rules",
    "liteq.sending",
    "liteq.serializers",
    "liteq.tagging",
}
# Says whether Python has compiled a text: the classes of `ast` are made for it, 5 ms.
HAS_COMPILED = "print(any(kind.__name__ == 'AST' for kind in object.__subclasses__()))"


def loaded_by(code: str) -> set[str]:
    return {name.partition(".")[0] for name in modules_of(code)}


def modules_of(code: str) -> set[str]:
    """Return what the code loads that Python had not loaded by itself."""
    code = f"import sys; before = set(sys.modules)\n{code}"
    return set(printed_by(f"{code}\nprint(*(set(sys.modules) - before))").split())


def printed_by(code: str, *flags: str) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=uncovered() | {"PYTHONDONTWRITEBYTECODE": ""},
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import liteq",
        "from liteq import Liteq; app = Liteq('shop', broker='memory://')\n"
        "@app.task\ndef add(x): ...\nassert add.name",
        "from liteq import Liteq; app = Liteq('shop', broker='memory://')\n"
        "@app.task\ndef add(x): ...\nadd.delay(1).state",
    ],
    ids=["import", "define", "send"],
)
def test_a_producer_loads_nothing_that_it_does_not_need(code: str) -> None:
    assert loaded_by(code) & set(HEAVY) == set()


def test_it_works_without_docstrings_and_assertions() -> None:
    code = (
        "from liteq import Liteq, Task, chain; app = Liteq('shop', broker='memory://')\n"
        "class Base(Task): acks_late = None\n"
        "@app.task(base=Base)\ndef add(x, y): return x + y\n"
        "@app.task\nasync def double(x): return 2 * x\n"
        "done = chain(add.s(1, 2), double.s())()\n"
        "with app.worker(): print(done.get(timeout=60), add.__doc__)"
    )
    assert printed_by(code, "-OO") == "6 None"


def test_a_plain_call_is_sent_without_what_workflows_need(tmp_path: Path) -> None:
    code = (
        f"from liteq import Liteq; app = Liteq('shop', broker='sqlite://{tmp_path}/s')\n"
        "@app.task\ndef add(x, *, y=1): ...\nadd.delay(1, y=2)"
    )
    assert modules_of(code) & NEEDLESS == set()


def test_a_program_that_sends_nothing_loads_nothing_of_what_sends() -> None:
    code = (
        "import liteq; app = liteq.Liteq('shop', broker='memory://')\n"
        "@app.task\ndef add(x, *, y=1): ..."
    )
    assert modules_of(code) & (NEEDLESS | UNSENT) == set()


def test_who_waits_for_another_writer_loads_nothing_for_that(tmp_path: Path) -> None:
    code = (
        "import fcntl, os; from liteq import Liteq; from liteq.exceptions import BrokerBusy\n"
        f"app = Liteq('shop', broker='sqlite://{tmp_path}/s')\n"
        "app.conf.broker_transport_options = {'busy_timeout': 0.01}\n"
        "@app.task\ndef add(x, *, y=1): ...\nadd.delay(1, y=2)\n"
        f"gate = os.open('{tmp_path}/s/gate', os.O_RDWR)\n"
        "fcntl.flock(gate, fcntl.LOCK_EX)\n"
        "try:\n    add.delay(2)\nexcept BrokerBusy: pass\nelse: raise SystemExit('no wait')"
    )
    assert modules_of(code) & NEEDLESS == set()


def test_a_worker_of_a_module_loads_nothing_of_what_sends_scripts() -> None:
    loaded = modules_of("import liteq.discovery, liteq.worker")

    assert loaded & {"liteq.parcel", "liteq.reference"} == set()


def test_the_worker_of_the_benchmarks_carries_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "effects").touch()
    monkeypatch.setenv("BENCH_FOLDER", str(tmp_path))
    monkeypatch.setenv("BENCH_DURABILITY", "normal")
    monkeypatch.chdir(Path(liteq.__file__).parents[1])

    loaded = modules_of("import benchmarks.on_liteq")

    assert loaded & {"liteq.result", "liteq.results.asyncresult", "liteq.canvas"} == set()


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="each NamedTuple loads `ast` there, and makes them"
)
def test_no_text_is_compiled_for_a_plain_call(tmp_path: Path) -> None:
    code = (
        f"from liteq import Liteq; app = Liteq('shop', broker='sqlite://{tmp_path}/s')\n"
        "@app.task\ndef add(x, *, y=1): ...\nadd.delay(1, y=2)"
    )
    printed_by(code)  # else Python compiles the modules themselves
    assert printed_by(f"{code}\n{HAS_COMPILED}") == "False"
    assert printed_by(f"compile('1', '', 'eval')\n{HAS_COMPILED}") == "True"


def test_all_loggers_come_from_where_they_get_their_silent_handler() -> None:
    for path in Path(liteq.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert path.name == "loggers.py" or 'logging.getLogger("' not in source, path


def test_importing_the_package_imports_next_to_nothing() -> None:
    assert "apsw" not in loaded_by("import liteq")


def test_every_public_name_can_be_imported() -> None:
    for name in liteq.__all__:
        assert getattr(liteq, name) is not None
        assert name in dir(liteq)
    assert liteq.Celery is liteq.Liteq


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        liteq.nothing  # noqa: B018
