"""A link that root starts runs as its qube's user and nothing more, whatever groups the daemon has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import short_directory
from tests.component.rig import SOURCE

UID, GID = 1_900_000_007, 1_900_000_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")
def test_a_link_keeps_neither_root_nor_a_group_of_the_daemon() -> None:
    with short_directory() as directory:
        os.chown(directory, UID, GID)
        description = {
            "name": "work", "directory": str(directory), "default_user": "user", "database": {}, "uid": UID, "gid": GID
        }  # fmt: skip
        link = subprocess.Popen(
            [sys.executable, "-S", "-m", "casemate.link", "work"], env={"PYTHONPATH": str(SOURCE)}, extra_groups=[3, 4],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert link.stdin is not None and link.stdout is not None
            link.stdin.write(json.dumps(description).encode())
            link.stdin.close()
            assert link.stdout.readline() == b"listening\n"
            text = Path(f"/proc/{link.pid}/status").read_text()
            status = {key: value.split() for key, _, value in (line.partition(":") for line in text.splitlines())}
            # Real, effective, saved and file system id: none of them leads back to root.
            assert (status["Uid"], status["Gid"]) == ([str(UID)] * 4, [str(GID)] * 4)
            assert status["Groups"] == []
            assert {int(status[name][0], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {0}
            assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
            for name in ("link.sock", "qubesdb.sock"):
                found = (directory / name).stat()
                assert (found.st_uid, found.st_mode & 0o777) == (UID, 0o600)
        finally:
            link.kill()
            link.wait()
            if link.stdout is not None:
                link.stdout.close()
