"""Finding the app, with the user's mistakes as they make them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from liteq.discovery import AppBroken, AppNotFound, find_app
from liteq.exceptions import ImproperlyConfigured

APP = "from liteq import Liteq\napp = Liteq('shop')\n"

Write = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project as the current directory; what is imported from it is undone."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delenv("LITEQ_APP", raising=False)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if not name.startswith("liteq"):
            del sys.modules[name]


@pytest.fixture
def write(project: Path) -> Write:
    """Write a file of the project, with its packages."""

    def write(name: str, text: str = APP) -> Path:
        file = project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        for parent in file.parents:
            if parent in (project, project / "src"):
                break
            (parent / "__init__.py").touch()
        file.write_text(text)
        return file

    return write


# Named by -A


@pytest.mark.parametrize(
    ("spec", "reference"),
    [
        ("proj.worker", "proj.worker:app"),
        ("proj.worker:app", "proj.worker:app"),
        ("proj.worker.app", "proj.worker:app"),
        ("proj.worker:make()", "proj.worker:make()"),
        ("proj.worker:holder.app", "proj.worker:holder.app"),
        ("proj/worker.py", "proj.worker:app"),
        ("./proj/worker.py:app", "proj.worker:app"),
    ],
)
def test_every_form_of_name_finds_the_app(write: Write, spec: str, reference: str) -> None:
    write(
        "proj/worker.py",
        APP + "def make(): return app\nclass holder: app = app\n",
    )

    found = find_app(spec)

    assert found.app.main == "shop"
    assert found.reference == reference


@pytest.mark.parametrize("name", ["app", "celery", "liteq"])
def test_a_package_is_searched_as_celery_does(write: Write, name: str) -> None:
    write(f"proj/{name}.py")
    assert find_app("proj").reference == f"proj.{name}:app"


def test_the_only_app_in_a_module_needs_no_name(write: Write) -> None:
    write("jobs.py", "from liteq import Liteq\nqueue = alias = Liteq('q')\n")
    assert find_app("jobs").reference == "jobs:queue"


def test_app_goes_before_other_apps_of_a_module(write: Write) -> None:
    write("jobs.py", APP + "other = Liteq('other')\n")
    assert find_app("jobs").app.main == "shop"


def test_two_apps_in_a_module_are_a_question(write: Write) -> None:
    write("jobs.py", "from liteq import Liteq\nblue = Liteq('b')\nred = Liteq('r')\n")
    with pytest.raises(AppNotFound, match=r"2 apps in jobs: blue, red; .* -A jobs:blue"):
        find_app("jobs")


def test_the_current_app_of_liteq_is_no_app_of_the_module(write: Write) -> None:
    write("jobs.py", "from liteq import current_app\n")
    with pytest.raises(AppNotFound, match="no liteq app in jobs"):
        find_app("jobs")


def test_a_file_whose_name_is_no_identifier_can_be_named(write: Write) -> None:
    write("night-jobs.py")
    found = find_app("night-jobs.py")
    assert sys.modules["night-jobs"].app is found.app


def test_a_file_hidden_by_another_module_is_said(write: Write) -> None:
    write("json.py")
    with pytest.raises(AppNotFound, match=r"the module 'json' is already .*another name"):
        find_app("json.py")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere", r"no module 'nowhere' \(-A\), looked for from"),
        ("jobs.nowhere", "no module 'jobs.nowhere'"),
        ("nowhere.py", "there is no file"),
        ("not a module", "expected module, module:attribute"),
        ("jobs:absent", r"has no 'absent'; its apps: app"),
        ("jobs:make", r"is not a liteq app but function; is it a factory\? then add \(\)"),
        ("jobs:number", "is not a liteq app but int$"),
        ("jobs:number()", "cannot be called"),
        ("jobs:nothing()", "is not a liteq app but NoneType"),
    ],
)
def test_a_wrong_name_is_one_sentence(write: Write, spec: str, message: str) -> None:
    write("jobs.py", APP + "number = 3\ndef make(): return app\ndef nothing(): pass\n")
    with pytest.raises(AppNotFound, match=message) as caught:
        find_app(spec)
    assert not isinstance(caught.value, AppBroken)


# Found without a name


def test_the_environment_names_the_app(write: Write) -> None:
    write("jobs.py")
    write("tasks.py", "raise AssertionError('not asked for')")
    assert find_app(environ={"LITEQ_APP": "jobs"}).reference == "jobs:app"


def test_pyproject_names_the_app_from_a_folder_below(
    write: Write, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("jobs.py")
    (project / "pyproject.toml").write_text('[tool.liteq]\napp = "jobs:app"\n')
    below = project / "docs" / "guide"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_app().reference == "jobs:app"


def test_pyproject_may_name_a_file_beside_it(write: Write, project: Path) -> None:
    write("proj/jobs.py")
    (project / "pyproject.toml").write_text('[tool.liteq]\napp = "proj/jobs.py"\n')
    assert find_app().reference == "proj.jobs:app"


def test_an_app_in_pyproject_that_is_no_text_is_said(project: Path) -> None:
    (project / "pyproject.toml").write_text("[tool.liteq]\napp = 3\n")
    with pytest.raises(ImproperlyConfigured, match="must be text, not 3"):
        find_app()


@pytest.mark.parametrize(
    ("file", "reference"),
    [
        ("tasks.py", "tasks:app"),
        ("app.py", "app:app"),
        ("shop/tasks.py", "shop.tasks:app"),
        ("shop/celery.py", "shop.celery:app"),
        ("src/shop/tasks.py", "shop.tasks:app"),
    ],
)
def test_the_usual_places_are_looked_at(write: Write, file: str, reference: str) -> None:
    write(file)
    assert find_app().reference == reference


def test_tasks_py_goes_before_app_py(write: Write) -> None:
    write("tasks.py")
    write("app.py")
    assert find_app().reference == "tasks:app"


def test_a_current_directory_that_was_deleted_is_said(
    write: Write, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("jobs.py")
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    for name in ("jobs", "jobs.py", None):
        with pytest.raises(AppNotFound, match=r"directory was deleted: .* --workdir"):
            find_app(name)
    assert find_app("jobs", directory=project).reference == "jobs:app"


def test_an_app_py_of_something_else_is_not_run(write: Write) -> None:
    write("app.py", "raise AssertionError('a web server would start here')")
    with pytest.raises(AppNotFound, match=r"no liteq app in .*-A module:attribute"):
        find_app()


def test_packages_of_tests_are_not_run(write: Write) -> None:
    write("tests/tasks.py", "import liteq\nraise AssertionError('not ours')")
    with pytest.raises(AppNotFound, match="no liteq app"):
        find_app()


def test_packages_with_shared_tasks_alone_are_left_to_the_app(write: Write) -> None:
    write("proj/celery.py")
    for name in ("accounts", "shop"):  # Django's, which cannot be imported before its setup
        write(f"{name}/tasks.py", "from liteq import shared_task\nraise KeyError('not yet')")

    assert find_app().reference == "proj.celery:app"


def test_several_packages_with_apps_are_a_question(write: Write) -> None:
    write("blue/tasks.py")
    write("red/tasks.py")
    with pytest.raises(AppNotFound, match=r"blue\.tasks:app, red\.tasks:app; .*-A blue"):
        find_app()


# Code that cannot be imported


def shown(error: AppBroken) -> list[str]:
    return [line for line in str(error).splitlines() if line.startswith("  File ")]


def test_an_error_shows_the_users_frames_only(write: Write) -> None:
    file = write("tasks.py", "def deep():\n    1 / 0\n\ndeep()\n")

    with pytest.raises(AppBroken, match="ZeroDivisionError") as caught:
        find_app()

    assert shown(caught.value) == [
        f'  File "{file}", line 4, in <module>',
        f'  File "{file}", line 2, in deep',
    ]
    assert str(caught.value).splitlines()[-1].startswith("hint: ")


def test_frames_of_a_cause_are_trimmed_too(write: Write) -> None:
    write("inner.py", "import absent_library\n")
    write(
        "tasks.py",
        "try:\n    import inner\nexcept ImportError as exc:\n    raise OSError from exc\n",
    )

    with pytest.raises(AppBroken) as caught:
        find_app()

    text = str(caught.value)
    assert "No module named 'absent_library'" in text
    assert "importlib" not in text


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("def broken(:\n", r"tasks.py, line 1 is not valid Python \d"),
        ("import absent_library\n", "'absent_library' is not installed for "),
        ("import celery\n", "from liteq import Liteq"),
        ("from other import late\n", "two modules import each other"),
        ("import sys; sys.exit(3)\n", "if __name__ == '__main__'"),
        ("1\nraise ValueError('no')\n", r"at .*tasks\.py:2;"),
    ],
)
def test_the_hint_fits_the_error(write: Write, code: str, hint: str) -> None:
    write("other.py", "import tasks\nfrom tasks import nothing_yet\nlate = 1\n")
    write("tasks.py", code)
    with pytest.raises(AppBroken, match=f"hint: .*{hint}"):
        find_app()


def test_a_module_missing_inside_the_app_is_not_the_app_missing(write: Write) -> None:
    write("proj/tasks.py", "import liteq\nfrom proj import absent\n")
    with pytest.raises(AppBroken, match="cannot import name 'absent'"):
        find_app("proj.tasks")


def test_an_error_in_a_factory_is_the_users(write: Write) -> None:
    file = write("jobs.py", "def make():\n    raise OSError('no disk')\n")
    with pytest.raises(AppBroken, match="OSError: no disk") as caught:
        find_app("jobs:make()")
    assert shown(caught.value) == [f'  File "{file}", line 2, in make']


def test_ctrl_c_during_the_import_is_no_error_of_the_app(write: Write) -> None:
    write("tasks.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        find_app()


def test_a_failed_import_can_be_tried_again(write: Write) -> None:
    write("night-jobs.py", "1 / 0\n")
    with pytest.raises(AppBroken):
        find_app("night-jobs.py")
    write("night-jobs.py")
    assert find_app("night-jobs.py").app.main == "shop"


def test_an_app_that_its_module_fails_to_make_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def __getattr__(name):\n    raise LookupError(f'no settings for {name}')\n"
    (tmp_path / "lazily.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(AppBroken) as caught:
        find_app("lazily:app")

    assert "no settings for app" in str(caught.value)
