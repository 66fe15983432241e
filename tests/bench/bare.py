"""A guest without our daemon and without libvirt: the limit that a start, a call and a stream are held against."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import casemate
from tests.bench import caller

_VALUES = (
    "-machine",
    "-accel",
    "-cpu",
    "-m",
    "-overcommit",
    "-smp",
    "-rtc",
    "-global",
    "-kernel",
    "-initrd",
    "-append",
)
_FLAGS = ("-no-hpet", "-no-user-config", "-nodefaults")
_OBJECTS = ("memory-backend-ram", "rng-random")
_MODERN = "-non-transitional"


def same_machine(argv: list[str]) -> list[str]:
    """What a running QEMU was told about processor, memory, kernel; without its devices and its way of being driven."""
    kept: list[str] = []
    for option, value in zip(argv, [*argv[1:], ""], strict=True):
        if option in _VALUES or (option == "-object" and json.loads(value)["qom-type"] in _OBJECTS):
            kept += [option, value]
        elif option in _FLAGS:
            kept.append(option)
    return kept


class Bare:
    """QEMU with fresh layers over given disks, and a link of ours. ``raw`` is a second port that leads nowhere yet."""

    def __init__(self, directory: Path, machine: list[str], disks: Mapping[str, Path], database: Mapping[str, str]):
        self.directory = directory
        self._machine = machine
        self._database = dict(database)
        self._disks = {serial: self._layer(serial, path) for serial, path in disks.items()}
        self._disks["volatile"] = self._layer("volatile", None)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.begin = 0.0
        """When QEMU was started."""

    @property
    def link(self) -> Path:
        """The socket for calls."""
        return self.directory / "link.sock"

    def _layer(self, serial: str, base: Path | None) -> Path:
        path = self.directory / f"{serial}.qcow2"
        argv: list[str | Path] = ["qemu-img", "create", "-q", "-f", "qcow2"]
        argv += [path, "12G"] if base is None else ["-b", base, "-F", "qcow2", path]
        subprocess.run(argv, check=True)
        return path

    def _listen(self, name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (self.directory / name).unlink(missing_ok=True)
        sock.bind(str(self.directory / name))
        sock.listen(1)
        return sock

    def start(self) -> float:
        """Seconds until the agent answers."""
        sockets = {name: self._listen(f"{name}.sock") for name in ("channel", "console", "raw")}
        argv = [
            "qemu-system-x86_64", *self._machine, "-display", "none", "-no-reboot",
            "-device", f"virtio-serial-pci{_MODERN},id=serial,max_ports=4",
            "-device", f"virtio-rng-pci{_MODERN},rng=objrng0,max-bytes=4096,period=1000",
        ]  # fmt: skip
        for name, sock in sockets.items():
            argv += ["-chardev", f"socket,id={name},fd={sock.fileno()},server=on,wait=off"]
        argv += [
            "-serial", "chardev:console",
            "-device", "virtserialport,bus=serial.0,nr=1,chardev=channel,name=org.casemate.channel.0",
            "-device", "virtserialport,bus=serial.0,nr=2,chardev=raw,name=raw",
        ]  # fmt: skip
        for serial in ("root", "private", "volatile"):
            cache = "writeback" if serial == "private" else "unsafe"
            argv += [
                "-drive", f"file={self._disks[serial]},if=none,id={serial},format=qcow2,cache={cache},discard=unmap",
                "-device", f"virtio-blk-pci{_MODERN},drive={serial},serial={serial}",
            ]  # fmt: skip
        self.begin = time.monotonic()
        with open(self.directory / "qemu.log", "wb") as log:
            machine = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[s.fileno() for s in sockets.values()]
            )
        self._processes.append(machine)
        for sock in sockets.values():
            sock.close()
        self._start_link()
        caller.when_ready(self.link, 120)
        return time.monotonic() - self.begin

    def _start_link(self) -> None:
        with open(self.directory / "link.log", "wb") as log:
            link = subprocess.Popen(
                [sys.executable, "-S", "-m", "casemate.link", "bare"],
                env={"PYTHONPATH": str(Path(casemate.__file__).parent.parent), "PATH": os.environ["PATH"]},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._processes.append(link)
        assert link.stdin is not None and link.stdout is not None
        description = {
            "name": "bare", "directory": str(self.directory), "default_user": "user",
            "database": self._database, "uid": None, "gid": None,
        }  # fmt: skip
        link.stdin.write(json.dumps(description).encode())
        link.stdin.close()
        if link.stdout.readline() != b"listening\n":
            raise caller.Failed((self.directory / "link.log").read_text())
        link.stdout.close()

    def connect_raw(self) -> socket.socket:
        """The host's end of the second port."""
        return caller.connect(self.directory / "raw.sock")

    def close(self) -> None:
        """End it."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()
