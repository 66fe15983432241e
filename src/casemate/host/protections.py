"""Which protections of the hardening table this host gives to qubes, which it lacks, and why. Reads, changes nothing.

Ids are rows of the table in docs/explanation/security.md. ``base`` stands for ``/`` so that tests can bring a host.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from casemate.host.process import succeeds
from casemate.link import landlock
from casemate.settings import Settings

_CPU = "sys/devices/system/cpu"


@dataclass(frozen=True, slots=True)
class Protection:
    """One protection: what it is, whether it is here, why (not), and what a person can do where it is missing."""

    id: str
    what: str
    present: bool
    why: str
    remedy: str = ""
    """Empty where it is present."""


_ROOT = "Run casemated as root: only root can give its processes other users, other limits and other views of /dev."
_REMEDIES = {
    "KVM": "Turn virtualisation (VT-x, AMD-V) on in the firmware, load kvm_intel or kvm_amd, and let this user open "
    "/dev/kvm (group kvm).",
    "H1": "Install the newest kernel and the processor's microcode (intel-microcode or amd64-microcode), and boot "
    "without mitigations=off.",
    "H2": "Boot with mitigations=auto,nosmt, or write off to /sys/devices/system/cpu/smt/control.",
    "H3": "Put the line 'options kvm_intel nested=0' (or kvm_amd) into a file of /etc/modprobe.d, and boot anew.",
    "H4": "Write 2 to /sys/kernel/mm/ksm/run, and remove what turns it on (ksmtuned).",
    "H5": "Encrypt the swap space with dm-crypt, use zram instead, or turn it off (swapoff -a, /etc/fstab).",
    "H7": "See the line about the network: it says why QEMU has no network namespace of its own.",
    "V1": "Use libvirt without its system daemon: unset CASEMATE_HYPERVISOR. V3 needs the opposite; choose one.",
    "V2": _ROOT,
    "V3": "Boot a kernel with AppArmor or SELinux (lsm=), and set CASEMATE_HYPERVISOR=system. V1 needs the opposite; "
    "choose one.",
    "V4": "Boot a kernel with CONFIG_SECCOMP_FILTER.",
    "V5": f"{_ROOT} In a container, allow mount namespaces.",
    "V6": _ROOT,
    "V9": "Boot a kernel with CONFIG_SECURITY_LANDLOCK, and with landlock in lsm=.",
    "P1": "Turn the IOMMU (VT-d, AMD-Vi) on in the firmware, and boot with intel_iommu=on where the kernel needs it.",
}  # fmt: skip
"""What to do where a protection is missing. H6 is never missing."""

_Verdict = tuple[bool, str]


def protections(
    settings: Settings, acceleration: str | None, room: bool = False, base: Path = Path("/")
) -> list[Protection]:
    """All of them. ``acceleration`` is what the probe boot found, None before it. ``room``: whether QEMU runs in the
    wire room, a network namespace without addresses."""
    root = os.geteuid() == 0
    found: list[Protection] = []

    def tell(ident: str, what: str, verdict: _Verdict) -> None:
        present, why = verdict
        found.append(Protection(ident, what, present, why, "" if present else _REMEDIES[ident]))

    tell("KVM", "qubes run on the processor's own virtualisation", _kvm(acceleration))
    tell("H1", "the kernel mitigates this processor's known leaks", _vulnerabilities(base))
    tell("H2", "qubes never share a processor core with each other", _threads(base))
    tell("H3", "no virtualisation inside qubes", _nested(base))
    tell("H4", "memory is never merged between qubes", _merging(base))
    tell("H5", "memory of qubes is not written to disk in the clear", _swap(base))
    tell("H6", "nothing on the host opens file systems that qubes wrote", (True, "volumes are files, not devices"))
    tell("H7", "a hijacked QEMU cannot reach services of this host",
         (room, "its network namespace has no address and forwards nothing" if room
          else "QEMU shares the host's network namespace"))  # fmt: skip
    tell("V1", "nobody else commands the hypervisor", _command(settings))
    tell("V2", "each qube's QEMU runs as a user of its own", _users(root))
    tell("V3", "AppArmor or SELinux confines QEMU", _mandatory(settings, base))
    tell("V4", "QEMU may make only the system calls it needs", _seccomp(base))
    tell("V5", "QEMU sees only the devices it needs", _devices(root))
    tell("V6", "QEMU cannot use up files and processes of this host", _limits(root))
    tell("V9", "a hijacked link opens no file but its sockets", _landlock())
    tell("P1", "devices given to a qube cannot reach other memory", _iommu(base))
    return found


def _text(base: Path, path: str) -> str | None:
    try:
        return (base / path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _landlock() -> _Verdict:
    found = landlock.version()
    if not found:
        return False, "the kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, and lsm=landlock,... at boot)"
    return True, f"Landlock, version {found}"


def _kvm(acceleration: str | None) -> _Verdict:
    if acceleration == "kvm":
        return True, "a probe guest ran"
    if acceleration is None:
        return False, "not probed yet"
    return False, "qubes are emulated: several times slower, and QEMU's translator was not made as a security boundary"


def _vulnerabilities(base: Path) -> _Verdict:
    directory = base / _CPU / "vulnerabilities"
    states = {path.name: _text(base, f"{_CPU}/vulnerabilities/{path.name}") or "" for path in _entries(directory)}
    if not states:
        return False, "the kernel does not tell"
    bad = [f"{name}: {text}" for name, text in sorted(states.items()) if "Vulnerable" in text or "no microcode" in text]
    return not bad, "; ".join(bad)


def _threads(base: Path) -> _Verdict:
    active = _text(base, f"{_CPU}/smt/active")
    if active is None:
        return False, "the kernel does not tell whether cores run two threads"
    if active != "0":
        return False, "cores run two threads, which share caches (boot with mitigations=auto,nosmt)"
    return True, ""


def _nested(base: Path) -> _Verdict:
    for vendor in ("intel", "amd"):
        value = _text(base, f"sys/module/kvm_{vendor}/parameters/nested")
        if value is not None:
            return value in ("0", "N"), "" if value in (
                "0",
                "N",
            ) else f"set kvm_{vendor}.nested=0; qubes have it masked"
    return True, "the processor's virtualisation is not in use"


def _merging(base: Path) -> _Verdict:
    return _text(base, "sys/kernel/mm/ksm/run") in (None, "0"), "machines also forbid it for their own memory"


def _swap(base: Path) -> _Verdict:
    lines = (_text(base, "proc/swaps") or "").splitlines()[1:]
    plain = [line.split()[0] for line in lines if not _encrypted(base, Path(line.split()[0]).name)]
    return not plain, f"swap space that is not encrypted: {', '.join(plain)}" if plain else ""


def _encrypted(base: Path, name: str) -> bool:
    """Compressed memory, or a device that dm-crypt made."""
    return name.startswith("zram") or (_text(base, f"sys/block/{name}/dm/uuid") or "").startswith("CRYPT-")


def _command(settings: Settings) -> _Verdict:
    if settings.hypervisor == "system":
        return False, "the system's libvirt obeys everybody in group libvirt, as root"
    return True, "libvirt has no socket that others could use"


def _users(root: bool) -> _Verdict:
    if root:
        return True, ""
    return False, f"all run as user {os.geteuid()}, as the daemon does: a hijacked QEMU owns every qube of this user"


def _mandatory(settings: Settings, base: Path) -> _Verdict:
    active = (_text(base, "sys/kernel/security/lsm") or "").split(",")
    if not {"apparmor", "selinux"} & set(active):
        return False, "this kernel runs neither"
    if settings.hypervisor != "system":
        return False, "libvirt confines machines only where it runs as the system's daemon (CASEMATE_HYPERVISOR=system)"
    return True, ""


def _seccomp(base: Path) -> _Verdict:
    here = _text(base, "proc/sys/kernel/seccomp/actions_avail") is not None
    return here, "" if here else "this kernel has no seccomp filters"


def _devices(root: bool) -> _Verdict:
    if not root:
        return False, "only root can give QEMU a /dev of its own"
    if not can_unshare_mounts():
        return False, "this environment allows no mount namespaces"
    return True, ""


def _limits(root: bool) -> _Verdict:
    return root, "" if root else "limits count per user, and all of your processes are one user's"


def _iommu(base: Path) -> _Verdict:
    here = bool(_entries(base / "sys/kernel/iommu_groups"))
    return here, "" if here else "there is no IOMMU in use: no devices can be given to qubes"


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


@functools.cache
def can_unshare_mounts() -> bool:
    """Whether a process of ours may have a view of the file system of its own; tried once, by unshare(1).

    Not by a fork of ours: the daemon has threads, and a lock that one of them holds stays locked in a forked child.
    """
    return succeeds(["unshare", "--mount", "true"])
