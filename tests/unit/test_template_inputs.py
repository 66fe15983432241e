"""What goes into templates: Debian's sources only, the agent packed alike each time, one builder at a time."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from casemate.host import debian_archive
from casemate.host.agent_package import FAST_TOOLS, TOOLS, guest_files, zipapp
from casemate.host.build_lock import build_directory, build_lock
from casemate.wire.errors import TemplateBuildError

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/other
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg

Types: deb
URIs: http://mirror.example/embedded
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQENBF
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://mirror.example/off
Suites: bookworm
Components: main
Enabled: no
"""

ONE_LINE = """\
deb http://mirror.example/debian-security bookworm-security main # security
deb [arch=amd64] http://mirror.example/arch bookworm main
deb [signed-by=/usr/share/keyrings/vendor.gpg] http://mirror.example/vendor bookworm main
deb http://mirror.example/sid sid main
deb http://mirror.example/vendor bookworm stable
deb-src http://mirror.example/debian bookworm main
# deb http://mirror.example/commented bookworm main
"""


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "sources.list.d"
    directory.mkdir()
    monkeypatch.setattr(debian_archive, "_SOURCES", tmp_path / "sources.list")
    monkeypatch.setattr(debian_archive, "_SOURCES_DIR", directory)
    return tmp_path


def test_only_debians_sources_of_this_release_are_handed_on(etc: Path) -> None:
    (etc / "sources.list.d" / "debian.sources").write_text(DEB822)
    (etc / "sources.list").write_text(ONE_LINE)
    assert debian_archive.sources("bookworm").splitlines() == [
        "deb http://mirror.example/debian-security bookworm-security main",
        "deb http://mirror.example/arch bookworm main",
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/debian bookworm-updates main",
    ]


def test_the_hosts_mirror_serves_other_suites_too(etc: Path) -> None:
    (etc / "sources.list.d" / "debian.sources").write_text(DEB822)
    (etc / "sources.list").write_text("deb http://mirror.example/debian-security bookworm-security main\n")
    assert debian_archive.sources("trixie").splitlines() == [
        "deb http://mirror.example/debian-security trixie-security main",
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
    ]
    # Unstable has neither updates nor security.
    assert debian_archive.sources("sid") == "deb http://mirror.example/debian sid main\n"
    # A source that is there for the wanted suite is taken, and no other is bent to it.
    (etc / "sources.list").write_text("deb http://mirror.example/sid sid main\n")
    assert debian_archive.sources("sid") == "deb http://mirror.example/sid sid main\n"


def test_a_host_without_debians_sources_leaves_them_to_mmdebstrap(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (etc / "sources.list").write_text(
        "deb http://mirror.example/ubuntu noble main\ndeb http://x.example/y noble universe\n"
    )
    assert debian_archive.sources("trixie") == ""
    monkeypatch.setattr(debian_archive, "_KEYRING", etc / "no-keyring.gpg")
    assert debian_archive.keyring(have_sources=True) is None
    with pytest.raises(TemplateBuildError, match="debian-archive-keyring"):
        debian_archive.keyring(have_sources=False)


def test_agent_is_packed_the_same_each_time_and_runs(tmp_path: Path) -> None:
    version = sys.version_info[:2]
    packed = zipapp(version)
    assert packed == zipapp(version)
    names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    assert "casemate/agent/main.pyc" in names and "casemate/wire/mux.py" in names
    assert not any(name.startswith(("casemate/engine", "casemate/host", "casemate/model")) for name in names)
    path = tmp_path / "agent.pyz"
    path.write_bytes(packed)
    tried = "import sys; sys.path.insert(0, sys.argv[1]); import casemate.agent.main as m; print(m.__file__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", tried, str(path)], capture_output=True, text=True)
    assert done.stdout.strip() == f"{path}/casemate/agent/main.pyc", done.stderr
    unknown = subprocess.run([sys.executable, "-I", "-S", str(path), "no-such-tool"], capture_output=True)
    assert unknown.returncode == 127


def test_another_python_gets_no_bytecode() -> None:
    assert not [n for n in zipfile.ZipFile(io.BytesIO(zipapp((3, 99)))).namelist() if n.endswith(".pyc")]


@pytest.mark.parametrize("kind", ["lean", "systemd"])
def test_every_tool_and_service_is_in_the_template(kind: str) -> None:
    files = {file.path: file for file in guest_files(kind, None, b"program", b"tools")}
    assert {f"/usr/bin/{name}" for name in TOOLS + FAST_TOOLS} <= set(files)
    assert {files[f"/usr/bin/{name}"].link for name in FAST_TOOLS} == {"/usr/lib/casemate/tools"}
    assert files["/usr/bin/qvm-copy"].mode == 0o755
    assert "/etc/qubes-rpc/qubes.VMShell" in files
    assert ("/usr/lib/systemd/system/casemate-agent.service" in files) == (kind == "systemd")


def test_one_builder_at_a_time_and_leftovers_go(tmp_path: Path) -> None:
    target = tmp_path / "result"
    left = tmp_path / ".result.0badc0de.building"
    left.mkdir()
    said: list[str] = []
    order: list[str] = []

    async def build(name: str, inside: asyncio.Event, leave: asyncio.Event) -> None:
        async with build_lock(target, said.append):
            order.append(name)
            with build_directory(target) as work:
                (work / "half").touch()
                inside.set()
                await leave.wait()

    async def scenario() -> None:
        first, second, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
        one = asyncio.create_task(build("one", first, leave))
        await first.wait()
        other = asyncio.create_task(build("other", second, leave))
        while not said:
            await asyncio.sleep(0)
        assert order == ["one"] and not left.exists()
        leave.set()
        await asyncio.gather(one, other)

    asyncio.run(scenario())
    assert order == ["one", "other"]
    assert said == ["waiting: another process builds result"]
    assert [path.name for path in tmp_path.iterdir()] == [".result.lock"]
