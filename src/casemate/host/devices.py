"""The host's devices, as the kernel lists them below /sys: PCI functions, USB devices, block devices not in use."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.wire.errors import DeviceBusyError, DeviceNotFoundError, HypervisorError, printable

_SECTOR = 512
"""Bytes of a sector in /sys, whatever the device's own are."""
_NOT_OFFERED = ("ram", "zram", "fd")
_NOT_IDENT = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class HostDevice:
    """One device of the host. ``port`` says where it is, ``ident`` what it is; ``interfaces`` are 7-character codes.

    ``size`` in bytes and ``readonly`` are those of a block device. ``whole`` is the disk that it is a partition of;
    ``file`` tells the file behind a loop device from every other file.
    """

    klass: str
    port: str
    ident: str
    vendor: str = ""
    product: str = ""
    name: str = ""
    serial: str = ""
    interfaces: str = "?******"
    size: int = 0
    readonly: bool = False
    whole: str = ""
    file: str = ""


class HostDevices:
    """Looks each time it is asked: devices come and go."""

    CLASSES = ("block", "pci", "usb")

    def __init__(self, root: Path = Path("/sys"), proc: Path = Path("/proc"), dev: Path = Path("/dev")) -> None:
        self._root = root
        self._proc = proc
        self._dev = dev

    def list(self, klass: str) -> list[HostDevice]:
        """All devices of a class, by port; of block devices those that the host does not use itself."""
        found = {"block": self._block, "pci": self._pci, "usb": self._usb}[klass]()
        return sorted(found, key=lambda device: device.port)

    def node(self, device: HostDevice) -> Path:
        """The node of a block device that the list has, checked to be that device and free.

        The name comes from the kernel's list, never from a caller. Whether the host uses the device is asked of the
        kernel itself: opening it exclusively fails while it is mounted, swapped to or part of something.
        """
        path = self._dev / device.port
        numbers = self._text(self._root / "class/block" / device.port, "dev")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DeviceNotFoundError(f"{path} has gone") from None
        except PermissionError:
            raise HypervisorError(f"{path} may not be opened: only root can give devices to qubes") from None
        except OSError as error:
            raise DeviceBusyError(f"{path} is in use by this host: {error.strerror}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISBLK(status.st_mode) or f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" != numbers:
                raise HypervisorError(f"{path} is not the device that the kernel lists under that name")
        finally:
            os.close(fd)
        return path

    def port_of(self, node: Path) -> str:
        """The port whose node that is."""
        return node.name

    def path(self, port: str) -> Path:
        """Where the node of a block device is; nothing is checked."""
        return self._dev / port

    def _text(self, directory: Path, name: str) -> str:
        try:
            return printable((directory / name).read_text("utf-8", "replace").strip(), 200)
        except OSError:
            return ""

    def _directories(self, path: str) -> Iterator[Path]:
        try:
            yield from (self._root / path).iterdir()
        except OSError:
            return

    def _pci(self) -> Iterator[HostDevice]:
        for place in self._directories("bus/pci/devices"):
            vendor, product, kind = (self._text(place, name)[2:] for name in ("vendor", "device", "class"))
            port = place.name.removeprefix("0000:").replace(":", "_")
            yield HostDevice("pci", port, f"0x{vendor}:0x{product}::p{kind}", vendor, product, interfaces=f"p{kind}")

    def _usb(self) -> Iterator[HostDevice]:
        for place in self._directories("bus/usb/devices"):
            if ":" in place.name or not (place / "idVendor").exists():
                continue
            vendor, product, kind = (self._text(place, name) for name in ("idVendor", "idProduct", "bDeviceClass"))
            codes = "".join(
                "u" + "".join(self._text(one, f"bInterface{part}") for part in ("Class", "SubClass", "Protocol"))
                for one in sorted(place.glob(f"{place.name}:*"))
            )
            yield HostDevice(
                "usb", place.name, f"{vendor}:{product}:{self._text(place, 'serial')}:u{kind}", vendor, product,
                self._text(place, "product"), self._text(place, "serial"), codes or f"u{kind:0<6}",
            )  # fmt: skip

    def _block(self) -> Iterator[HostDevice]:
        used = self._used()
        for disk in self._directories("block"):
            if disk.name.startswith(_NOT_OFFERED) or "!" in disk.name:
                continue
            parts = [part.parent for part in disk.glob("*/partition")]
            if not any(self._is_used(one, used) for one in (disk, *parts)):
                yield from self._offered(disk, "")
            for part in parts:
                if not self._is_used(part, used) and not self._is_used(disk, used):
                    yield from self._offered(part, disk.name)

    def _offered(self, place: Path, whole: str) -> Iterator[HostDevice]:
        size = self._text(place, "size")
        sectors = int(size) if size.isascii() and size.isdecimal() else 0
        loop = self._text(place / "loop", "backing_file")
        if sectors == 0 or (place.name.startswith("loop") and not whole and not loop):
            return
        disk = self._root / "block" / whole if whole else place
        number = self._text(place, "partition") if whole else ""
        model = loop or " ".join(filter(None, (self._text(disk / "device", n) for n in ("vendor", "model"))))
        serial = (
            self._text(disk / "device", "serial") or self._text(disk / "device", "wwid") or self._text(disk, "wwid")
        )
        if loop:
            ident = "file-" + hashlib.sha256(loop.encode()).hexdigest()[:16]
        else:
            ident = _NOT_IDENT.sub("-", serial)[:100] or f"{disk.name}-{sectors}"
        yield HostDevice(
            "block", place.name, f"{ident}:p{number}" if whole else ident, name=model or disk.name, serial=serial,
            interfaces="b******", size=sectors * _SECTOR, readonly=self._text(place, "ro") == "1", whole=whole,
            file=_identity(loop) if loop else "",
        )  # fmt: skip

    def _is_used(self, place: Path, used: frozenset[str]) -> bool:
        try:
            held = any((place / "holders").iterdir())
        except OSError:
            held = False
        return held or place.name in used or self._text(place, "dev") in used

    def _used(self) -> frozenset[str]:
        """Numbers (``MAJOR:MINOR``) and names of the block devices that are mounted or swapped to."""
        found: set[str] = set()
        for process in ("self", "1"):
            for line in self._lines(f"{process}/mountinfo"):
                before, _, after = line.partition(" - ")
                source = after.split(" ")[1:2]
                found.update(before.split(" ")[2:3])
                # Some file systems (btrfs) have numbers of their own; their source is the device.
                found.update(self._names(name) for name in source if name.startswith("/dev/"))
        found.update(self._names(line.split()[0]) for line in self._lines("swaps")[1:])
        return frozenset(found)

    def _names(self, node: str) -> str:
        try:
            return Path(node).resolve().name
        except OSError:
            return Path(node).name

    def _lines(self, name: str) -> Sequence[str]:
        try:
            return (self._proc / name).read_text("utf-8", "replace").splitlines()
        except OSError:
            return []


def _identity(path: str) -> str:
    """A file by device and number, so that links to it are it; by its path where it has been removed."""
    try:
        status = Path(path).stat()
    except OSError:
        return path
    return f"{status.st_dev}:{status.st_ino}"
