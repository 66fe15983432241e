"""Settings: what the environment means, that they do not change, and what tools must not import."""

from __future__ import annotations

import grp
import os
import pickle
import pwd
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

import casemate
from casemate import settings
from casemate.cli import tool
from casemate.cli.calling import open_call
from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.settings import Settings, load
from casemate.wire.errors import CasemateError, DaemonAccessError, ValueInvalidError
from casemate.wire.qrexec import Command
from casemate.wire.upstream_paths import MARK


def made(**other: str) -> Settings:
    return Settings(state=Path("/s"), run=Path("/r"), cache=Path("/c"), **other)


def test_paths() -> None:
    found = made(hypervisor="system", prefix="x-")
    assert (found.state, found.run, found.cache) == (Path("/s"), Path("/r"), Path("/c"))
    assert (found.hypervisor, found.prefix) == ("system", "x-")
    assert found.store_file == Path("/s/qubes.xml")
    assert found.policy_dir == Path("/s/policy.d")
    assert found.qube_run("work") == Path("/r/qubes/work")
    assert found.database_socket("work") == Path("/r/qubes/work/qubesdb.sock")


def test_addresses_are_the_paths_as_text() -> None:
    found = Settings(state="/s//x/", run="/r/./", cache="c")
    assert Path(found.api_address) == found.api_socket == Path("/r/qubesd.sock")
    assert Path(found.link_address("work")) == found.link_socket("work") == Path("/r/qubes/work/link.sock")


@pytest.mark.parametrize("text", ["/", "/a", "/a/", "//a//b", "/a/./b", "/a/../b", "a/b/", ".", "./a", ""])
def test_text_is_written_as_path_writes_it(text: str) -> None:
    # Two leading slashes are the one thing that Path keeps; Linux does not.
    want = str(Path(text)).replace("//", "/")
    assert Settings(state=text, run="/r", cache="/c").environment()["CASEMATE_STATE"] == want


def test_they_do_not_change() -> None:
    found = made()
    for name in ("state", "hypervisor", "prefix", "_run", "other"):
        with pytest.raises(AttributeError):
            setattr(found, name, "x")
        with pytest.raises(AttributeError):
            delattr(found, name)
    assert found == made()


def test_equal_settings_are_equal_keys() -> None:
    assert made() == made()
    assert hash(made()) == hash(made())
    assert made() != made(prefix="x-")
    assert made() != "settings"
    assert pickle.loads(pickle.dumps(made(prefix="y-"))) == made(prefix="y-")  # noqa: S301
    assert eval(repr(made())) == made()  # noqa: S307


def test_environment_makes_another_process_use_the_same() -> None:
    found = made(hypervisor="session", prefix="x-")
    assert load(found.environment()) == found


def test_one_variable_moves_all_but_the_cache() -> None:
    found = load({"CASEMATE_STATE": "/s", "HOME": "/h"})
    assert (found.state, found.run) == (Path("/s"), Path("/s/run"))
    assert found.cache == load({"HOME": "/h"}).cache


def test_defaults_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load({"XDG_DATA_HOME": "/d", "XDG_RUNTIME_DIR": "/x"}) == Settings(
        state="/var/lib/casemate", run="/run/casemate", cache="/var/cache/casemate"
    )


