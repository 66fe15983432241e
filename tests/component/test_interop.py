"""What programs written for Qubes OS find on this host, and that nothing else is touched."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from casemate.engine.upstream_databases import UpstreamDatabases
from tests.builders import settings_in
from tests.component.rig import SOURCE
from tests.fakes.daemon import running
from tests.unit.test_api import client

BIN = SOURCE.parent / "bin"


def interop(*argv: str, status: int = 0) -> str:
    done = subprocess.run([BIN / "casemate", "interop", *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done
    return done.stdout + done.stderr


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_install_twice_and_remove(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text("here")
    before = tree(tmp_path)
    interop("status", "--root", str(tmp_path), status=1)
    for _ in range(2):
        interop("install", "--root", str(tmp_path))
    assert {line.split()[0] for line in interop("status", "--root", str(tmp_path)).splitlines()} == {"ours"}
    assert os.access(tmp_path / "etc/qubes-rpc/admin.vm.volume.Import", os.X_OK)
    assert (tmp_path / "usr/bin/qvm-appmenus").resolve() == (BIN / "qvm-appmenus").resolve()
    interop("remove", "--root", str(tmp_path))
    assert [path for path in tree(tmp_path) if path not in ("usr", "usr/bin", "usr/lib")] == before


@pytest.mark.parametrize("place", ["etc/qubes-release", "usr/bin/qvm-appmenus"])
def test_what_is_not_ours_stays_and_nothing_is_half_done(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text("Qubes release 4.2\n")
    before = tree(tmp_path)
    assert f"/{place}" in interop("install", "--root", str(tmp_path), status=1)
    assert tree(tmp_path) == before
    interop("remove", "--root", str(tmp_path))
    assert path.read_text() == "Qubes release 4.2\n"


def test_databases_of_running_qubes_are_where_upstreams_tools_look(tmp_path: Path) -> None:
    """Made and removed with each qube, brought up to date by a new daemon; what is not ours stays."""
    settings = settings_in(tmp_path)
    places = tmp_path / "upstream"
    places.mkdir()
    foreign = places / "qubesdb.theirs.sock"
    foreign.symlink_to("/elsewhere")
    databases = UpstreamDatabases(settings, places)
    domain = SimpleNamespace(name="work")

    async def life() -> None:
        await databases.up(SimpleNamespace(domain=domain))  # type: ignore[arg-type]
        assert (places / "qubesdb.work.sock").readlink() == settings.database_socket("work")
        await databases.down(domain)  # type: ignore[arg-type]
        await databases.down(domain)  # type: ignore[arg-type]
        databases.refresh(["other", "theirs"])
        assert sorted(path.name for path in places.iterdir()) == ["qubesdb.other.sock", "qubesdb.theirs.sock"]
        databases.refresh([])
        assert foreign.is_symlink() and tree(places) == ["qubesdb.theirs.sock"]
        nowhere = UpstreamDatabases(settings, None)
        await nowhere.up(SimpleNamespace(domain=domain))  # type: ignore[arg-type]
        nowhere.refresh(["work"])

    asyncio.run(life())
    assert tree(places) == ["qubesdb.theirs.sock"]


def test_the_import_programs_as_upstreams_client_calls_them(tmp_path: Path) -> None:
    """argv[1] is the volume, the target comes in the environment, standard output is a reply of the Admin API."""
    with running(tmp_path) as daemon:
        qubes = client(daemon)
        interop("install", "--root", str(tmp_path / "root"))
        environment = {
            **os.environ, **qubes.transport.settings.environment(),
            "QREXEC_REMOTE_DOMAIN": "dom0", "QREXEC_REQUESTED_TARGET": "work",
        }  # fmt: skip

        def send(program: str, volume: str, data: bytes, **changed: str) -> bytes:
            path = tmp_path / "root/etc/qubes-rpc" / program
            done = subprocess.run(
                [path, volume], input=data, env={**environment, **changed}, capture_output=True, timeout=60
            )
            return done.stdout

        image = os.urandom(300_000)
        assert send("admin.vm.volume.Import", "private", image) == b"0\0"
        assert daemon.parts.volumes.images["work", "private"] == image
        assert send("admin.vm.volume.ImportWithSize", "private", b"512\n" + bytes(511) + b"x") == b"0\0"
        assert daemon.parts.volumes.images["work", "private"] == bytes(511) + b"x"
        assert send("admin.vm.volume.ImportWithSize", "private", b"512\nx").startswith(b"2\0")
        assert send("admin.vm.volume.Import", "nothing", image).startswith(b"2\0")
        assert send("admin.vm.volume.Import", "private", image, QREXEC_REQUESTED_TARGET="no").startswith(b"2\0")
        assert send("admin.vm.volume.Import", "private", image, QREXEC_REMOTE_DOMAIN="work") == b""
