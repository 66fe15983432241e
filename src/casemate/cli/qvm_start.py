"""qvm-start: start qubes and wait until they can be used."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from casemate.cli import tool
from casemate.cli.progress import Waiting
from casemate.client.qubes import Qubes
from casemate.wire.admin import ADMIN
from casemate.wire.errors import NotHaltedError

PROG = "qvm-start"
WINDOWS_TOOLS = "/usr/lib/qubes/qubes-windows-tools.iso"
"""Where upstream's package of drivers for Windows guests puts its image."""


@contextmanager
def _with_drive(args: argparse.Namespace, qubes: Qubes, name: str) -> Iterator[None]:
    """While the block lasts the qube is assigned the drive that the command line names."""
    from casemate.cli.device_text import payload, wire
    from casemate.cli.loop_device import LoopDevice

    devtype, place = args.drive
    backend, colon, where = place.partition(":")
    if not colon or not where:
        raise tool.UsageError(f"a drive is written BACKEND:DEVICE or {ADMIN}:/PATH, not {place!r}")
    loop = LoopDevice(where, readonly=devtype == "cdrom") if backend == ADMIN and where.startswith("/") else None
    try:
        device = wire(f"{backend}:{loop.__enter__() if loop is not None else where}")
        options = {"devtype": devtype, "read-only": "yes" if devtype == "cdrom" else "no"}
        qubes.call("admin.vm.device.block.Assign", device, name, payload("block", device, "required", options))
        try:
            yield
        finally:
            qubes.call("admin.vm.device.block.Unassign", device, name)
    finally:
        if loop is not None:
            loop.__exit__(None, None, None)


def _body(args: argparse.Namespace, qubes: Qubes) -> int:
    chosen = tool.choose(args, qubes.listed())
    skip = args.skip_if_running or args.all
    if args.drive is not None and len(chosen) != 1:
        raise tool.UsageError("a drive can be given to one qube only")

    def start(name: str) -> None:
        state = next(qube.state for qube in chosen if qube.name == name)
        if state == "Running":
            if skip:
                return
            raise NotHaltedError(f"domain {name} is already running")
        with Waiting(f"starting {name}", args.quiet):
            if args.drive is None:
                qubes.call("admin.vm.Start", "", name)
                return
            with _with_drive(args, qubes, name):
                qubes.call("admin.vm.Start", "", name)

    return tool.each(PROG, [qube.name for qube in chosen], start)


def _drive(text: str) -> tuple[str, str]:
    """``[hd:|cdrom:]BACKEND:DEVICE``; without a kind it is a CD-ROM."""
    kind, _, rest = text.partition(":")
    if kind in ("hd", "cdrom"):
        return "disk" if kind == "hd" else "cdrom", rest
    return "cdrom", text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; its exit status is 1 if any of the qubes did not start, or ran already."""
    parser = tool.Parser(PROG, "Start qubes and wait until they can be used.")
    parser.many_qubes()
    parser.add_argument("--skip-if-running", action="store_true", help="a qube that runs already is no error")
    drive = parser.add_mutually_exclusive_group()
    drive.add_argument("--drive", type=_drive, metavar="[hd:|cdrom:]DRIVE",
                       help="give it a drive for this start: BACKEND:DEVICE, or dom0:/PATH of a file")  # fmt: skip
    drive.add_argument("--hddisk", dest="drive", type=lambda text: ("disk", text), metavar="DRIVE",
                       help="the same, as a disk that can be written")  # fmt: skip
    drive.add_argument("--cdrom", dest="drive", type=lambda text: ("cdrom", text), metavar="DRIVE",
                       help="the same, to be read only")  # fmt: skip
    drive.add_argument("--install-windows-tools", dest="drive", action="store_const",
                       const=("cdrom", f"{ADMIN}:{WINDOWS_TOOLS}"),
                       help=f"the same with {WINDOWS_TOOLS}, which is not part of Casemate")  # fmt: skip
    return tool.run(parser, _body, argv)
