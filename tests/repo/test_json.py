"""Declarations of JSON: each is a valid schema, and each tool that writes JSON has one."""

from __future__ import annotations

import jsonschema

from casemate.cli import declarations
from casemate.cli.json_schemas import OUTPUTS, schemas


def test_declarations_are_schemas() -> None:
    assert len(schemas()) == len(OUTPUTS) > 30
    for schema in schemas().values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_tool_with_the_option_is_declared() -> None:
    declared = {one.command.split()[0] for one in OUTPUTS if not one.command.startswith("casemate ")}
    declared |= {"qvm-block", "qvm-pci", "qvm-usb", "qvm-mic"}  # other names of qvm-device
    own = {tuple(one.command.split()[1:3]) for one in OUTPUTS if one.command.startswith("casemate ")}
    for command in declarations.commands():
        if "--json" not in command.options:
            continue
        if command.path[0] == "casemate":
            assert tuple(command.path[1:3]) in {words[: len(command.path) - 1] for words in own}, command.path
        else:
            assert command.path[0] in declared, command.path
