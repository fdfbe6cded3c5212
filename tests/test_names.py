"""Names are the same in the process that defines and in the one that imports."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from liteq import names
from liteq.nodes import file_of

SCRIPT = """
from liteq import names
def add(): pass
print(names.task_name(add), names.main_name(), names.is_main("__main__"))
"""


def run(*argv: str, cwd: Path) -> list[str]:
    root = Path(names.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env={"PYTHONPATH": f"{root}:{cwd}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_script_goes_by_its_file_name(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(SCRIPT)
    assert run("tasks.py", cwd=tmp_path) == ["tasks.add", "tasks", "True"]


def test_a_module_run_with_dash_m_goes_by_its_full_name(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "tasks.py").write_text(SCRIPT)
    assert run("-m", "shop.tasks", cwd=tmp_path) == ["shop.tasks.add", "shop.tasks", "True"]


def test_code_without_a_file_stays_main(tmp_path: Path) -> None:
    assert run("-c", SCRIPT, cwd=tmp_path) == ["__main__.add", "__main__", "True"]


def test_a_spawned_child_calls_the_script_by_the_same_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = SimpleNamespace(__spec__=None, __file__="/srv/tasks.py")
    monkeypatch.setitem(sys.modules, "__main__", script)  # type: ignore[arg-type]

    def add() -> None: ...

    add.__module__ = "__mp_main__"
    assert names.task_name(add) == "tasks.add"
    assert names.is_main("tasks")
    assert not names.is_main("shop")


def test_an_imported_function_goes_by_its_module() -> None:
    assert names.task_name(run) == f"{__name__}.run"
    assert names.module_name(Path) == Path.__module__


def test_a_callable_without_a_name_must_be_given_one() -> None:
    with pytest.raises(TypeError, match="pass name="):
        names.task_name(functools.partial(print))


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/var/log/%n%I.log", "/var/log/mail.log"),
        ("%p.pid", "mail@web1.example.org.pid"),
        ("%h/%d-%i.log", "web1.example.org/example.org-0.log"),
        ("100%%n.log", "100%n.log"),
        ("plain.log", "plain.log"),
    ],
)
def test_a_workers_files_may_bear_its_name(path: str, file: str) -> None:
    assert file_of("mail@web1.example.org", path) == file
