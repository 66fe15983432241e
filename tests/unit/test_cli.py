"""The tools: what they print, what they return, what they leave; in this process, over the real socket.

One file although it is long: every tool is tried in the same small world, set up once here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli import entry
from casemate.devices.device_class import HostDevice
from casemate.store.store import Store
from tests.fakes.shell import Shell, found_by_tools


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    with found_by_tools(tmp_path, monkeypatch) as daemon:
        found = Shell(daemon, capsys)
        found("qvm-create -C TemplateVM -l black deb")
        found("qvm-create -l orange -t deb net --prop provides_network=True --prop netvm=")
        found("qubes-prefs default_netvm net")
        found("qvm-create -l blue -t deb work")
        yield found


def test_list(shell: Shell) -> None:
    shell("qvm-start work")
    assert shell("qvm-ls") == (
        "NAME  STATE    CLASS       LABEL   TEMPLATE  NETVM\n"
        "deb   Halted   TemplateVM  black   -         -\n"
        "dom0  Running  AdminVM     black   -         -\n"
        "net   Running  AppVM       orange  deb       -\n"
        "work  Running  AppVM       blue    deb       net\n"
    )
    assert shell("qvm-ls --raw-list") == "deb\ndom0\nnet\nwork\n"
    assert shell("qvm-ls --raw-data -O name,initialmem,vcpus work deb") == "deb|400|2\nwork|400|2\n"
    # Memory is what a running qube has now; a halted one has none.
    assert shell("qvm-ls --raw-data -O name,memory,flags work deb").splitlines() == [
        "deb|-|t-U-----",
        "work|400|ar------",
    ]
    assert shell("qvm-ls --raw-list", "w*k", "d?b") == "deb\nwork\n"
    assert shell("qvm-ls --running --class AppVM --raw-list") == "net\nwork\n"
    assert shell("qvm-ls --halted --raw-list") == "deb\n"
    assert shell("qvm-ls --all --exclude net --label blue orange --raw-list") == "work\n"
    assert shell("qvm-ls --netvm-is net --raw-list") == "work\n"
    assert shell("qvm-ls --template-source deb --sort name --reverse --raw-list") == "work\nnet\n"
    assert shell("qvm-ls --prefs memory=400 provides_network=True --raw-list") == "net\n"
    tree = shell("qvm-ls --tree -O name").split()
    assert tree[tree.index("net") + 1] == "└─work"
    assert shell("qvm-ls -n work").splitlines()[1].split() == [
        "work",
        "Running",
        "net",
        "10.137.0.3",
        "-",
        "10.137.0.2",
    ]
    assert shell("qvm-ls -d work").splitlines()[0].split()[:4] == ["NAME", "STATE", "DISK", "PRIV-CURR"]
    assert json.loads(shell("qvm-ls --format json work")) == [
        {"name": "work", "state": "Running", "class": "AppVM", "label": "blue", "template": "deb", "netvm": "net"}
    ]
    assert shell("qvm-ls --help-formats").startswith("Available formats:\n  disk     NAME,STATE,DISK")
    assert "PRIV-USED" in shell("qvm-ls --help-columns")
    for line in ("qvm-ls nobody", "qvm-ls --sort memory", "qvm-ls --exclude net", "qvm-ls --features x", "qvm-ls -o x"):
        shell(line, status=2)
    shell("qvm-features work servicevm 1")
    assert shell("qvm-ls --servicevm y --raw-list") == shell("qvm-ls --servicevm yes --raw-list") == "work\n"
    assert shell("qvm-ls --internal no --raw-list").split() == ["deb", "dom0", "net", "work"]
    assert shell("qvm-ls --features servicevm=1 --tags created-by-dom0 --raw-list") == "work\n"


def test_preferences(shell: Shell) -> None:
    shell("qvm-prefs work memory 600")
    assert shell("qvm-prefs work memory") == "600\n"
    whole = shell("qvm-prefs work")
    assert "\ndevices_denied        D  \n" in whole and "\nbackup_timestamp      U\n" in whole
    lines = {line.split()[0]: line.split()[1:] for line in whole.splitlines()}
    assert lines["memory"] == ["-", "600"] and lines["vcpus"] == ["D", "2"] and lines["backup_timestamp"] == ["U"]
    assert lines["default_dispvm"] == ["D", "None"] and lines["netvm"] == ["D", "net"] and len(lines) == 48
    hidden = shell("qvm-prefs --hide-default work").splitlines()
    assert {line.split()[0] for line in hidden} >= {"memory", "name", "backup_timestamp"}
    assert (shell("qvm-prefs work start_time"), shell("qvm-prefs work virt-mode")) == ("\n", "pvh\n")
    assert (shell("qvm-prefs work stubdom_mem"), shell("qvm-prefs --hide-default work vcpus")) == ("", "")
    shell("qvm-prefs work memory --default")
    shell("qvm-prefs work netvm", "")
    assert (shell("qvm-prefs work memory"), shell("qvm-prefs work netvm")) == ("400\n", "")
    assert "MiB" in shell("qvm-prefs work --help-properties")
    shell("qvm-prefs work memory lots", status=1)
    assert shell.err == "qvm-prefs: error: work: memory: Invalid number: 'lots'; it has 1 to 19 characters: digits\n"
    shell("qvm-prefs work nothing", status=2)
    shell("qvm-prefs nobody", status=2)
    shell("qvm-prefs work --default", status=2)
    assert "default_netvm" in shell("qubes-prefs") and shell("qubes-prefs default_netvm") == "net\n"
    shell("qubes-prefs default_netvm deb", status=1)


def kernel(shell: Shell, name: str) -> None:
    directory = shell.daemon.store.path.parent / "kernels" / name
    directory.mkdir(parents=True)
    (directory / "vmlinuz").touch()


def test_what_would_make_the_next_start_impossible_is_refused(shell: Shell) -> None:
    """And the value until now stays: every qube still starts after it."""
    shell("qubes-prefs default_kernel 6.1", status=1)
    assert "there is none yet: casemate template build" in shell.err
    kernel(shell, "6.1")
    kernel(shell, "6.12")
    shell("qubes-prefs default_kernel 6.1")
    for line in ("qubes-prefs -D default_kernel", "qubes-prefs default_kernel"):
        shell(line, *([] if "-D" in line else [""]), status=1)
        assert "must have one; there are 6.1, 6.12" in shell.err and shell("qubes-prefs default_kernel") == "6.1\n"
    for value, said in (("nosuch", "no such kernel: 'nosuch'; there are 6.1, 6.12"), ("", "must have one")):
        shell("qvm-prefs work kernel", value, status=1)
        assert said in shell.err and shell("qvm-prefs work kernel") == "6.1\n"
    shell("qvm-prefs work kernel 6.12")
    shell("qvm-prefs -D work kernel")
    for value, said in (("10", "too little"), ("10000000", "this host has"), ("many", "Invalid number")):
        shell(f"qvm-prefs work memory {value}", status=1)
        assert said in shell.err and shell("qvm-prefs work memory") == "400\n"
    shell("qvm-prefs work vcpus 300", status=1)
    assert "128 processors at most" in shell.err
    shell("qubes-prefs default_pool nosuch", status=1)
    assert "there are default" in shell.err
    assert "unless this is set" in shell("qvm-prefs work --help-properties")


def test_features_services_and_tags(shell: Shell) -> None:
    shell("qvm-features work gui 1")
    shell("qvm-features work empty", "")
    shell("qvm-service work cups on")
    shell("qvm-service -d work crond")
    assert shell("qvm-features work") == "empty          \ngui            1\nservice.crond  \nservice.cups   1\n"
    assert shell("qvm-service work") == "crond  off\ncups   on\n" and shell("qvm-service work cups") == "on\n"
    assert shell("qvm-features work gui") == "1\n"
    shell("qvm-service work cups maybe", status=1)
    shell("qvm-service work cups TRUE")
    shell("qvm-features --unset work gui")
    shell("qvm-features work gui", status=1)
    shell("qvm-service -D work cups")
    shell("qvm-service work cups", status=1)
    shell("qvm-tags work add mine yours")
    assert shell("qvm-tags work") == shell("qvm-tags work ls") == "created-by-dom0\nmine\nyours\n"
    shell("qvm-tags work list mine")
    shell("qvm-tags work del mine never-there")
    shell("qvm-tags work list mine", status=1)
    shell("qvm-tags work add -- -x", status=1)


def test_start_and_stop(shell: Shell) -> None:
    shell("qvm-start work")
    shell("qvm-start work", status=1)
    assert shell.err == "qvm-start: error: domain work is already running\n"
    shell("qvm-start --skip-if-running work")
    shell("qvm-start nobody", status=2)
    shell("qvm-start", status=2)
    shell("qvm-pause work")
    shell("qvm-check --paused work")
    assert shell.err == "qvm-check: work: paused\n"
    shell("qvm-unpause work")
    shell("qvm-unpause work", status=1)
    shell("qvm-shutdown net", status=1)
    assert "provides network" in shell.err
    shell("qvm-shutdown --wait net work")
    assert shell("qvm-ls --running --raw-list") == "dom0\n"
    shell("qvm-shutdown work")
    shell("qvm-kill work")
    shell("qvm-start --all")
    assert shell("qvm-ls --running --raw-list") == "deb\ndom0\nnet\nwork\n"
    shell("qvm-shutdown --all --wait")
    shell.daemon.parts.power.broken.add("deb")
    shell("qvm-start deb work", status=1)
    assert "it is broken" in shell.err and shell("qvm-ls --running --raw-list") == "dom0\nnet\nwork\n"
    shell("qvm-kill --all")
    assert shell("qvm-ls --running --raw-list") == "dom0\n"


def test_a_qube_that_does_not_stop_is_killed_in_the_end(shell: Shell) -> None:
    shell("qvm-start work")
    shell.daemon.parts.power.deaf.add("work")
    shell("qvm-shutdown --wait --timeout 0.1 work")
    assert "work did not stop in time" in shell.err
    assert "work" not in shell.daemon.parts.machines


def test_check(shell: Shell) -> None:
    shell("qvm-start work")
    assert shell("qvm-check work deb") == "" and shell.err == "qvm-check: deb: exists\nqvm-check: work: exists\n"
    assert shell("qvm-check --running work deb", status=3) == "" and shell.err == "qvm-check: work: running\n"
    assert shell("qvm-check -q --running deb", status=1) == "" and shell.err == ""
    shell("qvm-check --running --template net deb", status=1)
    assert shell.err == "qvm-check: None of qubes: running, template\n"
    shell("qvm-check nobody", status=1)
    assert shell.err == "qvm-check: nobody: non-existent!\n"
    shell("qvm-check --template deb")
    shell("qvm-check --networked work")
    shell("qvm-check --networked deb", status=1)
    shell("qvm-check --all --exclude deb --running")
    shell("qvm-check", status=2)


def test_create_clone_remove(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "AppVM\n" in shell("qvm-create --help-classes")
    shell("qvm-create new", status=2)
    shell("qvm-create -l red new", status=1)  # no default template
    shell("qvm-create -l red -t deb new --prop memory=nonsense", status=1)
    shell("qvm-create -l red -t deb new --prop nonsense", status=2)
    shell("qvm-create -l red -t deb -P nowhere new", status=1)
    shell("qvm-create -l red -t nobody new", status=1)
    shell("qvm-create -l mauve -t deb new", status=2)
    shell("qvm-create -l red -t deb", "a b", status=1)
    assert "letters, digits" in shell.err
    assert shell("qvm-ls --raw-list") == "deb\ndom0\nnet\nwork\n"
    shell("qvm-create -l red --standalone -t deb alone")
    assert shell("qvm-prefs alone klass") == "StandaloneVM\n"
    shell("qvm-prefs work memory 640")
    shell("qvm-tags work add mine")
    shell("qvm-clone work twin")
    assert shell("qvm-prefs twin memory") == "640\n" and "mine" in shell("qvm-tags twin")
    shell("qvm-clone nobody twin2", status=2)
    shell("qvm-clone work twin", status=1)
    shell("qvm-remove -f deb", status=1)
    assert "is used as template" in shell.err
    shell("qvm-remove -f dom0", status=1)
    shell("qvm-remove -f nobody", status=2)
    monkeypatch.setattr("sys.stdin", Answers("n\n"))
    shell("qvm-remove twin", status=1)
    monkeypatch.setattr("sys.stdin", Answers("yes\n"))
    assert "twin" in shell("qvm-remove twin")
    shell("qvm-remove -f", "fitting-none*")
    assert "no qube fits" in shell.err
    shell("qvm-remove -f --all --exclude deb --exclude work --exclude net")
    assert shell("qvm-ls --raw-list") == "deb\ndom0\nnet\nwork\n"


class Answers:
    """Standard input of somebody who was asked."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)

    def readline(self) -> str:
        return next(self._lines, "")


