"""What every tool of the host takes, read from the parsers that its ``--help`` is made of.

Manual pages, completion and reference pages are written from this. A tool makes its parser when it is called, so it is
called here, and stopped as soon as its parser begins to parse.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn
from unittest import mock

import casemate.cli
from casemate.cli.entry import TOOLS, find

_UNWRAPPED = "100000"


class _Reached(BaseException):
    """Carries a parser out of the tool that made it. No tool catches a BaseException that it does not know."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@dataclass(frozen=True, slots=True)
class Command:
    """A tool, or a command of a tool. ``path`` is what is typed: ``("qvm-tags", "list")``."""

    path: tuple[str, ...]
    aliases: tuple[str, ...]
    help: str
    parser: argparse.ArgumentParser

    @property
    def options(self) -> dict[str, argparse.Action]:
        """Its options that help shows, by each way to write them."""
        return {
            flag: action
            for action in self.parser._actions
            if action.help is not argparse.SUPPRESS
            for flag in action.option_strings
        }

    @property
    def arguments(self) -> list[argparse.Action]:
        """What is not an option, in order; its commands are one of these."""
        return [
            action
            for action in self.parser._actions
            if not action.option_strings and action.help is not argparse.SUPPRESS
        ]


def names() -> list[str]:
    """Every tool of the host by name, but for ``casemate`` itself."""
    modules = {found.name for found in pkgutil.iter_modules(casemate.cli.__path__)}
    return sorted({*TOOLS, *(name.replace("_", "-") for name in modules if name.startswith("qvm_"))})


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a tool; LookupError for a name that is no tool."""
    tool = find(name)
    if tool is None:
        raise LookupError(name)

    def stop(self: argparse.ArgumentParser, *_args: object, **_more: object) -> NoReturn:
        raise _Reached(self)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            tool([])
        except _Reached as reached:
            return reached.parser
    raise LookupError(f"{name} does not parse its command line by argparse")


def commands() -> Iterator[Command]:
    """Every tool, each followed by its commands, and theirs."""
    for name in ("casemate", *names()):
        yield from commands_of(name)


def commands_of(name: str) -> Iterator[Command]:
    """A tool, followed by its commands."""
    parser = parser_of(name)
    yield from _below(Command((name,), (), parser.description or "", parser))


def _below(command: Command) -> Iterator[Command]:
    yield command
    for action in command.parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            aliases: dict[int, list[str]] = {}
            for name, parser in action.choices.items():
                aliases.setdefault(id(parser), []).append(name)
            for first, *others in aliases.values():
                parser = action.choices[first]
                yield from _below(Command((*command.path, first), tuple(others), texts.get(first, ""), parser))


@contextmanager
def unwrapped() -> Iterator[None]:
    """A block in which argparse wraps no lines, which each version of Python does otherwise, and uses no colours, which
    it does on a terminal since Python 3.14."""
    with mock.patch.dict(os.environ, COLUMNS=_UNWRAPPED, NO_COLOR="1"):
        yield
