"""Finds and opens the virtio-serial port that leads to the host."""

from __future__ import annotations

import os

PORT_NAME = "org.casemate.channel.0"
_PORTS = "/sys/class/virtio-ports"


def find_port() -> str | None:
    """The device node of our port, or None while the kernel has not made it. Source: virtio-serial's sysfs names."""
    try:
        entries = os.listdir(_PORTS)
    except FileNotFoundError:
        return None
    for entry in entries:
        try:
            with open(f"{_PORTS}/{entry}/name", encoding="ascii") as file:
                if file.read().strip() == PORT_NAME:
                    return "/dev/" + entry
        except OSError:
            continue
    return None


def open_port(path: str) -> int:
    """The port, non-blocking."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
