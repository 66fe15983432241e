"""``casemate backup open``: look into a volume of a backup, read-only, in a disposable without a network.

::

    repository ──▶ file of this host without a name ──▶ loop device ──▶ disk of a disposable, mounted there

This host never mounts the volume: a file system that a qube has written is hostile input for a kernel. The file is gone
with the last process that has it open, however that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

from casemate.backup.contents import StoredQube
from casemate.backup.incremental.reader import IncrementalBackup
from casemate.calls.caller import run_call
from casemate.cli import progress
from casemate.cli.calling import open_call
from casemate.cli.device_text import payload, wire
from casemate.cli.loop_device import LoopDevice
from casemate.client.qubes import Qubes
from casemate.wire import vmexec
from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError, DisconnectedError, NotFoundError, printable
from casemate.wire.qrexec import Command

PLACE = "/mnt/backup"
"""Where the disposable has it."""

# A guest sees a plugged disk after a moment, under a name of its own choice; we know its serial number. The volume may
# be of a qube that ran, so its journal may have something in it, which cannot be written back here: hence noload.
_MOUNT = f"""
for _try in $(seq 300); do
    for disk in /sys/block/vd*; do
        if [ "$(cat "$disk/serial" 2>/dev/null)" = "$1" ]; then
            mkdir -p {PLACE}
            exec mount -t ext4 -o ro,noload,nodev,nosuid,noexec "/dev/${{disk##*/}}" {PLACE}
        fi
    done
    sleep 0.1
done
echo "the disk has not appeared" >&2
exit 1
"""
_RUN = f'cd {PLACE} && exec "$@"'


class OpenError(CasemateError):
    """The volume cannot be looked into."""


class _File:
    """The target of the reader: one volume, as a sparse file."""

    def __init__(self, fd: int, shown: progress.Bar) -> None:
        self._fd = fd
        self.progress = shown.update

    def begin(self, size: int) -> None:
        with self._refusing():
            os.ftruncate(self._fd, size)

    def write(self, offset: int, data: memoryview) -> None:
        with self._refusing():
            while data:
                count = os.pwrite(self._fd, data, offset)
                offset, data = offset + count, data[count:]

    def volume(self, _qube: StoredQube, _name: str) -> _File:
        return self

    def finish_volume(self, _qube: StoredQube, _name: str) -> None:
        pass

    def file(self, _qube: StoredQube, _name: str, _data: bytes) -> None:
        pass

    @staticmethod
    @contextlib.contextmanager
    def _refusing() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OpenError(f"There is no place for the volume on this host: {error.strerror}") from None


def fetch(args: argparse.Namespace, backup: IncrementalBackup, fd: int) -> int:
    """Read a volume into an empty file; 0. NotFoundError for one that is not in the backup, DamagedError when it is not
    whole. ``args`` has ``VMNAME``, ``volume`` and ``quiet``."""
    name, volume, qubes = args.VMNAME, args.volume, backup.contents.qubes
    if name not in qubes:
        raise NotFoundError(f"{printable(name, 40)} is not in the backup; there are: {', '.join(sorted(qubes))}")
    volumes = backup.volumes_of(qubes[name])
    if volume not in volumes:
        has = ", ".join(sorted(volumes)) or "none"
        raise NotFoundError(f"The backup has no volume {printable(volume, 40)} of {name}; it has: {has}")
    shown = progress.bar(max(1, volumes[volume]), "B", args.quiet)
    try:
        backup.read_volume(qubes[name], volume, _File(fd, shown))
    finally:
        shown.close()
    return 0


def show(args: argparse.Namespace, qubes: Qubes, name: str, fd: int) -> int:
    """Start the disposable ``name``, mount the volume there and run the command; its exit status.

    ``args`` has also ``COMMAND``, the words of the command; empty: wait for a line of input.
    """
    with LoopDevice(f"/proc/self/fd/{fd}", readonly=True) as loop:
        qubes.set(name, "netvm", "")  # whatever is in the backup cannot get out
        qubes.call("admin.vm.Start", "", name)
        device = wire(f"{ADMIN}:{loop}")
        said = payload("block", device, "manual", {"read-only": "yes"})
        qubes.call("admin.vm.device.block.Attach", device, name, said)
        if _run(qubes, name, ["sh", "-c", _MOUNT, "sh", loop]) != 0:
            raise OpenError(f"{name} cannot mount the volume; is it an ext4 file system?")
        words = args.COMMAND[1:] if args.COMMAND[:1] == ["--"] else args.COMMAND
        if words:
            words = ["sh", "-c", words[0]] if len(words) == 1 else words
            return _run(qubes, name, ["sh", "-c", _RUN, "sh", *words], joined=True)
        sys.stderr.write(
            f"Volume {args.volume} of {args.VMNAME} is at {PLACE} of the disposable {name}, read-only; for example:\n"
            f"  qvm-run -u root -p {name} 'ls {PLACE}'\nPress Enter to remove the disposable.\n"
        )
        sys.stderr.flush()
        sys.stdin.readline()
        return 0


def _run(qubes: Qubes, name: str, words: list[str], joined: bool = False) -> int:
    """Run a program as root in the disposable. ``joined``: with this tool's standard streams."""
    command = Command("root", "qubes.VMExec", vmexec.encode_vmexec(words), ADMIN)
    sock = open_call(qubes, name, command, autostart=False)
    try:
        if joined:
            return run_call(sock, 0, 1, 2, b"", (os.isatty(1), os.isatty(2)))
        return run_call(sock, None, None, 2, b"", (False, os.isatty(2)))
    except DisconnectedError as error:
        raise OpenError(f"{name}: {error}") from None
