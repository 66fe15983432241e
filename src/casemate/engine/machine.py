"""Derives the virtual machine of a qube from its properties (pure)."""

from __future__ import annotations

from collections.abc import Mapping

from casemate.host.hypervisor import Disk, MachineSpec
from casemate.model.domain import Domain
from casemate.network.plan import nics
from casemate.settings import Settings
from casemate.storage.pool import Owner
from casemate.wire.errors import StartError
from casemate.wire.names import kernel_name

TARGETS = {"root": "vda", "private": "vdb", "volatile": "vdc"}
"""Name of the disk that each volume becomes in the guest. The volume ``kernel`` is no disk and not here."""

INIT_KINDS = ("lean", "systemd")
"""What a template can boot with. lean: our agent is process 1."""

EMULATED = "norandmaps no_timer_check"
"""Kernel options for emulated guests only.

norandmaps: no random addresses. QEMU keeps translated code by address, so with random ones it translates every program
again at each start (four times slower). Emulation is no security boundary anyway.

no_timer_check: at boot the kernel counts timer interrupts for a few milliseconds and panics when there are too few
("IO-APIC + timer doesn't work"). On a busy host an emulated guest may get no processor in that time. Under KVM the
kernel leaves the check out by itself.
"""


NET_INITRD = "initrd-net"
"""The initramfs of net qubes, beside that of the others: with the modules of their firewall."""


def init_kind(domain: Domain) -> str:
    """``lean`` (our agent is process 1) or ``systemd``: feature ``init`` of the qube, else along its templates."""
    at: Domain | None = domain
    while at is not None:
        value = at.features.get("init")
        if value in INIT_KINDS:
            return value
        at = at.template
    return "lean"


def machine_spec(
    settings: Settings,
    domain: Domain,
    disks: Mapping[str, Disk],
    acceleration: str,
    owner: Owner | None,
    controllers: frozenset[str] = frozenset(),
) -> MachineSpec:
    """The machine of a qube; StartError when it has no kernel.

    ``disks`` maps volume names to what storage prepared. ``acceleration`` is ``kvm`` or ``tcg``. ``owner`` runs QEMU
    (None: this process's user does). ``controllers``: see ``Devices.controllers``.
    """
    if not domain.kernel:
        raise StartError(f"{domain.name} has no kernel: build a template first (casemate template build)")
    directory = settings.state / "kernels" / kernel_name(domain.kernel)
    run = settings.qube_run(domain.name)
    cmdline = f"casemate.init={init_kind(domain)}"
    if acceleration == "tcg":
        cmdline += f" {EMULATED}"
    if domain.kernelopts:
        cmdline += f" {domain.kernelopts}"
    return MachineSpec(
        name=domain.name,
        uuid=domain.uuid,
        title=f"Casemate qube {domain.name} of {settings.state}",
        memory_mib=domain.memory,
        # Under emulation a second processor makes a start slower, not faster. A person can set it all the same.
        vcpus=1 if acceleration == "tcg" and not domain.is_set("vcpus") else domain.vcpus,
        acceleration=acceleration,
        kernel=directory / "vmlinuz",
        initrd=directory / (NET_INITRD if domain.provides_network else "initrd"),
        cmdline=cmdline,
        disks=tuple(disks[name] for name in TARGETS if name in disks),
        channel=run / "channel.sock",
        console=run / "console.sock",
        uid=owner.uid if owner is not None else None,
        gid=owner.gid if owner is not None else None,
        usb="usb" in controllers,
        nics=nics(domain),
    )
