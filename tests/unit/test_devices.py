"""Devices: assignments in the store, and what happens when they are attached, detached, come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.model.devices import Assignment, DeviceRef
from casemate.store import reader, writer
from casemate.wire.admin import CONNECTED
from casemate.wire.errors import (
    CasemateError,
    DeviceAlreadyAssignedError,
    DeviceAlreadyAttachedError,
    DeviceNotAssignedError,
    DeviceNotFoundError,
    DeviceUnrecognizedError,
    InUseError,
    NotFoundError,
    NotImplementedHereError,
    NotRunningError,
    ProtocolError,
    ValueInvalidError,
)
from tests.builders import small_system
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.host_devices import add_block, add_disk_with_parts, add_usb_stick


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with running(tmp_path) as found:
        for klass, name, template in (("TemplateVM", "deb", None), ("AppVM", "one", "deb"), ("AppVM", "two", "deb")):
            found.client().create(klass, name, "blue", template)
        add_block(found.parts.sys, "loop0", loop__backing_file="/images/a")
        yield found


# -- the store


def test_assignments_are_written_and_read_again() -> None:
    before = small_system()
    work = before.domains["work"]
    work.devices.add(Assignment(DeviceRef("block", "dom0", "loop0"), "required", (("read-only", "yes"),)))
    work.devices.add(Assignment(DeviceRef("usb", "net", "*", "1234:5678"), "ask-to-attach"))
    text = writer.write(before)
    after = reader.read(text)
    assert list(after.domains["work"].devices) == list(work.devices)
    assert writer.write(after) == text
    # What nobody changed stays as it is when something else of the qube changes.
    after.domains["work"].memory = 500
    assert b'<device backend-domain="net" id="*" identity="1234:5678" mode="ask-to-attach"/>' in writer.write(after)


def test_an_assignment_of_an_older_version_changes_its_form_only_when_it_is_changed() -> None:
    text = writer.write(small_system()).replace(
        b'</volume-config>\n    </domain>\n    <domain id="domain-4',
        b"</volume-config>\n<devices class='pci'><device backend-domain='dom0' id='00_1f.3' required='no'/></devices>"
        b'</domain>\n    <domain id="domain-4',
    )
    system = reader.read(text)
    one, *others = system.domains["work"].devices
    assert (one.mode, one.device.port, others) == ("auto-attach", "00_1f.3", [])
    system.domains["work"].memory = 500
    assert b'id="00_1f.3" required="no"/>' in writer.write(system)
    system.domains["work"].devices.set_mode(one.device, "required")
    assert b'id="00_1f.3" identity="*" mode="required"/>' in writer.write(system)


def test_who_offers_an_assigned_device_cannot_be_removed() -> None:
    from casemate.model import invariants

    system = small_system()
    system.domains["work"].devices.add(Assignment(DeviceRef("usb", "net", "1-1"), "required"))
    system.remove("net")
    with pytest.raises(InUseError, match="net"):
        invariants.device_backends_exist(system)


# -- calls


def test_a_device_goes_to_one_qube_at_a_time(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    attach, device = "admin.vm.device.block.Attach", "dom0+loop0"
    with pytest.raises(NotRunningError):
        qubes.call(attach, device, "one")
    for name in ("one", "two"):
        qubes.call("admin.vm.Start", "", name)
    for wrong, error in (
        ("dom0+loop1", DeviceNotFoundError),
        ("dom0+loop0+other", DeviceUnrecognizedError),
        ("two+sda", NotImplementedHereError),
    ):
        with pytest.raises(error):
            qubes.call(attach, wrong, "one")
    with pytest.raises(ProtocolError):
        qubes.call(attach, device, "one", "port_id='loop1'")
    with qubes.transport.events("one") as events:
        assert events.next(10).name == CONNECTED
        qubes.call(attach, device, "one", "_read-only='yes' _frontend-dev='vdi'")
        for name in ("one", "two"):
            with pytest.raises(DeviceAlreadyAttachedError):
                qubes.call(attach, device, name)
        listed = qubes.call("admin.vm.device.block.Attached", "", "one")
        assert "_frontend-dev='vdi'" in listed and "_read-only='yes'" in listed
        daemon.parts.disks.stuck.add(daemon.store.snapshot().domains["one"].uuid)
        with pytest.raises(CasemateError, match="does not let go"):
            qubes.call("admin.vm.device.block.Detach", device, "one")
        daemon.parts.disks.stuck.clear()
        qubes.call("admin.vm.device.block.Detach", device, "one")
        got = [(event.name, event.details) for event in (events.next(10) for _ in range(5))]
    ident = daemon.parts.devices.offered("block")[0].ident
    options = str({"frontend-dev": "vdi", "read-only": "yes"})
    about = {"device": f"dom0:loop0:{ident}", "options": options}
    pre = ("device-pre-detach:block", {"port": "dom0:loop0"})
    assert got == [
        ("device-pre-attach:block", about), ("device-attach:block", about), pre, pre,
        ("device-detach:block", {"port": "dom0:loop0"}),
    ]  # fmt: skip
    with pytest.raises(DeviceNotAssignedError):
        qubes.call("admin.vm.device.block.Detach", device, "one")
    qubes.call("admin.vm.device.denied.Add", "", "two", "b******")
    with pytest.raises(CasemateError, match="devices_denied"):
        qubes.call(attach, device, "two")


def test_two_qubes_that_want_a_device_at_once(daemon: FakeDaemon) -> None:
    async def both() -> list[BaseException | None]:
        device = DeviceRef("block", "dom0", "loop0")
        work = (daemon.parts.devices.attach(name, device, {}) for name in ("one", "two"))
        return await asyncio.gather(*work, return_exceptions=True)

    for name in ("one", "two"):
        daemon.client().call("admin.vm.Start", "", name)
    results = asyncio.run_coroutine_threadsafe(both(), daemon.loop).result(10)
    assert results.count(None) == 1
    assert sum(isinstance(one, DeviceAlreadyAttachedError) for one in results) == 1


def test_a_file_goes_to_one_qube_at_a_time_whatever_loop_device_is_over_it(daemon: FakeDaemon, tmp_path: Path) -> None:
    """By its number, so that a link to it is it; several that only read may share it."""
    qubes, attach = daemon.client(), "admin.vm.device.block.Attach"
    image = tmp_path / "image"
    image.write_bytes(bytes(512))
    (tmp_path / "link").hardlink_to(image)
    for number, (path, readonly) in enumerate([(image, "0"), (tmp_path / "link", "0"), (image, "1"), (image, "1")], 1):
        add_block(daemon.parts.sys, f"loop{number}", loop__backing_file=str(path), dev=f"7:{number}", ro=readonly)
    for name in ("one", "two"):
        qubes.call("admin.vm.Start", "", name)
    qubes.call(attach, "dom0+loop1", "one")
    for port in ("loop2", "loop3"):
        for name in ("one", "two"):
            with pytest.raises(DeviceAlreadyAttachedError, match="loop1"):
                qubes.call(attach, f"dom0+{port}", name)
    qubes.call("admin.vm.device.block.Detach", "dom0+loop1", "one")
    qubes.call(attach, "dom0+loop3", "one")
    qubes.call(attach, "dom0+loop4", "two")
    with pytest.raises(DeviceAlreadyAttachedError):
        qubes.call(attach, "dom0+loop2", "two")
    with pytest.raises(NotFoundError, match="nosuch"):
        qubes.call(attach, "nosuch+sda", "one")


def test_a_disk_and_its_part_are_one_device(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    add_disk_with_parts(daemon.parts.sys, "sdx", 65)
    for name in ("one", "two"):
        qubes.call("admin.vm.Start", "", name)
    qubes.call("admin.vm.device.block.Attach", "dom0+sdx1", "one")
    with pytest.raises(DeviceAlreadyAttachedError, match="sdx1"):
        qubes.call("admin.vm.device.block.Attach", "dom0+sdx", "two")
    qubes.call("admin.vm.device.block.Attach", "dom0+sdx2", "two")
    qubes.call("admin.vm.device.block.Detach", "dom0+sdx1", "one")
    with pytest.raises(DeviceAlreadyAttachedError, match="sdx2"):
        qubes.call("admin.vm.device.block.Attach", "dom0+sdx", "one")


def test_assignments_and_their_events(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    device = "dom0+loop0"
    with qubes.transport.events("one") as events:
        events.next(10)
        qubes.call("admin.vm.device.block.Assign", device, "one", "mode='required' _read-only='yes'")
        with pytest.raises(DeviceAlreadyAssignedError):
            qubes.call("admin.vm.device.block.Assign", device, "one", "mode='required'")
        qubes.call("admin.vm.device.block.Set.assignment", device, "one", "ask-to-attach")
        assert "mode='ask-to-attach'" in qubes.call("admin.vm.device.block.Assigned", "", "one")
        qubes.call("admin.vm.device.block.Unassign", device, "one")
        got = [(event.name, event.details) for event in (events.next(10) for _ in range(4))]
    about = {"device": "dom0:loop0:*", "options": "{'read-only': 'yes'}"}
    assert got == [
        ("device-pre-assign:block", about), ("device-assign:block", about),
        ("device-assignment-changed:block", {"device": "dom0:loop0:*"}),
        ("device-unassign:block", {"device": "dom0:loop0:*"}),
    ]  # fmt: skip
    for wrong in ("mode='manual'", "mode='x'", "mode='required' mode='required'", "no pairs", "_a b='1'"):
        with pytest.raises(CasemateError):
            qubes.call("admin.vm.device.block.Assign", device, "one", wrong)
    with pytest.raises(ValueInvalidError):
        qubes.call("admin.vm.device.block.Assign", "dom0+_", "one", "mode='required'")


def test_a_device_that_comes_goes_to_who_waits_for_it(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.call("admin.vm.device.block.Assign", "dom0+sdy", "one", "mode='auto-attach'")
    qubes.call("admin.vm.Start", "", "one")

    def look() -> None:
        asyncio.run_coroutine_threadsafe(daemon.parts.devices.look(), daemon.loop).result(10)

    with qubes.transport.events("dom0") as events:
        events.next(10)
        look()
        place = add_block(daemon.parts.sys, "sdy")
        look()
        names = [events.next(10).name for _ in range(4)]
        assert names == ["device-added:block", "device-list-change:block", "device-pre-attach:block", "device-attach:block"]  # fmt: skip  # noqa: E501
        assert "sdy" in qubes.call("admin.vm.device.block.Attached", "", "one")
        (place / "size").write_text("0")
        look()
        assert [events.next(10).name for _ in range(2)] == ["device-removed:block", "device-list-change:block"]


def test_a_start_with_devices(daemon: FakeDaemon) -> None:
    from casemate.engine.steps import Start
    from casemate.wire.errors import StartError

    qubes = daemon.client()
    said: list[str] = []

    def up() -> None:
        start = Start(daemon.store.snapshot().domains["one"], lambda event, **details: said.append(event))
        asyncio.run_coroutine_threadsafe(daemon.parts.devices.up(start), daemon.loop).result(10)

    qubes.call("admin.vm.device.block.Assign", "dom0+nothing", "one", "mode='auto-attach'")
    qubes.call("admin.vm.device.block.Assign", "dom0+loop0", "one", "mode='required'")
    up()
    assert "loop0" in qubes.call("admin.vm.device.block.Attached", "", "one")
    daemon.parts.disks.disks.clear()
    qubes.call("admin.vm.device.block.Set.assignment", "dom0+nothing", "one", "required")
    with pytest.raises(StartError, match="requires block device dom0:nothing"):
        up()


# -- a USB stick


def test_a_stick_is_a_usb_device_or_a_disk_but_goes_to_one_qube(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    add_usb_stick(daemon.parts.sys, "1-1", "sdx")
    listed = qubes.call("admin.vm.device.usb.Available", "", "dom0")
    assert listed.startswith("1-1:1234:abcd:S1:u00 ") and "_size='4096'" in listed and "interfaces='u080650'" in listed
    for name in ("one", "two"):
        qubes.call("admin.vm.Start", "", name)
    qubes.call("admin.vm.device.usb.Attach", "dom0+1-1", "one", "_read-only='yes'")
    assert "port_id='1-1'" in qubes.call("admin.vm.device.usb.Attached", "", "one")
    assert qubes.call("admin.vm.device.block.Attached", "", "one") == "", "it is no virtio disk there"
    for method, port in (("block", "sdx"), ("usb", "1-1")):
        with pytest.raises(DeviceAlreadyAttachedError, match="sdx is attached to one already"):
            qubes.call(f"admin.vm.device.{method}.Attach", f"dom0+{port}", "two")
    qubes.call("admin.vm.device.usb.Detach", "dom0+1-1", "one")
    qubes.call("admin.vm.device.block.Attach", "dom0+sdx", "two")
    with pytest.raises(DeviceAlreadyAttachedError):
        qubes.call("admin.vm.device.usb.Attach", "dom0+1-1", "one")


def test_a_usb_device_without_a_disk_is_listed_and_refused(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    place = add_usb_stick(daemon.parts.sys, "1-2", "sdx")
    (place / "1-2:1.0/host0/target0:0:0/0:0:0:0/block/sdy").mkdir()  # a reader with two slots
    qubes.call("admin.vm.Start", "", "one")
    assert "1-2" in qubes.call("admin.vm.device.usb.Available", "", "dom0")
    with pytest.raises(NotImplementedHereError, match="no storage device with one disk"):
        qubes.call("admin.vm.device.usb.Attach", "dom0+1-2", "one")
    with pytest.raises(ValueInvalidError, match="no option 'frontend-dev'"):
        qubes.call("admin.vm.device.usb.Attach", "dom0+1-2", "one", "_frontend-dev='sda'")


def test_a_machine_has_a_usb_controller_only_if_its_qube_may_get_such_devices(daemon: FakeDaemon) -> None:
    qubes, devices = daemon.client(), daemon.parts.devices

    def controllers(name: str) -> frozenset[str]:
        return devices.controllers(daemon.store.snapshot().domains[name])

    assert controllers("one") == frozenset()
    qubes.call("admin.vm.device.block.Assign", "dom0+loop0", "one")
    assert controllers("one") == frozenset()
    qubes.call("admin.vm.device.usb.Assign", "dom0+1-1", "one", "mode='ask-to-attach'")
    assert controllers("one") == {"usb"}
    qubes.call("admin.vm.feature.Set", "usb-controller", "two", "1")
    assert controllers("two") == {"usb"}