@pytest.mark.parametrize("name", sorted(entry.TOOLS))
def test_every_tool_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name} ") and "--verbose" in text
    assert entry.main([name, "--version"]) == 0
    assert capsys.readouterr().out.startswith(name)
    assert entry.main([name, "--no-such-option"]) == 2


def test_the_program_that_runs_them(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "casemate.cli"]
    done = subprocess.run([*run, "no-such-tool"], capture_output=True)
    assert done.returncode == 2 and b"No such tool" in done.stderr
    done = subprocess.run([*run, "qvm-ls", "--help"], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"usage: qvm-ls")


def test_a_reader_that_goes_away_is_no_fault(shell: Shell) -> None:
    program = f"{sys.executable} -m casemate.cli qvm-ls | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {program}"], capture_output=True)
    assert done.returncode in (0, 141) and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def test_notes(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell("qvm-notes work --set", "first")
    shell("qvm-notes work --append", "second")
    assert shell("qvm-notes -p work") == "first\nsecond\n"
    (tmp_path / "file").write_text("from a file\n")
    shell(f"qvm-notes work --import {tmp_path / 'file'}")
    assert shell("qvm-notes --print work") == "from a file\n\n"
    monkeypatch.setenv("EDITOR", "sed -i s/file/editor/")
    shell("qvm-notes work")
    assert shell("qvm-notes --print work") == "from a editor\n\n"
    monkeypatch.setenv("EDITOR", "false")
    shell("qvm-notes work", status=1)
    monkeypatch.setattr("sys.stdin", Answers("no\n"))
    shell("qvm-notes --delete work", status=2)
    shell("qvm-notes -f --delete work")
    assert shell("qvm-notes -p work") == "\n"
    shell("qvm-notes -p nobody", status=2)


def test_firewall(shell: Shell) -> None:
    shell("qvm-firewall work add drop")
    shell("qvm-firewall work add --before 1 accept dsthost=10.1.2.3 proto=tcp dstports=80", "comment=the web")
    assert shell("qvm-firewall work") == (
        "NO  ACTION  HOST         PROTOCOL  PORT(S)  SPECIAL TARGET  ICMP TYPE  EXPIRE  COMMENT\n"
        "0   accept  -            -         -        -               -          -       -\n"
        "1   accept  10.1.2.3/32  tcp       80       -               -          -       the web\n"
        "2   drop    -            -         -        -               -          -       -\n"
    )
    shell("qvm-firewall work del --rule-no 0")
    shell("qvm-firewall work del action=drop")
    shell("qvm-firewall work del drop", status=2)
    shell("qvm-firewall work del --rule-no 7", status=2)
    shell("qvm-firewall work add accept dsthost=1.2.3", status=1)
    for wrong in ("add accept 1.2.3.4 tcp 80 8", "add accept dsthost=", "add accept foo=bar", "add"):
        shell(f"qvm-firewall work {wrong}", status=2)
    raw = "action=accept proto=tcp dst4=10.1.2.3/32 dstports=80-80 comment=the web\n"
    assert shell("qvm-firewall --raw --reload work list") == raw
    assert json.loads(shell("qvm-firewall --format json work"))[0]["dstports"] == "80-80"
    shell("qvm-firewall work reset")
    for line in ("accept example.com tcp 443", "accept fd00::/8 icmp 8", "accept proto=tcp example.org 80",
                 "drop 10.0.0.0/8", "accept dst4=example.net udp", "action=accept specialtarget=dns"):  # fmt: skip
        shell(f"qvm-firewall work add {line}")
    assert shell("qvm-firewall work list --raw", status=2) == ""
    assert shell("qvm-firewall --raw work").splitlines()[1:] == [
        "action=accept proto=tcp dsthost=example.com dstports=443-443",
        "action=accept proto=icmp dst6=fd00::/8 icmptype=8",
        "action=accept proto=tcp dsthost=example.org dstports=80-80",
        "action=drop dst4=10.0.0.0/8",
        "action=accept proto=udp dsthost=example.net",
        "action=accept specialtarget=dns",
    ]
    shell("qvm-firewall work add accept expire=+300")
    assert " +300s " in shell("qvm-firewall -r work list") or " +299s " in shell.out
    shell("qvm-firewall work del drop 10.0.0.0/8")
    shell("qvm-firewall work reset")
    assert shell("qvm-firewall --raw work") == "action=accept\n"


def test_volumes(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell("qvm-volume list -p default work net:private") == (
        "POOL:VOLUME            VMNAME  VOLUME_NAME  REVERT_POSSIBLE\n"
        "default:net/private    net     private      No\n"
        "default:work/private   work    private      No\n"
        "default:work/root      work    root         No\n"
        "default:work/volatile  work    volatile     No\n"
    )
    assert shell("qvm-volume list --full -p default", "w*:private").splitlines()[1:] == [
        "default:work/private  work    private      No"
    ]
    assert len(shell("qvm-volume list --all --exclude deb --exclude net").splitlines()) == 1 + len(
        shell("qvm-volume ls work").splitlines()[1:]
    )
    shell("qvm-volume list -p nowhere", status=2)
    shell("qvm-volume list nobody", status=2)
    shell("qvm-volume resize work:private 3GiB")
    assert shell("qvm-volume info work:private size") == f"{3 << 30}\n"
    shell("qvm-volume resize work:private 1G", status=1)
    shell("qvm-volume resize work:private much", status=1)
    shell("qvm-volume resize work:private 4G")  # units without an i are powers of 1000, as upstream reads them
    assert shell("qvm-volume info work:private size") == "4000000000\n"
    shell("qvm-volume config work:private revisions_to_keep 5")
    assert "revisions_to_keep  5" in shell("qvm-volume info work:private")
    assert [line.split()[0] for line in shell("qvm-volume info work:root").splitlines()] == [
        "pool", "vid", "rw", "source", "save_on_stop", "snap_on_start", "size", "usage", "revisions_to_keep",
        "ephemeral", "is_outdated", "List",
    ]  # fmt: skip
    assert shell("qvm-volume info work:root is_outdated") == "False\n"
    shell("qvm-volume info work:root nothing", status=1)
    shell("qvm-volume config work:private nothing 1", status=1)
    shell("qvm-volume config work:private revisions_to_keep -- -1")
    assert "revisions_to_keep  -1 (snapshot disabled)\n" in shell("qvm-volume info work:private")
    assert json.loads(shell("qvm-volume --format json info work:private"))["revisions"] == []
    shell("qvm-volume revert work:private", status=1)
    image = tmp_path / "image"
    image.write_bytes(b"x" * 200_000)
    shell(f"qvm-volume import work:private {image}")
    assert shell.daemon.parts.volumes.images["work", "private"] == image.read_bytes()
    monkeypatch.setattr("sys.stdin", Answers("n\n"))
    shell("qvm-volume clear work:private", status=1)
    shell("qvm-volume clone work:private net:private", status=1)
    shell("qvm-volume clone -f work:private net:private")
    assert shell("qvm-volume info net:private size") == shell("qvm-volume info work:private size")
    shell("qvm-volume clone -f work:root net:root", status=1)
    shell("qvm-volume clear --force work:private")
    assert ("work", "private") not in shell.daemon.parts.volumes.images
    shell("qvm-start work")
    shell(f"qvm-volume import work:private {image}", status=1)
    shell("qvm-volume info work", status=2)


def test_pools(shell: Shell) -> None:
    shell("qvm-pool add second qcow2 -o revisions_to_keep=2")
    assert shell("qvm-pool") == (
        "NAME          DRIVER\ndefault       qcow2\nlinux-kernel  linux-kernel\nsecond        qcow2\n"
    )
    assert shell("qvm-pool info second").startswith("name               second\ndriver             qcow2\n")
    assert shell("qvm-pool -i second") == shell("qvm-pool info second") and shell("qvm-pool -l") == shell("qvm-pool")
    assert shell("qvm-pool --help-drivers") == shell("qvm-pool drivers")
    shell("qvm-pool set second -o revisions_to_keep=3")
    assert "revisions_to_keep  3\n" in shell("qvm-pool info second")
    assert [line.split()[:2] for line in shell("qvm-pool drivers").splitlines()] == [
        ["DRIVER", "OPTIONS"], ["file", "dir_path,"], ["file-reflink", "dir_path,"], ["qcow2", "dir_path,"],
    ]  # fmt: skip
    assert "no option 'colour'" in shell("qvm-pool set second -o colour=red", status=1) + shell.err
    shell("qvm-pool remove second")
    shell("qvm-pool remove default", status=1)
    assert [pool["name"] for pool in json.loads(shell("qvm-pool --format json list"))] == ["default", "linux-kernel"]


def test_volumes_keep_as_many_older_states_as_their_pool_says(shell: Shell) -> None:
    """As upstream: until a volume is given a number of its own. What is stored for it stays unsaid, so that it goes on
    following its pool."""
    shell("qvm-pool add second qcow2")
    shell("qvm-create -l red -t deb -P second kept")
    for line, shown in (("", "1"), ("qvm-pool set second -o revisions_to_keep=3", "3"),
                        ("qvm-volume config kept:root rw True", "3"), ("qvm-volume resize kept:private 3GiB", "3"),
                        ("qvm-pool set second -o revisions_to_keep=-1", "-1"),
                        ("qvm-volume config kept:private revisions_to_keep 2", "2"),
                        ("qvm-pool set second -o revisions_to_keep=4", "2")):  # fmt: skip
        if line:
            shell(line)
        assert shell("qvm-volume info kept:private revisions_to_keep") == f"{shown}\n", line
        assert shell("qvm-volume info kept:volatile revisions_to_keep") == "0\n"
    assert shell("qvm-volume info work:private revisions_to_keep") == "1\n"
    again = Store(shell.daemon.store.path).snapshot().domains
    assert again["kept"].volume("private").own_revisions and not again["work"].volume("private").own_revisions


def test_devices(shell: Shell) -> None:
    device = HostDevice("usb", "1-2", "1234:5678::u000000", "1234", "5678", "it's a \\ stick", "", "u080650")
    shell.daemon.parts.devices.offered = lambda klass: [device] if klass == "usb" else []  # type: ignore[method-assign]
    line = "dom0:1-2  USB_Storage: 1234 it's a \\ stick  \n"
    assert shell("qvm-usb") == shell("qvm-usb ls dom0 --with-sbdf") == line
    assert shell("qvm-usb ls work") == shell("qvm-usb ls --all") == ""  # --all is all qubes but dom0
    assert shell("qvm-usb info dom0:1-2") == "USB_Storage: 1234 it's a \\ stick\ndevice ID: 1234:5678::u000000\n"
    assert json.loads(shell("qvm-device --format json usb list dom0"))[0]["interfaces"] == "u080650"
    assert shell("qvm-block list") == ""
    assert shell("qvm-device --list-device-classes") == shell("qvm-usb --list-classes") == "block\npci\nusb\n"
    shell("qvm-usb attach work dom0:1-2", status=1)
    assert "is not running" in shell.err
    shell("qvm-usb attach --persistent work dom0:1-2 -o ro=no")
    assert shell("qvm-usb ls -s").splitlines()[1].split()[-4:] == ["device", "*work", "(required:", "read-only=no)"]
    shell("qvm-usb detach work dom0:1-2", status=1)
    shell("qvm-usb attach work nothing", status=2)
    shell("qvm-device nosuch ls", status=1)
    assert "there are block, pci, usb" in shell.err


def test_assignments_of_devices(shell: Shell) -> None:
    sda = HostDevice("block", "sda", "S-1:p1", "", "", "", "", "b******", size=4096)
    shell.daemon.parts.devices.offered = lambda klass: [sda] if klass == "block" else []  # type: ignore[method-assign]
    shell("qvm-block assign work dom0:sdb", status=1)  # what is not there can only be meant by its port
    assert "does not offer" in shell.err and "--port" in shell.err
    shell("qvm-block assign --required --ro -o devtype=cdrom work dom0:sda")
    shell("qvm-block assign --port work dom0:sdb")
    shell("qvm-block assign --only-device --ask net dom0:sda")
    assert shell("qvm-block ls work --assignments").replace("  ", "").splitlines() == [
        "dom0:*S-1:p1*net (ask-to-attach)",
        "dom0:sdaS-1:p1*net (ask-to-attach), *work (required: devtype=cdrom, read-only=yes)",
        "dom0:sdbany device*work (auto-attach)",
    ]
    assert shell("qvm-block info dom0:sda").splitlines()[1:] == ["device ID: S-1:p1", "size: 4096", "mode: w"]
    shell("qvm-block info dom0:sdb", status=1)
    shell("qvm-block info nobody:sdb", status=1)
    shell("qvm-block unassign work dom0:sda --port", status=1)
    shell("qvm-block unassign net dom0:sda --device")
    shell("qvm-block unassign work dom0:sdb --only-port")
    shell("qvm-block unassign work dom0:sda")
    shell("qvm-block unassign work dom0:sda", status=1)
    shell("qvm-block unassign work")
    assert len(shell("qvm-block ls -s").splitlines()) == 1
    shell("qvm-start work --cdrom=nothing", status=1)
    assert "BACKEND:DEVICE" in shell.err
    shell("qvm-start work --cdrom=dom0:/nothing", status=1)
    assert "No such file" in shell.err
    shell("qvm-start work --install-windows-tools", status=1)
    assert "qubes-windows-tools.iso: No such file" in shell.err
    shell("qvm-start work --hddisk=dom0:sda")
    assert shell("qvm-block ls work") == ""


WORDS = {
    "qvm-tags work add é": "é",
    "qvm-prefs work é": "é",
    "qvm-prefs work label é": "ASCII",
    "qvm-create é -l red": "ASCII",
    "qvm-create x -l é": "ASCII",
    "qvm-volume info é:root": "No such qube",
    "qvm-pool info é": "é",
    "qvm-service work é on": "é",
    "qvm-features work a é": "ASCII",
    "qvm-features é a": "No such qube",
    "qvm-notes é": "No such qube",
    "qvm-firewall é list": "No such qube",
    "qvm-pool add é qcow2": "ASCII",
    "qubes-prefs é": "é",
    "qvm-run -u é work true": "é",
    "qvm-run é true": "é",
    "qvm-run --dispvm=é true": "No such qube",
    "qvm-block attach work é:é": "é",
    "qvm-template install é": "cannot be built here",
    "qvm-clone work é": "ASCII",
    "qvm-create x -l mauve": "there are red, orange",
    "qvm-create a/b -l red": "1 to 31 characters: letters, digits",
}
"""Command lines with a word that no name can have, and what the answer must contain."""


@pytest.mark.parametrize(("line", "said"), WORDS.items())
def test_words_that_no_name_can_have_are_refused_in_words(shell: Shell, line: str, said: str) -> None:
    try:
        shell(line, status=1)
    except AssertionError:
        shell(line, status=2)
    # A terminal's own encoding may not know the letter; it is shown escaped then, never as a fault of ours.
    assert said.replace("é", "xe9") in shell.err.replace("é", "xe9")
    assert "Traceback" not in shell.err and "codec" not in shell.err


def test_what_is_so_already_is_no_error(shell: Shell) -> None:
    shell("qvm-kill work")
    shell("qvm-features -D work never-set")
    shell("qvm-service -D work never-set")
    for word in ("none", "None", ""):
        shell("qvm-prefs work netvm net")
        shell("qvm-prefs work netvm", word)
        assert shell("qvm-prefs work netvm") == ""
    shell("qvm-prefs work default_user none")  # a name like any other where the property is no qube
    assert shell("qvm-prefs work default_user") == "none\n"


def test_colours_of_qvm_run(shell: Shell) -> None:
    shell("qvm-run --color-output 31 --no-color-stderr --nogui nobody true", status=2)
    shell("qvm-run --color-output 99 nobody true", status=2)
    assert "there are 30 to 37" in shell.err


def test_qubes_are_removed_in_an_order_that_works(shell: Shell) -> None:
    shell("qvm-create -C TemplateVM -l black base")
    shell("qvm-create -l red -t base one")
    shell("qvm-create -l red -t base two")
    shell("qvm-prefs two netvm", "")
    shell("qvm-remove -f base one two")
    assert shell("qvm-ls --raw-list").split() == ["deb", "dom0", "net", "work"]
    # What another still uses stays, with the reason; the others go.
    shell("qvm-create -C TemplateVM -l black base")
    shell("qvm-create -l red -t base one")
    shell("qvm-create -l red -t base two")
    shell("qvm-remove -f base one", status=1)
    assert "two" in shell.err and "one" not in shell.err.replace("None", "")
    assert shell("qvm-ls --raw-list").split() == ["base", "deb", "dom0", "net", "two", "work"]


def test_tags_are_a_column(shell: Shell) -> None:
    shell("qvm-tags work add mine")
    assert "mine" in shell("qvm-ls --raw-data -O name,tags work") and shell.err == ""
    assert "mine" in shell("qvm-ls -O tags work") and shell.err == ""
