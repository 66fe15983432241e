"""qvm-usb: qvm-device for devices of class usb."""

from __future__ import annotations

from collections.abc import Sequence

from casemate.cli import qvm_device


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    return qvm_device.main(argv, "usb")
