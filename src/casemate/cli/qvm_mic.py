"""qvm-mic: qvm-device for devices of class mic."""

from __future__ import annotations

from collections.abc import Sequence

from casemate.cli import qvm_device


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    return qvm_device.main(argv, "mic")
