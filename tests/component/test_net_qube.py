"""What a net qube does when its database tells of changes: real rules in a namespace, a real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.component.served_database import served_database

FIRST, SECOND = "10.137.0.5", "10.137.0.6"
RULE = "action=accept dst4=198.51.100.7"

PROGRAM = f"""
import select, subprocess, sys
from casemate.agent.net_qube import NetQube
from casemate.qdb.client import QubesDB
from casemate.streams.loop import Loop

PATH = sys.argv[1]
host = QubesDB(PATH)

def tell(address):
    host.write(f"/qubes-firewall/{{address}}/0000", b"{RULE}")
    host.write(f"/qubes-firewall/{{address}}", b"")

class Told(QubesDB):
    # Just before the rules of the first qube are read, the host tells of the second's.
    armed = False
    def multiread(self, prefix=""):
        if self.armed and prefix == "/qubes-firewall/{FIRST}/":
            self.armed = False
            tell("{SECOND}")
        return super().multiread(prefix)

database = Told(PATH)
qube = NetQube(Loop(), database)
qube.begin()
qube.watch()
database.armed = True
tell("{FIRST}")
while select.select([database.watch_fd()], [], [], 1)[0]:
    qube.watch()
assert not database.armed
subprocess.run(["nft", "-j", "list", "ruleset"], check=True)
"""


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "qubesdb.sock")


def test_rules_that_come_while_others_are_read_are_loaded_too(database: str) -> None:
    content = {"/connected-ips": f"{FIRST} {SECOND}".encode()}
    content |= {f"/qubes-firewall/{address}/policy": b"drop" for address in (FIRST, SECOND)}
    how = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
    with served_database(Path(database), content):
        done = subprocess.run(
            ["unshare", *how, sys.executable, "-c", PROGRAM, database], capture_output=True, timeout=120
        )
    assert done.returncode == 0, done.stderr.decode()
    rules = [entry["rule"] for entry in json.loads(done.stdout)["nftables"] if "rule" in entry]
    let_through = {rule["chain"] for rule in rules if "198.51.100.7" in json.dumps(rule)}
    assert let_through == {"qbs-10-137-0-5", "qbs-10-137-0-6"}
