"""Every command of ours that a page shows is one that its tool's parser takes."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from casemate.cli import declarations

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]
TOOLS = frozenset({"casemate", *declarations.names()})
_ENDS = frozenset({"|", "||", "&&", ";", "&", ">", ">>", "<", "2>"})
_IN_QUBES = frozenset({"qvm-copy", "qvm-move", "qvm-copy-to-vm", "qvm-move-to-vm", "qvm-open-in-vm", "qvm-open-in-dvm"})
"""Tools that are inside a qube, too, with other arguments."""


@cache
def parser_of(name: str) -> argparse.ArgumentParser:
    return declarations.parser_of(name)


def shown(text: str) -> Iterator[str]:
    """Lines of the blocks of a page that are a shell's."""
    for block in re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```$", text, re.M | re.S):
        yield from block.replace("\\\n", " ").splitlines()


def commands(line: str) -> Iterator[list[str]]:
    """The commands of ours in a line: each as its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if word in _ENDS or set(word) <= set("|&;<>"):
            while command and (command[0] in ("sudo", "$", "time") or re.fullmatch(r"[A-Z_]+=.*", command[0])):
                command.pop(0)
            if command and command[0].rpartition("/")[2] in TOOLS:
                yield [command[0].rpartition("/")[2], *command[1:]]
            command = []
        else:
            command.append(word)


def documented() -> list[tuple[str, tuple[str, ...]]]:
    found = {}
    for page in PAGES:
        for line in shown(page.read_text()):
            for words in commands(line):
                if words[0] not in _IN_QUBES:
                    found[str(page.relative_to(ROOT)), tuple(words)] = None
    return list(found)


def test_there_are_many() -> None:
    assert len(documented()) > 80 and len({words[0] for _page, words in documented()}) > 15


@pytest.mark.parametrize(
    ("page", "words"), documented(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_a_command_of_a_page_parses(page: str, words: tuple[str, ...]) -> None:
    said = io.StringIO()
    # Names that a reader puts in are in capitals; where a number is wanted the page has one.
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parser_of(words[0]).parse_args([word for word in words[1:] if word not in ("...", "\u2026")])
        except SystemExit as stop:
            assert stop.code in (0, None), f"{page}: {' '.join(words)}: {said.getvalue().splitlines()[-1]}"
