"""Every option of upstream's tools is an option of ours, and takes a value where theirs does."""

from __future__ import annotations

import argparse

import pytest

from casemate.cli import entry
from casemate.cli.declarations import parser_of
from tests.contract.upstream_options import COMMON, OPTIONS


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


@pytest.mark.parametrize("line", OPTIONS)
def test_every_option_of_upstream_is_taken(line: str) -> None:
    name, _, commands = line.partition(" ")
    whole = parser_of(name)
    for command in commands.split("|"):
        parser = commands_of(whole)[command] if command else whole
        for option in [*OPTIONS[line].split(), *COMMON.split()]:
            flag = option.removesuffix("=")
            # qvm-pool hands a command line with one of these to qvm-pool-legacy, which has them.
            action = parser._option_string_actions.get(flag)
            assert action is not None, f"{name} {command}: no {flag}"
            assert (action.nargs != 0) == option.endswith("="), f"{name} {command}: {flag}"


def test_options_that_can_do_nothing_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    # The daemon is not asked: the wrong command line ends the tool after its options were read.
    assert entry.main(["qvm-run", "--gui"]) == 2
    assert "--gui does nothing here: qubes draw on no screen" in capsys.readouterr().err
    assert entry.main(["qvm-template", "--enablerepo", "x", "--refresh", "install"]) == 2
    said = capsys.readouterr().err
    assert "--enablerepo does nothing here" in said and "--refresh does nothing here" in said
