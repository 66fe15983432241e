"""qvm-move-to-vm on the host: qvm-copy-to-vm that removes what has arrived."""

from __future__ import annotations

from collections.abc import Sequence

from casemate.cli.qvm_copy_to_vm import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; nothing is removed unless the qube has confirmed everything."""
    return run("qvm-move-to-vm", True, argv)
