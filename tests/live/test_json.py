"""What tools write with ``--json`` on a real installation is what is declared for it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import jsonschema
import pytest

from casemate.cli.json_schemas import OUTPUTS, schemas
from casemate.streams.ready import readable
from tests.live.world import TEMPLATE, World

pytestmark = pytest.mark.live

SCHEMAS = schemas()


def check(command: str, text: str) -> object:
    """The value in a command's output, which must be as declared."""
    value = json.loads(text)
    jsonschema.Draft202012Validator(SCHEMAS[command]).validate(value)
    return value


def test_every_declared_output_is_as_declared(world: World, usable: str, tmp_path: Path) -> None:
    world.run("qvm-create", "--label", "gray", "small")
    world.run("qvm-features", "small", "service.cups", "1")
    world.run("qvm-tags", "small", "add", "mine")
    world.run("qvm-notes", "small", "--set", "two\nlines \u00e9")
    world.run("qvm-firewall", "small", "add", "drop", "example.org", "tcp", "443", "expire=+3600")
    passphrase, repository = tmp_path / "passphrase", str(tmp_path / "repository")
    passphrase.write_text("not secret\n")
    said = ["-p", str(passphrase), repository]
    world.run("casemate", "backup", "init", *said)
    world.run("casemate", "backup", "create", "-q", "-y", *said, "small")
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    words = {
        "VMNAME": "small", "PROPERTY": "memory", "FEATURE": "service.cups", "SERVICE": "cups", "CLASS": "block",
        "VMNAME:VOLUME": "small:private", "POOL": "default", "SOURCE": "work", "TARGET": "small", "QUBE": "small",
        "PLACE": "example.org:443",
    }  # fmt: skip
    tried: dict[str, object] = {}

    def ask(command: str, *options: str, status: int = 0, **others: str) -> object:
        named = {**words, **others}
        argv = [named.get(word, word) for word in command.split()]
        found = check(command, world.run(*argv, *options, "--json", status=status).stdout.decode())
        tried[command] = found
        return found

    try:
        devices = ask("qvm-device CLASS list")
        assert isinstance(devices, list)
        there = [device for device in devices if device["backend_domain"] == "dom0"]
        if there:  # a host in a container may show no block device at all
            where = f"{there[0]['backend_domain']}:{there[0]['port_id']}"
            ask("qvm-device CLASS info BACKEND:DEVICE", **{"BACKEND:DEVICE": where})
        else:
            tried["qvm-device CLASS info BACKEND:DEVICE"] = None
        ask("qvm-ls", "--disk")
        ask("qubes-prefs PROPERTY", PROPERTY="default_template")
        backups = ask("casemate backup list REPOSITORY", "-p", str(passphrase), REPOSITORY=repository)
        assert isinstance(backups, list) and len(backups) == 1
        ask("casemate backup list REPOSITORY BACKUP", "-p", str(passphrase), REPOSITORY=repository,
            BACKUP=backups[0]["id"])  # fmt: skip
        ask("casemate backup verify REPOSITORY", "-p", str(passphrase), REPOSITORY=repository)
        ask("casemate backup restore REPOSITORY", "-p", str(passphrase), "--yes", "--skip-conflicting",
            REPOSITORY=repository)  # fmt: skip
        ask("casemate policy explain SOURCE SERVICE TARGET", SERVICE="qubes.Filecopy")
        ask("casemate net explain QUBE PLACE", status=1)
        ask("casemate interop status", "--root", str(tmp_path), status=1)
        tried["casemate trace"] = traced(world, usable)
        for one in OUTPUTS:
            if one.command not in tried:
                ask(one.command)
    finally:
        world.run("qvm-remove", "-f", "small", status=None)
    assert set(tried) == set(SCHEMAS)
    # A schema that allows all would prove nothing: some values, too.
    assert tried["qvm-prefs VMNAME PROPERTY"] == {"value": 400, "type": "int", "default": True}
    assert tried["qvm-features VMNAME"] == {"service.cups": "1"} and tried["qvm-service VMNAME SERVICE"] is True
    assert tried["qvm-notes VMNAME"] == {"name": "small", "notes": "two\nlines \u00e9"}
    assert "mine" in tried["qvm-tags VMNAME list"]  # type: ignore[operator]
    assert tried["qvm-firewall VMNAME list"][-1]["dsthost"] == "example.org"  # type: ignore[index]
    assert any(one["name"] == TEMPLATE for one in tried["casemate template list"])  # type: ignore[attr-defined]
    assert {"Running", "Halted"} <= {one["state"] for one in tried["qvm-ls"]}  # type: ignore[attr-defined]


def traced(world: World, qube: str) -> object:
    """A step of a call that is watched."""
    watching = world.start("casemate", "trace", "--json")
    try:
        assert watching.stdout is not None and watching.stderr is not None
        assert readable([watching.stderr], 60) and b"Watching" in os.read(watching.stderr.fileno(), 200)
        world.run("qvm-run", "--pass-io", qube, "true")
        data = b""
        while b'"ended"' not in data or not data.endswith(b"\n"):
            assert readable([watching.stdout], 60), data
            data += os.read(watching.stdout.fileno(), 65536)
        return [check("casemate trace", line) for line in data.decode().splitlines()][-1]
    finally:
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=60)
