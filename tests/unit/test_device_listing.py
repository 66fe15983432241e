"""Devices: what the host and qubes list, and how a device is written in arguments, options and XML."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from casemate import devices as device_classes
from casemate.api.methods.devices import parse_offered, parse_ref
from casemate.cli.loop_device import LoopDevice
from casemate.devices.block import DEVICE_CLASS as BLOCK
from casemate.devices.device_class import Opening, Provider
from casemate.devices.disks import DiskOptions
from casemate.host.domain_xml_disk import disk_xml, disks_of, element_of, has_usb
from casemate.host.hypervisor import HostDisk
from casemate.host.kernel_devices import KernelDevices
from casemate.host.qemu_access import with_entry
from casemate.host.uevents import DeviceEvents
from casemate.model.devices import DeviceRef, denies
from casemate.wire.errors import (
    CasemateError,
    DeviceNotFoundError,
    ValueInvalidError,
)
from tests.builders import within
from tests.fakes.host_devices import FakeDisks, add_block, add_disk_with_parts

Host = dict[str, Provider]


def opened(kernel: KernelDevices) -> Host:
    """The classes at work on what the kernel shows; nothing is attached here."""
    opening = Opening(kernel, FakeDisks(), frozenset())  # type: ignore[arg-type]
    return {name: one.open(opening) for name, one in device_classes.load().items()}


def host(root: Path, mountinfo: str = "", swaps: str = "") -> Host:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(mountinfo)
    (root / "proc/swaps").write_text("Filename Type Size\n" + swaps)
    return opened(KernelDevices(root, root / "proc", root / "dev"))


def ports(devices: Host) -> list[str]:
    return [device.port for device in devices["block"].list()]


def test_what_the_host_uses_itself_is_not_offered(tmp_path: Path) -> None:
    for number, name in enumerate(("sda", "sdb", "sdc", "sdd")):
        add_disk_with_parts(tmp_path, name, 8 + number)
    add_block(tmp_path, "loop0", loop__backing_file="/a")
    add_block(tmp_path, "loop1")
    add_block(tmp_path, "zram0")
    add_block(tmp_path, "sr0", size=0)
    (tmp_path / "block/sdd/holders/dm-0").mkdir(parents=True)
    found = host(
        tmp_path, "1 1 8:1 / / rw - ext4 /dev/root rw\n2 1 0:40 / /b rw - btrfs /dev/sdc2 rw\n", "/dev/sdb1 x\n"
    )
    # A disk of which a part is used is not offered as a whole, its other parts are; a disk that is held has none.
    assert ports(found) == ["loop0", "sda2", "sdb2", "sdc1"]
    part = {device.port: device for device in found["block"].list()}["sda2"]
    assert (part.ident, part.whole, part.size, part.name) == ("S-1-2:p2", "sda", 2048, "Stick")


@pytest.mark.skipif(os.geteuid() != 0, reason="block devices need root")
def test_a_node_that_is_not_the_listed_device_is_refused(tmp_path: Path) -> None:
    add_block(tmp_path, "loop0", loop__backing_file="/a")
    kernel = KernelDevices(tmp_path, tmp_path / "proc", tmp_path / "dev")
    with pytest.raises(DeviceNotFoundError):
        kernel.block_node("loop0")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/loop0").symlink_to("/dev/zero")
    with pytest.raises(CasemateError):
        kernel.block_node("loop0")
    (tmp_path / "dev/loop0").unlink()
    (tmp_path / "dev/loop0").write_text("a file")
    with pytest.raises(CasemateError, match="not the device"):
        kernel.block_node("loop0")


def test_what_a_qube_offers_is_only_what_it_writes_properly() -> None:
    keys = {
        "sda/desc": b"stick", "sda/size": b"1024", "sda/mode": b"w",
        "sdb/desc": b"\x1b[2J", "sdb/size": b"512", "sdb/mode": b"x",
        "../x/size": b"512", "sdc/size": b"513", "sdd/size": b"1" * 20, "sde/desc": b"no size", "SDF/size": b"512",
    }  # fmt: skip
    found = parse_offered({f"/qubes-block-devices/{key}": value for key, value in keys.items()})
    assert [(d.port, d.name, d.size, d.readonly) for d in found] == [
        ("sda", "stick", 1024, False), ("sdb", "", 512, True),
    ]  # fmt: skip
    many = {f"/qubes-block-devices/d{n}/size": b"512" for n in range(200)}
    assert len(parse_offered(many)) == 64


@pytest.mark.parametrize(
    ("arg", "port", "ident"),
    [
        ("dom0+loop0", "loop0", "*"),
        ("dom0+loop0+_", "loop0", "*"),
        ("dom0+_+file-1", "*", "file-1"),
        ("dom0+sda1+a++p1", "sda1", "a::p1"),
        ("dom0+1-1+0000+0000++_______", "1-1", "*"),
    ],
)
def test_a_device_in_an_argument(arg: str, port: str, ident: str) -> None:
    assert parse_ref("block", arg) == DeviceRef("block", "dom0", port, ident)


@pytest.mark.parametrize("arg", ["dom0", "dom0+../x", "dom0+", "../a+loop0", "dom0+loop0+a b", "dom0+" + "x" * 65])
def test_what_is_no_device(arg: str) -> None:
    with pytest.raises(CasemateError):
        parse_ref("block", arg)


@pytest.mark.parametrize(
    "given",
    [{"x": "1"}, {"devtype": "floppy"}, {"frontend-dev": "../vda"}, {"read-only": "maybe"},
     {"devtype": "cdrom", "read-only": "no"}],
)  # fmt: skip
def test_options_that_are_refused(given: dict[str, str]) -> None:
    with pytest.raises(ValueInvalidError):
        BLOCK.check(given)
        DiskOptions.of(given)


def test_denied_interfaces() -> None:
    assert denies("u03****", "u080650u030101") == "u030101"
    assert denies("b******", "b******") == "b******"
    assert denies("u03****", "b******") == "" and denies("", "u030101") == ""


def test_disk_in_xml_and_back() -> None:
    disk = HostDisk(Path("/dev/loop0"), "vdd", readonly=True, cdrom=True)
    machine = f"<domain><devices><disk type='file'><target dev='vda'/></disk>{disk_xml(disk)}</devices></domain>"
    assert disks_of(machine) == [disk]
    assert element_of(machine, "vda") is None and "loop0" in (element_of(machine, "vdd") or "")
    assert 'type="raw"' in disk_xml(disk) and "<backingStore/>" in disk_xml(disk)


def test_a_right_that_was_lent_leaves_nothing_behind() -> None:
    lent = with_entry(b"", 0o660, 0x02, 1000, 6)
    assert with_entry(lent, 0o660, 0x02, 1000, 6) == lent
    both = with_entry(lent, 0o660, 0x02, 1001, 4)
    assert with_entry(both, 0o660, 0x02, 1001, 0) == lent
    assert len(with_entry(lent, 0o660, 0x02, 1000, 0)) == 4 + 3 * 8  # the mode's own three entries: no list any more
    assert with_entry(b"", 0o660, 0x02, 1000, 0) == b""


def test_a_path_is_no_device() -> None:
    for path in ("../../etc/passwd", "/dev/sda", "loop0/../sda"):
        with pytest.raises(CasemateError):
            parse_ref("block", f"dom0+{path}")


@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_the_kernel_tells_of_devices_that_come_and_go(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))

    async def scenario() -> None:
        told = asyncio.Event()
        events = DeviceEvents(["block"], told.set)
        try:
            with LoopDevice(str(image)) as name:
                await within(10, told.wait())
                (found,) = (d for d in opened(KernelDevices())["block"].list() if d.port == name)
                assert (found.name, found.size, found.readonly) == (str(image), 1 << 20, False)
                told.clear()
            await within(10, told.wait())
            assert name not in ports(opened(KernelDevices()))
        finally:
            events.close()

    asyncio.run(scenario())


def test_a_loop_device_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CasemateError, match=str(path)):
            LoopDevice(str(path), readonly=True).__enter__()


def test_a_usb_disk_in_libvirts_words() -> None:
    disk = HostDisk(Path("/dev/sdx"), "sda", readonly=True, bus="usb")
    text = disk_xml(disk)
    assert "virtio" not in text and disks_of(f"<d><devices>{text}</devices></d>") == [disk]
    assert has_usb("<d><devices><controller type='usb' model='qemu-xhci'/></devices></d>")
    assert not has_usb("<d><devices><controller type='usb' model='none'/></devices></d>")
