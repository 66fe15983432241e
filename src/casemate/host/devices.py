"""The host's devices, as the kernel lists them below /sys: PCI functions, USB devices, loop devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from casemate.wire.errors import printable


@dataclass(frozen=True, slots=True)
class HostDevice:
    """One device of the host. ``port`` says where it is, ``ident`` what it is; ``interfaces`` are 7-character codes."""

    klass: str
    port: str
    ident: str
    vendor: str = ""
    product: str = ""
    name: str = ""
    serial: str = ""
    interfaces: str = "?******"


class HostDevices:
    """Looks each time it is asked: devices come and go."""

    CLASSES = ("block", "pci", "usb")

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._root = root

    def list(self, klass: str) -> list[HostDevice]:
        """All devices of a class, by port."""
        found = {"block": self._block, "pci": self._pci, "usb": self._usb}[klass]()
        return sorted(found, key=lambda device: device.port)

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
        for place in self._directories("block"):
            backing = self._text(place / "loop", "backing_file") if place.name.startswith("loop") else ""
            if backing:
                yield HostDevice("block", place.name, "", name=backing, interfaces="b******")
