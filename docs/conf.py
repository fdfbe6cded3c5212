"""How the documentation is built: `make docs`.

Two directives keep the reference true, since they ask the code itself: `liteq-settings`
makes the table of settings, `liteq-help` shows what a command says about itself.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

sys.path.insert(0, str(Path(__file__).parent.parent))

from liteq import __version__

project = "liteq"
author = "the liteq authors"
copyright = "the liteq authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # what docstrings put between single backticks

html_theme = "furo"
html_title = f"liteq {release}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_mock_imports = ["flask", "opentelemetry", "sentry_sdk"]  # not needed to read docstrings
autodoc_default_options = {"members": True, "show-inheritance": True}


class SettingsTable(Directive):
    """The settings of one kind, "used" or "accepted", from the table in `liteq.settings`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        from liteq.settings import SETTINGS

        self.state.document.settings.env.note_reread()  # the page may be older than the code
        rows = [row for row in SETTINGS.values() if row.kind == self.arguments[0]]
        lines = ["| setting | default | |", "|---|---|---|"]
        lines += [f"| `{row.name}` | `{row.default!r}` | {row.doc} |" for row in rows]
        holder = nodes.container()
        self.state.nested_parse(StringList(lines), self.content_offset, holder)
        return holder.children


class Help(Directive):
    """What `liteq WORD … --help` prints."""

    optional_arguments = 4

    def run(self) -> list[nodes.Node]:
        from click.testing import CliRunner

        from liteq.cli.root import cli

        self.state.document.settings.env.note_reread()
        answer = CliRunner().invoke(
            cli, [*self.arguments, "--help"], prog_name="liteq", terminal_width=88
        )
        block = nodes.literal_block(answer.output, answer.output)
        block["language"] = "text"
        return [block]


def separate_numbered_lines(app, what, name, obj, options, lines: list[str]) -> None:
    """Let a numbered list in a docstring leave numbers out, as the promises do."""
    for position in range(len(lines) - 1, 0, -1):
        if re.match(r"\d+\.", lines[position]):
            lines.insert(position, "")


def name_default_objects(app, what, name, obj, options, signature, returns):
    """Show a default that is an object by a name: its repr is no Python, and a signature
    that cannot be parsed is printed raw."""
    if signature:
        signature = re.sub(
            r"<liteq\.clock\.SystemClock object[^>]*>", "system_clock", signature
        )
    return signature, returns


def setup(app) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", separate_numbered_lines)
    app.connect("autodoc-process-signature", name_default_objects)
    app.add_directive("liteq-settings", SettingsTable)
    app.add_directive("liteq-help", Help)
    return {"parallel_read_safe": True}
