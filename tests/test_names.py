"""Names are the same in the process that defines and in the one that imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from liteq import names
from liteq.nodes import file_of

SCRIPT = """
from liteq import names
def add(): pass
print(f"{names.module_name(add)}.{add.__name__}", names.main_name(), names.is_main("__main__"))
"""

PARENT = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from liteq import Liteq, names

app, named = Liteq(broker="memory://"), Liteq("m", broker="memory://")

@app.task
def add(): pass

@named.task
def sub(): pass

class Mul(named.Task):
    def run(self): pass

named.register_task(Mul)
MAIN = names.main_name()  # while the script is imported

def seen(_):
    mul = next(name for name in named.tasks if name.endswith("Mul"))
    assert MAIN == names.main_name()
    return ",".join([add.name, sub.name, mul, MAIN, str(names.is_main(MAIN))])

def in_a_pool(context):
    with context.Pool(1) as pool:
        return pool.map(seen, [0])[0]

def in_an_executor(context):
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(seen, 0).result()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    print(seen(0), in_a_pool(context), in_an_executor(context))
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


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("argv", [["tasks.py"], ["-m", "shop.tasks"]])
def test_a_child_of_a_script_calls_its_tasks_by_the_same_names(
    tmp_path: Path, argv: list[str], method: str
) -> None:
    (tmp_path / "shop").mkdir()
    for path in (tmp_path / "tasks.py", tmp_path / "shop" / "tasks.py"):
        path.write_text(PARENT)

    here, *there = run(*argv, method, cwd=tmp_path)

    module = "shop.tasks" if "-m" in argv else "tasks"
    assert here == f"{module}.add,{module}.sub,{module}.Mul,{module},True"
    assert there == [here, here]


def test_an_imported_function_goes_by_its_module() -> None:
    assert names.module_name(run) == __name__
    assert names.module_name(Path) == Path.__module__


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
