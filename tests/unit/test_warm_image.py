"""Which qubes go on from a warm image, and what makes an image another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from casemate.engine.warm_image import BUILDING, DIGITS, WARM, is_being_made, is_wanted, key_of, mounts_later
from casemate.host.hypervisor import MachineSpec, Nic
from casemate.model.system import System
from tests.builders import small_system

DISKS = {"root": "default:1-2-3", "private": "default:4-5-6", "volatile": "default:empty-7"}


@pytest.fixture
def system() -> System:
    """A template for disposables and one of its disposables."""
    made = small_system()
    base = made.domains["work"]
    base.template_for_dispvms = True
    base.netvm = None
    base.kernel = "some"
    made.add("DispVM", "one", uuid=uuid4(), label="red", template="work", dispid=7)
    return made


def test_a_disposable_goes_on_unless_somebody_wants_it_to_boot(system: System) -> None:
    one, base, admin = system.domains["one"], system.domains["work"], system.admin
    assert is_wanted(one, admin)
    assert is_wanted(base, admin), "an app qube goes on too"
    assert not mounts_later(one) and mounts_later(base)
    admin.features[WARM] = ""
    assert not is_wanted(one, admin)
    base.features[WARM] = "1"
    assert is_wanted(one, admin), "the template's own word comes first"
    base.features[WARM] = ""
    assert not is_wanted(one, admin)


@pytest.mark.parametrize("what", ["systemd", "net qube", "no kernel"])
def test_what_cannot_go_on_boots(system: System, what: str) -> None:
    one = system.domains["one"]
    if what == "systemd":
        one.features["init"] = "systemd"
    elif what == "net qube":
        one.provides_network = True
    else:
        one.kernel = ""
    assert not is_wanted(one, system.admin)


def test_only_what_is_marked_becomes_an_image(system: System) -> None:
    one = system.domains["one"]
    assert not is_being_made(one)
    one.features[BUILDING] = "1"
    assert is_being_made(one)


@pytest.fixture
def spec(tmp_path: Path) -> MachineSpec:
    """A machine with a network."""
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_bytes(b"x")
    return MachineSpec(
        name="one", uuid=uuid4(), title="t", memory_mib=400, vcpus=1, acceleration="tcg",
        kernel=tmp_path / "vmlinuz", initrd=tmp_path / "initrd", cmdline="casemate.init=lean", disks=(),
        channel=tmp_path / "one" / "channel.sock", console=tmp_path / "one" / "console.sock", uid=5, gid=6,
        nics=(Nic("tap5", "00:16:3e:5e:6c:00", fixed=True),),
    )  # fmt: skip


def test_two_qubes_of_one_shape_have_one_key(spec: MachineSpec, tmp_path: Path) -> None:
    other = replace(
        spec, name="two", uuid=uuid4(), title="u", uid=7, channel=tmp_path / "two" / "channel.sock",
        console=tmp_path / "two" / "console.sock", nics=(replace(spec.nics[0], tap="tap9"),),
    )  # fmt: skip
    key = key_of(spec, DISKS, "", "host")
    assert key == key_of(other, DISKS, "", "host")
    assert len(key) == DIGITS and int(key, 16) >= 0


def test_whatever_the_memory_holds_makes_another_key(spec: MachineSpec) -> None:
    usual = key_of(spec, DISKS, "", "host")
    others = {
        "memory": key_of(replace(spec, memory_mib=500), DISKS, "", "host"),
        "processors": key_of(replace(spec, vcpus=2), DISKS, "", "host"),
        "options": key_of(replace(spec, cmdline="casemate.init=lean quiet"), DISKS, "", "host"),
        "acceleration": key_of(replace(spec, acceleration="kvm"), DISKS, "", "host"),
        "usb": key_of(replace(spec, usb=True), DISKS, "", "host"),
        "no network": key_of(replace(spec, nics=()), DISKS, "", "host"),
        "mac": key_of(replace(spec, nics=(Nic("tap5", "00:16:3e:5e:6c:01", fixed=True),)), DISKS, "", "host"),
        "root": key_of(spec, DISKS | {"root": "default:1-2-4"}, "", "host"),
        "pool": key_of(spec, DISKS | {"root": "other:1-2-3"}, "", "host"),
        "command": key_of(spec, DISKS, "true", "host"),
        "host": key_of(spec, DISKS, "", "host after a boot"),
    }
    spec.initrd.write_bytes(b"another")
    others["initrd"] = key_of(spec, DISKS, "", "host")
    assert len({usual, *others.values()}) == len(others) + 1, others
