"""More tools: restart, templates, clocks, the old way to speak of pools, a call as it is."""

from __future__ import annotations

import io
import json
import sys

import pytest

from tests.fakes.shell import Shell
from tests.unit.test_cli import shell  # noqa: F401


def test_restart(shell: Shell) -> None:  # noqa: F811
    shell("qvm-start work")
    xid = shell.daemon.parts.machines["work"].xid
    shell("qvm-restart work")
    again = shell.daemon.parts.machines["work"].xid
    assert again != xid
    shell("qvm-restart net", status=75)  # work needs its network, which nobody is to be cut off from
    assert "provides network" in shell.err and "net" in shell.daemon.parts.machines
    shell("qvm-restart --force net work")
    assert shell.daemon.parts.machines["work"].xid > again
    shell("qvm-kill work")
    shell("qvm-restart work")
    assert "work" not in shell.daemon.parts.machines, "what does not run is left alone"
    shell("qvm-restart --start work")
    shell("qvm-restart --kill work")
    assert "work" in shell.daemon.parts.machines
    shell("qvm-restart dom0", status=2)
    shell("qvm-restart nobody", status=2)
    shell.daemon.parts.power.broken.add("work")
    shell("qvm-restart work", status=75)


def test_restart_of_all_leaves_passing_disposables(shell: Shell) -> None:  # noqa: F811
    shell("qvm-prefs work template_for_dispvms True")
    shell("qubes-prefs default_dispvm work")
    disposable = shell("qubesd-query -e dom0 admin.vm.CreateDisposable dom0")[2:]
    shell(f"qvm-start {disposable}")
    before = shell.daemon.parts.machines[disposable]
    shell(f"qvm-restart {disposable}", status=2)
    shell("qvm-restart --all")
    assert shell.daemon.parts.machines[disposable] is before


def test_the_old_words_for_pools(shell: Shell) -> None:  # noqa: F811
    assert shell("qvm-pool-legacy") == shell("qvm-pool")
    assert shell("qvm-pool-legacy --help-drivers") == shell("qvm-pool drivers")
    shell("qvm-pool-legacy -a more qcow2 -o dir_path=/srv/more")
    assert "/srv/more" in shell("qvm-pool-legacy -i more")
    shell("qvm-pool-legacy -o revisions_to_keep=2 -s more")
    assert "2" in shell("qvm-pool info more")
    shell("qvm-pool-legacy -r more")
    shell("qvm-pool-legacy -i more", status=2)


def test_a_call_as_it_is(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    assert shell("qubesd-query -e dom0 admin.label.List dom0").startswith("0\0red\n")
    assert shell("qubesd-query -e --null dom0 admin.label.Get dom0 red") == "0\x000xcc0000\0"
    assert shell("qubesd-query -e dom0 admin.vm.Start nobody").startswith("2\0QubesVMNotFoundError\0")
    shell("qubesd-query -e --fail dom0 admin.vm.Start nobody", status=2)
    shell("qubesd-query -e --fail dom0 admin.label.List dom0")
    shell("qubesd-query -e -c /no/such/socket dom0 admin.label.List dom0", status=1)
    stdin = io.TextIOWrapper(io.BytesIO(b"600"))
    monkeypatch.setattr(sys, "stdin", stdin)
    shell("qubesd-query --fail dom0 admin.vm.property.Set work memory")
    assert shell("qvm-prefs work memory") == "600\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * 11)))
    shell("qubesd-query --max-bytes 10 dom0 admin.vm.property.Set work memory", status=2)


def test_templates(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    listed = shell("qvm-template list --machine-readable")
    buildable = [f"debian-{n}{kind}" for n in ("12", "13", "14", "sid") for kind in ("", "-systemd")]
    assert listed.splitlines() == [
        "installed|deb|-|casemate", *(f"available|{name}|-|casemate" for name in buildable)
    ]  # fmt: skip
    for feature, value in (("epoch", "0"), ("version", "12"), ("release", "2026"), ("summary", "Debian")):
        shell(f"qvm-features deb template-{feature} {value}")
    installed = "installed|deb|0:12-2026|casemate\n"
    assert shell("qvm-template list --installed --machine-readable") == installed
    assert shell("qvm-template list --installed") == "Installed Templates\ndeb  0:12-2026  casemate\n"
    assert shell("qvm-template list --extras", "d*").startswith("Extra Templates\ndeb  ")
    found = json.loads(shell("qvm-template info --machine-readable-json deb"))
    assert (found["installed"][0]["release"], found["installed"][0]["summary"]) == ("2026", "Debian")
    shell("qvm-template list nothing", status=2)
    assert shell("qvm-template search Debian bookworm").split()[:2] == ["debian-12", ":"]
    assert "deb " in shell("qvm-template search debian")
    out = shell("qvm-template info deb")
    assert "net, work" in out and "Release      : 2026" in out.replace("  :  ", " : ")
    shell("qvm-template install --pool x debian-12", status=1)
    shell("qvm-template remove --disassoc --yes deb", status=1)
    shell("qvm-template install something", status=2)
    shell("qvm-template upgrade deb", status=1)
    shell("qvm-template remove --yes work", status=2)
    shell("qvm-template remove --yes deb", status=1)  # qubes use it
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    shell("qvm-template purge deb", status=1)
    assert "deb" in shell("qvm-ls --raw-list")
    shell("qvm-create -C TemplateVM -l black other")
    shell("qvm-template purge --yes other")
    assert "other" not in shell("qvm-ls --raw-list")


def test_clocks_of_none(shell: Shell) -> None:  # noqa: F811
    shell("qvm-sync-clock")
    shell("qvm-start work")
    shell("qvm-sync-clock work", status=1)  # it has no agent here
    shell("qvm-sync-clock nobody", status=2)
