"""Makes a guest that goes on from a warm image one of its own, before it serves anything: randomness, clock, disk.

The kernel's random generator was saved with the image, so every guest of the image would give out the same numbers.
Writing to /dev/urandom changes what comes later, but not at once: the generator uses its key until it is reseeded,
which can be minutes away (random(4)). So the host's bytes are added as entropy and the kernel is told to take them in.
"""

from __future__ import annotations

import os
import struct
import sys

from casemate.wire.link import NONE_YET, NOTHING_MOUNTED, TIME_KEY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SEED_KEY = "/qubes-random-seed"
"""64 fresh bytes of the host, in base64; the base64 text itself is what is mixed in."""
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207  # linux/random.h


def prepare() -> str:
    """In the guest that becomes an image: what the agent says of its identity. Loads what ``renew`` needs, so that no
    guest that goes on has to."""
    import ctypes  # noqa: F401
    import fcntl  # noqa: F401
    import time  # noqa: F401

    from casemate.agent import private_disk

    if not private_disk.is_later():
        return NONE_YET
    return "private is mounted" if private_disk.is_mounted() else NOTHING_MOUNTED


def renew(read: Callable[[str], bytes | None]) -> None:
    """Reseed, set the clock, mount what was not mounted; ``read`` gives the value of a key. OSError."""
    from casemate.agent import private_disk

    renew_fork(read)
    if private_disk.is_later():
        private_disk.mount_private(read)


def renew_fork(read: Callable[[str], bytes | None]) -> None:
    """Reseed and set the clock in the copy of a guest that runs; its disks are mounted. OSError."""
    seed = read(SEED_KEY)
    if not seed:
        raise OSError("the host sent no randomness")
    add_entropy(seed)
    set_clock(read(TIME_KEY))


def add_entropy(seed: bytes) -> None:
    """Mix bytes into the kernel's generator, and have it use them from the next number on."""
    import fcntl  # of use here only: each module costs an emulated guest time at its start

    fd = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        # struct rand_pool_info: how many bits it is worth, how many bytes follow.
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", 256, len(seed)) + seed)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def set_clock(told: bytes | None) -> None:
    """Set the clock to the host's, which was told a moment ago; a clock that is a little off is no reason to fail."""
    import time

    try:
        time.clock_settime(time.CLOCK_REALTIME, float(told or b""))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"casemate-agent: the clock was not set: {error}\n")
