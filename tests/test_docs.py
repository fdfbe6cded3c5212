"""The README and the pages of docs/ are true: their code runs, their links lead somewhere,
and the settings, flags and commands they name exist.

Blocks marked `python` and `pycon` of a page run in order, in one module `tasks`, with a
worker of two threads beside them (unless the page says that it starts its own); a `pycon`
block is compared with what it shows. At the end the tests that a page defines are run.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PAGES = [page for page in PAGES if "_build" not in page.parts]
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[tuple[int, str, str]]:
    """Return (line, language, text) of the code blocks in these languages."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in FENCE.finditer(text)
        if found[1] in languages
    ]


WITH_CODE = [page for page in PAGES if blocks(page, "python", "pycon")]


# Code


@pytest.mark.process
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(page), str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_page(page: Path, folder: Path) -> int:
    """Run the code of one page, in a process of its own; return how much of it failed."""
    module = ModuleType("tasks")
    module.__file__ = str(folder / "tasks.py")
    sys.modules["tasks"] = module
    space = vars(module)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    parser = doctest.DocTestParser()
    with ExitStack() as stack:
        working = "<!-- test: starts its own worker -->" in page.read_text(encoding="utf-8")
        for line, language, text in blocks(page, "python", "pycon"):
            if language == "python":
                source = "\n" * (line - 1) + text
                exec(compile(source, str(page), "exec"), space)
                continue
            if not working and "app" in space:
                stack.enter_context(space["app"].worker(concurrency=2))
                working = True
            test = parser.get_doctest(text, space, page.name, str(page), line - 1)
            runner.run(test, clear_globs=False)
        for name, defined in list(space.items()):
            if name.startswith("test_"):
                wanted = inspect.signature(defined).parameters
                defined(**{"tmp_path": folder} if "tmp_path" in wanted else {})
    return runner.summarize().failed


# Links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def links(page: Path) -> Iterator[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(text):
        if "://" not in target:
            yield target


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings
    }


def test_every_page_is_in_the_table_of_contents() -> None:
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text()
    listed = set(re.findall(r"^((?:guide|reference)/\S+|scaling|profile)$", index, re.M))
    found = {str(p.relative_to(docs).with_suffix("")) for p in PAGES if docs in p.parents}
    assert listed == found - {"index"}


# Names


def test_documented_settings_exist() -> None:
    from liteq import signals
    from liteq.settings import SETTINGS
    from liteq.task import Task

    known = {*SETTINGS, *vars(signals), *vars(Task), *NOT_SETTINGS}
    for page in PAGES:
        for name in re.findall(
            r"`((?:task|worker|result|broker|beat)_[a-z_]+)[`=(]",
            page.read_text(encoding="utf-8"),
        ):
            assert name in known, f"{name_of(page)} names {name}, which does not exist"


# Arguments and attributes, words of RQ and Django.
NOT_SETTINGS = {"task_id", "task_name", "result_ttl", "worker_ids"}


def test_every_setting_with_an_effect_is_read_somewhere() -> None:
    from liteq.settings import SETTINGS

    tables = {"settings.py", "settingsources.py"}
    modules = [path for path in (ROOT / "liteq").rglob("*.py") if path.name not in tables]
    words = {
        word
        for path in modules
        for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))
    }
    used = {name for name, row in SETTINGS.items() if row.kind == "used"}

    assert used <= words, "the others are accepted, with the reason why they have no effect"


def test_documented_commands_and_flags_exist() -> None:
    for page in PAGES:
        for _, _, text in blocks(page, "console", "ini", "dockerfile"):
            for command in re.findall(r"(?:^\$ |/)liteq (.+)$", text, re.MULTILINE):
                assert_known(command.split("#")[0].split(), name_of(page))
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        for command in re.findall(r"`liteq ([^`]+)`", prose):
            ours = re.split(r" \\?\| ", command)[
                0
            ]  # what it is piped into has flags of its own
            assert_known(ours.split(), name_of(page))


def assert_known(words: list[str], where: str) -> None:
    """Fail if a `liteq …` command line has a command or a flag that is not there."""
    import click

    from liteq.cli.root import cli

    command: click.Command = cli
    context = click.Context(cli)
    flags = flags_of(cli)
    for word in words:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            assert flag in flags, f"{where}: liteq {' '.join(words)}: no flag {flag}"
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            if found is not None:
                command = found
                flags |= flags_of(found)
    assert command is not cli or all(word.startswith("-") for word in words), (
        f"{where}: liteq {' '.join(words)}: no such command"
    )


def flags_of(command) -> set[str]:
    return {"--help", *(name for param in command.params for name in param.opts)}


def test_what_builds_the_pages_finds_what_it_imports() -> None:
    tree = ast.parse((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("liteq")]
    assert ours
    for node in ours:
        for name in node.names:
            assert hasattr(import_module(node.module or ""), name.name), ast.unparse(node)


if __name__ == "__main__":
    sys.exit(1 if run_page(Path(sys.argv[1]), Path(sys.argv[2])) else 0)
