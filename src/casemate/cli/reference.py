"""``python -m casemate.cli.reference DIR``: the reference pages of all tools, from what they say about themselves."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from casemate.agent.entry import TOOLS as GUEST_TOOLS
from casemate.agent.entry import main as guest_main
from casemate.cli import casemate as own_tool
from casemate.cli import json_schemas
from casemate.cli.declarations import names, unwrapped
from casemate.cli.entry import find

NOTE = "<!-- Written by `make docs` from the code: do not edit. -->"
_WIDTH = 100
_HELP_COLUMN = 24  # where argparse begins the help of an option


def _help_of(name: str) -> str:
    tool = find(name)
    if tool is None:
        raise LookupError(name)
    output = io.StringIO()
    with unwrapped(), contextlib.redirect_stdout(output):
        tool(["--help"])
    return output.getvalue()


def _own_help() -> Iterator[str]:
    """``casemate`` and each of its commands."""
    with unwrapped():
        waiting: list[argparse.ArgumentParser] = [own_tool.make_parser()]
        while waiting:
            parser = waiting.pop(0)
            yield parser.format_help()
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    waiting[:0] = action.choices.values()


def _guest_help(name: str) -> str:
    """What a guest's tool says to ``--help``; one that has no such option says it on stderr."""
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        guest_main([name, "--help"])
    text = output.getvalue()
    return text[text.index("usage:") :]


def _block(text: str) -> str:
    lines = [folded for line in text.strip("\n").split("\n") for folded in _fold(line)]
    return "\n".join(["```", *lines, "```"])


def _fold(line: str) -> list[str]:
    """A line of help in lines of at most the page's width."""
    if len(line) <= _WIDTH:
        return [line]
    if line.startswith("usage: "):
        indent = len("usage: ")
    else:
        own = len(line) - len(line.lstrip())
        indent = _HELP_COLUMN if own else 0
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip


def page() -> str:
    """The text of the page."""
    parts = [
        NOTE,
        "# Tools",
        "Each tool also takes `-v`, `-q`, `--version` and `--help`. Exit statuses: [errors](errors.md).",
        "## On the host",
        "### casemate",
    ]
    parts += [_block(text) for text in _own_help()]
    for name in names():
        parts += [f"### {name}", _block(_help_of(name))]
    parts.append("## In a qube")
    # The other names are for the agent's own use.
    shown = (name for name in GUEST_TOOLS if name.startswith(("qvm-", "qrexec-", "qubesdb-")))
    texts = dict.fromkeys(_block(_guest_help(name)) for name in shown)
    return "\n\n".join([*parts, *texts]) + "\n"


PAGES = {"tools.md": page, "json.md": json_schemas.page}
"""Pages by their names, each with what writes it."""


def main(argv: list[str]) -> int:
    """Write the pages to the directory that the first argument names."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m casemate.cli.reference DIR\n")
        return 2
    for name, write in PAGES.items():
        path, text = Path(argv[0]) / name, write()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
