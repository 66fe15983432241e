"""The contract of a class of devices, on every class that this host has: ours, and those that entry points name.

Whoever writes a class installs his package into this checkout's ``.venv`` (its entry point in group
``casemate.devices`` is enough) and runs this file. Devices of our own classes are described by files below a fake /sys;
another class is tried with the devices that this host really has, and skipped where it has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from casemate import devices
from casemate.devices.device_class import DeviceClass, HostDevice, Machine, Opening, Provider
from casemate.host.hypervisor import HostDisk
from casemate.host.kernel_devices import KernelDevices
from casemate.model.devices import identity, port
from casemate.wire.errors import DeviceBusyError, HypervisorError, NotImplementedHereError, ValueInvalidError
from tests.fakes.host_devices import FakeDisks, FakeKernel, add_block, add_pci, add_usb_stick

CLASSES = devices.load()
MACHINE = Machine("work", UUID(int=1), None)
SAMPLES: dict[str, Callable[[Path], object]] = {
    "block": lambda sys: [add_block(sys, name, loop__backing_file=f"/images/{name}") for name in ("loop0", "loop1")],
    "usb": lambda sys: [add_usb_stick(sys, "1-1", "sdx"), add_usb_stick(sys, "2-1.4", "sdy")],
    "pci": lambda sys: [add_pci(sys, "0000:00:02.0"), add_pci(sys, "0000:00:03.0")],
}


class Disks(FakeDisks):
    """A hypervisor that can be told to refuse."""

    refuses = False

    async def attach_disk(self, uuid: UUID, disk: HostDisk) -> None:
        if self.refuses:
            raise HypervisorError("no")
        await super().attach_disk(uuid, disk)


class Rig:
    """A class at work."""

    def __init__(self, found: DeviceClass, directory: Path) -> None:
        self.found = found
        self.sys = directory / "sys"
        self.hypervisor = Disks()
        self.kernel: KernelDevices
        if found.name in SAMPLES:
            SAMPLES[found.name](self.sys)
            self.kernel = FakeKernel(self.sys, directory / "proc", directory / "dev")
        else:
            self.kernel = KernelDevices()
        self.provider = self.open()

    def open(self) -> Provider:
        """As a restarted daemon has it."""
        return self.found.open(Opening(self.kernel, self.hypervisor, frozenset({"vda"})))  # type: ignore[arg-type]

    def device(self) -> HostDevice:
        listed = self.provider.list()
        if not listed:
            pytest.skip(f"this host has no {self.found.name} device")
        return listed[0]

    def giveable(self) -> HostDevice:
        if self.found.refusal:
            pytest.skip("devices of this class cannot be given away")
        return self.device()


@pytest.fixture(params=sorted(CLASSES))
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return Rig(CLASSES[request.param], tmp_path)


def run(work: Callable[[], object]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def nothing() -> None:
    """No event to announce."""


def test_the_declaration_is_complete(rig: Rig) -> None:
    found = rig.found
    assert found.doc.endswith(".") and len(found.doc) < 130
    assert found.subsystems and found.controller in ("", "usb")
    for option in found.options:
        assert option.doc.endswith(".")
        if option.default:
            option.check(option.default)
    with pytest.raises(ValueInvalidError, match="no option 'colour'"):
        found.check({"colour": "red"})


def test_the_list_is_in_order_and_of_valid_names(rig: Rig) -> None:
    listed = rig.provider.list()
    assert [one.port for one in listed] == sorted({one.port for one in listed})
    for one in listed:
        assert one.klass == rig.found.name
        assert port(one.port) == one.port and identity(one.ident) == one.ident
        assert one.interfaces and len(one.interfaces) % 7 == 0
        assert (one.size is None) == (not one.node)
    assert rig.provider.list() == listed, "what has not changed is equal, so that no event is announced for it"


def test_devices_that_share_nothing_have_no_resource_in_common(rig: Rig) -> None:
    one, *others = [rig.provider.resources(device) for device in rig.provider.list()] or [frozenset()]
    for resource in one:
        assert resource.partition(":")[2], "KIND:NAME"
    if rig.found.name in SAMPLES:
        assert one and others and not one & others[0]


def test_what_was_attached_is_found_and_taken_back(rig: Rig) -> None:
    device = rig.giveable()

    async def scenario() -> None:
        said: list[int] = []
        before = lambda: said.append(len(rig.hypervisor.disks))  # noqa: E731
        await rig.provider.attach(MACHINE, device, {}, before)
        assert said == [0], "announced once, before the machine has it"
        (one,) = (await rig.open().attached())[MACHINE.uuid]
        assert (one.port, one.ident) == (device.port, device.ident)
        assert one.resource in rig.provider.resources(device)
        rig.found.check(one.options if set(one.options) <= {o.name for o in rig.found.options} else {})
        await rig.open().detach(MACHINE, one)
        assert not (await rig.provider.attached()).get(MACHINE.uuid)
        await rig.provider.attach(MACHINE, device, {}, nothing)

    run(scenario)


def test_each_of_two_devices_of_one_machine_is_told_from_the_other(rig: Rig) -> None:
    rig.giveable()

    async def scenario() -> None:
        both = rig.provider.list()[:2]
        for device in both:
            await rig.provider.attach(MACHINE, device, {}, nothing)
        found = (await rig.provider.attached())[MACHINE.uuid]
        assert [one.port for one in found] == [device.port for device in both]
        await rig.provider.detach(MACHINE, found[0])
        assert [one.port for one in (await rig.provider.attached())[MACHINE.uuid]] == [both[-1].port][: len(both) - 1]

    run(scenario)


def test_a_refused_attachment_leaves_nothing(rig: Rig) -> None:
    device = rig.giveable()

    async def scenario() -> None:
        rig.hypervisor.refuses = True
        with pytest.raises(HypervisorError):
            await rig.provider.attach(MACHINE, device, {}, nothing)
        assert not (await rig.provider.attached()).get(MACHINE.uuid)

    run(scenario)


def test_a_guest_that_keeps_a_device_has_it_still(rig: Rig) -> None:
    device = rig.giveable()

    async def scenario() -> None:
        await rig.provider.attach(MACHINE, device, {}, nothing)
        (one,) = (await rig.provider.attached())[MACHINE.uuid]
        rig.hypervisor.stuck.add(MACHINE.uuid)
        with pytest.raises(DeviceBusyError):
            await rig.provider.detach(MACHINE, one)
        assert (await rig.provider.attached())[MACHINE.uuid] == [one]

    run(scenario)


def test_a_class_that_refuses_says_why(rig: Rig) -> None:
    if not rig.found.refusal:
        pytest.skip("devices of this class can be given away")

    async def scenario() -> None:
        with pytest.raises(NotImplementedHereError, match=rig.found.refusal):
            await rig.provider.attach(MACHINE, rig.device(), {}, nothing)
        assert not await rig.provider.attached()

    run(scenario)


def test_release_is_idempotent(rig: Rig) -> None:
    for _ in range(2):
        rig.provider.release(MACHINE)
