"""What the daemon says about its host: how guests run here, and which protections it lacks."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from casemate import __version__
from casemate.engine.acceleration import AccelerationProbe
from casemate.engine.accounts import Accounts
from casemate.engine.network_report import NetworkReport
from casemate.engine.preloads import Preloads
from casemate.engine.states import States
from casemate.engine.warm_images import WarmImages
from casemate.host.process import Runner
from casemate.host.protections import protections
from casemate.host.versions import Versions, system_name, versions
from casemate.qrexec.call_sockets import policy_state
from casemate.qrexec.files import PolicyFiles
from casemate.settings import Settings


@dataclass(frozen=True, slots=True)
class HostFigures:
    """What this host has, as the global properties of these names tell it."""

    maxmem: int
    """All memory, in MiB."""
    no_cpus: int
    """Processors that this process, and so its qubes, may use."""


class HostStatus:
    """Reads its figures from the parts that own them, at each question."""

    def __init__(
        self,
        settings: Settings,
        acceleration: AccelerationProbe,
        states: States,
        policy: PolicyFiles,
        accounts: Accounts,
        runner: Runner,
        network: NetworkReport,
        preloads: Preloads,
        images: WarmImages,
    ) -> None:
        self._settings = settings
        self._acceleration = acceleration
        self._states = states
        self._policy = policy
        self._accounts = accounts
        self._runner = runner
        self._network = network
        self._preloads = preloads
        self._images = images
        self._versions: Versions | None = None

    def figures(self) -> HostFigures:
        """What this host has, now: memory and processors can be added to a running host."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return HostFigures(memory >> 20, len(os.sched_getaffinity(0)))

    async def probe(self) -> str:
        """``kvm`` or ``tcg``, and why. Boots a kernel at the first question."""
        self._versions = await versions(self._runner)  # each time: an upgrade changes them under a running daemon
        found = await self._acceleration.get()
        return f"{found.kind} {found.reason}"

    def status(self) -> dict[str, Any]:
        """What this host does for qubes and which protections it lacks, for ``casemate status``; never waits."""
        found = self._acceleration.found
        return {
            "version": __version__,
            "host": self._host(),
            "acceleration": f"{found.kind} {found.reason}" if found else "not probed yet: happens at the first start",
            "hypervisor": f"libvirt, {self._settings.hypervisor}",
            "state": str(self._settings.state),
            "running": len(self._states.all()),
            **self._stuck(),
            **self._waiting(),
            "warm images": self._warm(),
            "policy": policy_state(self._policy),
            "isolation": self._isolation(),
            "network": self._network_line(),
            "protections": [
                asdict(one) for one in protections(self._settings, found.kind if found else None, not self._network.why)
            ],
        }

    def _stuck(self) -> dict[str, str]:
        found = self._states.stuck()
        return {"stuck": "; ".join(f"{name}: {why}" for name, why in sorted(found.items()))} if found else {}

    def _waiting(self) -> dict[str, str]:
        found = self._preloads.waiting()
        return (
            {"disposables": "; ".join(f"{have} of {want} of {name} wait" for name, have, want in found)}
            if found
            else {}
        )

    def _warm(self) -> str:
        """How many there are, and what they take on disk."""
        if why := self._images.why_not:
            return f"none, every qube boots: {why}"
        images = self._images.list()
        return f"{len(images)}, {sum(image.bytes for image in images) >> 20} MiB"

    def _host(self) -> str:
        if self._versions is None:
            return system_name()
        told = self._versions
        return f"{told.system}, kernel {told.kernel}, QEMU {told.qemu}, libvirt {told.libvirt}: {told.known}"

    def _network_line(self) -> str:
        """What is enforced here for traffic of qubes."""
        if why := self._network.why:
            return f"none for qubes: {why}"
        enforced = "wires in a namespace of their own; addresses and firewall enforced there and in net qubes"
        return "; ".join([enforced, *self._network.cards()])

    def _isolation(self) -> str:
        if self._accounts.root:
            return "each qube runs as a user of its own"
        return f"weaker: all qubes run as user {os.geteuid()}, as this daemon does; root would give each its own"
