"""Does KVM really run a guest here? A probe boot tells; that /dev/kvm exists proves nothing."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from casemate.host.files import replace_file
from casemate.host.process import Runner
from casemate.settings import Settings
from casemate.wire.errors import ToolError

KVM = Path("/dev/kvm")
QEMU = "qemu-system-x86_64"
_HELLO = b"casemate: a guest runs here"  # host/initrd/init.c
_PROBE_SECONDS = 8.0
_OPTIONS = "console=ttyS0 quiet panic=-1 cryptomgr.notests casemate.init=probe"


@dataclass(frozen=True, slots=True)
class Acceleration:
    """How guests are run: ``kvm`` or ``tcg`` (emulated, several times slower), and why."""

    kind: str
    reason: str


async def probe(settings: Settings, runner: Runner, kernel: Path, initrd: Path, fresh: bool = False) -> Acceleration:
    """Boot the guests' own kernel under KVM until its first program speaks. Kept until the host boots again, or the
    kernel or QEMU changes; ``fresh`` asks anew."""
    if not KVM.exists():
        return Acceleration("tcg", "this host has no /dev/kvm")
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Acceleration("tcg", f"no permission to use /dev/kvm (uid {os.geteuid()}; group kvm may)")
    version = (await runner.run([QEMU, "--version"], timeout=20)).stdout
    digest = hashlib.sha256(b"\0".join([_boot_id(), version, _identity(kernel), _identity(initrd)])).hexdigest()
    cached = settings.cache / "acceleration.json"
    if not fresh:
        known = _read(cached, digest)
        if known is not None:
            return known
    found = await _boot(runner, kernel, initrd)
    cached.parent.mkdir(parents=True, exist_ok=True)
    replace_file(cached, json.dumps({"for": digest, **asdict(found)}).encode())
    return found


async def _boot(runner: Runner, kernel: Path, initrd: Path) -> Acceleration:
    argv: list[str | Path] = [
        QEMU, "-machine", "q35,accel=kvm", "-cpu", "host", "-m", "128", "-nodefaults", "-no-user-config",
        "-display", "none", "-no-reboot", "-serial", "stdio", "-sandbox", "on",
        "-kernel", kernel, "-initrd", initrd, "-append", _OPTIONS,
    ]  # fmt: skip
    try:
        done = await runner.run(argv, timeout=_PROBE_SECONDS, check=False)
    except ToolError:
        return Acceleration("tcg", f"a probe guest under KVM said nothing within {_PROBE_SECONDS:g} s")
    if _HELLO in done.stdout:
        return Acceleration("kvm", "a probe guest ran under KVM")
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    why = said[-1] if said else f"it ended with status {done.status} and said nothing"
    return Acceleration("tcg", f"a probe guest does not run under KVM: {why}")


def _read(path: Path, digest: str) -> Acceleration | None:
    try:
        known = json.loads(path.read_bytes())
        if known["for"] == digest and known["kind"] in ("kvm", "tcg"):
            return Acceleration(known["kind"], str(known["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes()


def _identity(path: Path) -> bytes:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}".encode()