def test_defaults_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert load({"HOME": "/h", "XDG_RUNTIME_DIR": "/x"}) == Settings(
        state="/h/.local/share/casemate", run="/h/.local/share/casemate/run", cache="/h/.cache/casemate"
    )
    assert load({"HOME": "/h", "XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "/e"}) == Settings(
        state="/d/casemate", run="/d/casemate/run", cache="/e/casemate"
    )


def test_relative_paths_start_here() -> None:
    assert load({"CASEMATE_STATE": "s", "CASEMATE_RUN": "r"}).run == Path("r").absolute()
    assert load({"CASEMATE_STATE": "s"}).state == Path("s").absolute()


def test_unknown_hypervisor_is_refused() -> None:
    with pytest.raises(ValueInvalidError, match="CASEMATE_HYPERVISOR"):
        load({"CASEMATE_HYPERVISOR": "vbox"})


SLOW = (
    "asyncio",
    "dataclasses",
    "inspect",
    "lxml",
    "libvirt",
    "pathlib",
    "shutil",
    "subprocess",
    "typing",
    "urllib",
    "logging",
)


@pytest.mark.parametrize("tool", ["qvm-ls", "qvm-prefs", "qvm-start", "qvm-run", "qvm-shutdown"])
def test_a_tool_imports_nothing_that_costs_it_more_than_its_work(tool: str) -> None:
    program = (
        "import sys\n"
        "from casemate.cli.entry import find\n"
        f"main = find({tool!r})\n"
        "main(['--version'])\n"
        "from casemate.client.transport import Transport\n"
        "Transport()\n"
        f"sys.stderr.write(' '.join(name for name in {SLOW!r} if name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(source())!r})\n{program}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def source() -> Path:
    return Path(casemate.__file__).parent.parent


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that ``casemate interop install`` has laid out, seen by a user who is in its group."""
    release = tmp_path / "qubes-release"
    release.write_text(f"Qubes release 4.3 (Casemate; {MARK})\n")
    monkeypatch.setattr(settings, "RELEASE", str(release))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", lambda: [77])
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=77, gr_mem=[]))
    return release


def test_which_state_a_program_means(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = {"HOME": "/home/me"}
    found = load(home)
    assert (found.state, found.shared, found.api_address) == (Path("/var/lib/casemate"), True, "/var/run/qubesd.sock")
    assert "in the group qubes" in found.origin
    for other in ({"CASEMATE_STATE": "/x"}, {"CASEMATE_RUN": "/x/run"}):
        chosen = load({**home, **other})
        assert not chosen.shared and str(chosen.api_address) == "/x/run/qubesd.sock" and "CASEMATE" in chosen.origin
    # Put into the group, and not logged in again: the host is meant all the same.
    monkeypatch.setattr(os, "getgroups", list)
    assert load(home).state == Path("/home/me/.local/share/casemate") and load(home).origin == "your own"
    me = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=77, gr_mem=[me]))
    assert load(home).shared
    host.write_text("Qubes release 4.2\n")  # a real one: nothing of ours is there
    assert not load(home).shared
    # Without any, a state of the whole host is enough, if it is root's.
    host.unlink()
    monkeypatch.setattr(settings, "WHOLE_HOST", (str(host.parent / "none"), "/run/casemate", "/var/cache/casemate"))
    assert not load(home).shared
    for owner in (0, 1000):
        monkeypatch.setattr(settings.os, "stat", lambda _path, owner=owner: SimpleNamespace(st_uid=owner))
        assert load(home).shared == (owner == 0)
    monkeypatch.undo()
    monkeypatch.setattr(grp, "getgrnam", lambda name: SimpleNamespace(gr_gid=77, gr_mem=[me]))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load(home).state == Path("/var/lib/casemate") and not load(home).shared and "root" in load(home).origin


def test_a_member_of_the_group_never_gets_a_second_daemon(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_args: object) -> NoReturn:
        raise AssertionError("a daemon was started")

    monkeypatch.setattr(os, "posix_spawn", start)
    monkeypatch.setattr(settings, "_SHARED_SOCKETS", str(host.parent))
    with pytest.raises(DaemonAccessError, match="not yours to start"):
        Transport(load({"HOME": "/home/me"})).call("admin.vm.List")
    with pytest.raises(CasemateError, match="are root's"):
        open_call(Qubes(Transport(load({"HOME": "/home/me"}))), "work", Command("user", "x", None, "dom0"), True)


def test_the_option_is_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_STATE", "/elsewhere")
    monkeypatch.setenv("CASEMATE_RUN", "/elsewhere/run")
    seen: list[Settings] = []
    parser = tool.Parser("a-tool", "For a test.")

    def body(_args: object, qubes: Qubes) -> int:
        seen.append(qubes.transport.settings)
        return 0

    assert tool.run(parser, body, ["--state", str(tmp_path)]) == 0
    assert seen[0].state == tmp_path and seen[0].run == tmp_path / "run"
