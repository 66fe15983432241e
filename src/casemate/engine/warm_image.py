"""What a warm image is: a booted guest that stands still, from which qubes go on; and what makes it outdated.

An image holds for a *shape* of machine and the content of its disks. Its key is a digest of both, so an image whose
template has changed is not found any more, and nothing has to tell it so.

Images are of two kinds. Disposables of one disposable template begin with the same home, so its file system is mounted
in their image. App qubes of one template have a private disk each: in their image it is not mounted yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from casemate.engine.machine import init_kind
from casemate.host.domain_xml_qemu import qemu_xml
from casemate.host.hypervisor import GuestMemory, MachineSpec
from casemate.model.domain import Domain

BUILDING = "casemate-warm-image"
"""Feature of the qube that boots to become an image. Its agent takes no identity (agent/main.py)."""
WARM = "casemate-warm"
"""Feature of a qube, of its template for all qubes of it, or of dom0 for all: empty for those that always boot."""
EXEC = "warm-exec"
"""Feature of a disposable template: a shell command that runs in the guest before its image is saved, as the default
user. What it leaves running, and what it has read from disk, is there in each disposable from the beginning."""
DIGITS = 16
"""Hexadecimal digits of a key."""


@dataclass(frozen=True, slots=True)
class WarmImage:
    """An image that is ready. ``bytes`` are those of its files; ``made`` and ``used``: seconds since the epoch."""

    key: str
    directory: Path
    template: str
    pools: tuple[str, ...]
    made: float
    used: float
    bytes: int
    is_fork: bool = False
    """The copy of a guest that ran, for the forks that are made of it now: they have its programs, and no boot could
    stand for them."""


def is_being_made(domain: Domain) -> bool:
    """Whether this qube boots in order to become an image."""
    return bool(domain.features.get(BUILDING))


def mounts_later(domain: Domain) -> bool:
    """Whether the private disk is the qube's own, so that an image cannot have it mounted."""
    private = domain.volumes.get("private")
    return private is not None and private.save_on_stop


def is_wanted(domain: Domain, admin: Domain) -> bool:
    """Whether a qube may go on from an image: a disposable or app qube with our agent as process 1 that serves no
    network, unless a person wants it to boot.

    Under systemd, programs of the guest hold what an identity is made of; a net qube has rules of its own.
    """
    if domain.klass not in ("DispVM", "AppVM") or domain.provides_network:
        return False
    if init_kind(domain) != "lean" or not domain.kernel:
        return False
    said_by = (domain, domain.template, admin)
    asked = next((of.features[WARM] for of in said_by if of is not None and WARM in of.features), "1")
    return bool(asked)


def shape(spec: MachineSpec) -> str:
    """The machine without what is one qube's own: the XML of an anonymous one."""
    nowhere = Path("/")
    same = replace(
        spec, name="", uuid=UUID(int=0), title="", channel=nowhere / "channel", console=nowhere / "console",
        uid=None, gid=None, disks=(), memory=GuestMemory(),
        nics=tuple(replace(nic, tap=f"wire{number}") for number, nic in enumerate(spec.nics)),
    )  # fmt: skip
    return qemu_xml(same, "")


def key_of(spec: MachineSpec, disks: Mapping[str, str], command: str, host: str) -> str:
    """The key of images for a machine. ``disks``: what each begins with. ``command``: what has run in it (EXEC).
    ``host``: QEMU and the host's boot."""
    files = [_identity(path) for path in (spec.kernel, spec.initrd)]
    words = [shape(spec), host, command, *files, *(f"{name}={content}" for name, content in sorted(disks.items()))]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:DIGITS]


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"
