"""A USB stick given to a real guest: Debian's ordinary kernel sees it come and go on the emulated controller.

The stick of the host is a loop device with a description of a USB device around it: a class of devices that a package
of somebody else (made here) adds to the daemon by its entry point. Everything from the Admin API to the guest is ours.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.cli.loop_device import LoopDevice
from casemate.host.guest_kernel import compile_static, initramfs
from casemate.host.initrd.modules import WANTED, load_order, module_directory
from casemate.host.process import Runner
from tests.builders import wait_for
from tests.fakes.host_devices import add_usb_stick
from tests.live.world import World

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root"),
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="the kernel comes from Debian's archive"),
]

PACKAGE = "linux-image-amd64"
"""Debian's ordinary kernel. Its cloud kernel, which templates use, has no USB."""
MODULES = (*WANTED, "crc32c_generic", "ext4", "xhci_pci", "usb_storage", "sd_mod")

CLASS = """
from dataclasses import replace
from pathlib import Path
from casemate.devices import usb
from casemate.host.kernel_devices import KernelDevices

class Sticks(usb.UsbDevices):
    def list(self):
        return [replace(device, klass="stick") for device in super().list()]

DEVICE_CLASS = replace(
    usb.DEVICE_CLASS, name="stick", open=lambda opening: Sticks(replace(opening, kernel=KernelDevices(Path({sys!r}))))
)
"""


def install_kernel(target: Path) -> None:
    """A kernel with USB where qubes find their kernels: fetched by this host's apt, our initramfs beside it."""

    def kernels() -> list[str]:
        depends = subprocess.run(["apt-cache", "depends", PACKAGE], capture_output=True, text=True).stdout
        return [line.split()[1] for line in depends.splitlines() if "Depends: linux-image-" in line]

    if not kernels():  # a fresh machine has no lists of packages yet
        subprocess.run(["apt-get", "-q", "update"], check=True)
    package = kernels()[0]
    release = package.removeprefix("linux-image-")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "-q", package], cwd=work, check=True)
        subprocess.run(["dpkg-deb", "-x", next(work.glob("*.deb")), work / "tree"], check=True)
        target.mkdir(parents=True)
        shutil.copy(work / "tree/boot" / f"vmlinuz-{release}", target / "vmlinuz")
        modules = load_order(module_directory(work / "tree", release), MODULES)
        init = asyncio.run(compile_static(Runner(), "init.c", work))
        (target / "initrd").write_bytes(initramfs(init, modules))
    for path in target.iterdir():
        path.chmod(0o644)
    target.chmod(0o755)


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[tuple[World, Path]]:
    """A world whose daemon knows the class ``stick``, and the file behind the one stick that there is, port 1-1."""
    image = tmp_path / "stick.img"
    with open(image, "wb") as file:
        file.write(b"from the host".ljust(512, b"\0"))
        file.truncate(4 << 20)
    directory = Path(tempfile.mkdtemp(prefix="cmu", dir="/tmp"))  # noqa: S108
    directory.chmod(0o711)  # qubes run as users of their own
    world = World(directory / "state")
    with LoopDevice(str(image)) as loop:
        package, sys = directory / "package", directory / "sys"
        add_usb_stick(sys, "1-1", loop, size=(4 << 20) // 512)
        (sys / "class/block").mkdir(parents=True)
        (sys / "class/block" / loop).symlink_to(Path("/sys/class/block") / loop)
        metadata = package / "sticks-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sticks\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[casemate.devices]\nstick = sticks:DEVICE_CLASS\n")
        (package / "sticks.py").write_text(CLASS.format(sys=str(sys)))
        world.environment["PYTHONPATH"] = str(package)
        try:
            world.run("casemate", "template", "build", timeout=1800)
            world.without_images()
            install_kernel(world.settings.state / "kernels" / "with-usb")
            yield world, image
        finally:
            world.clean()
            shutil.rmtree(directory, ignore_errors=True)


def test_a_stick_comes_is_written_to_and_goes(stick: tuple[World, Path]) -> None:
    world, image = stick
    there = "cat /sys/block/sda/size 2>/dev/null"
    world.run("qvm-create", "--label", "red", "work")
    world.run("qvm-prefs", "work", "kernel", "with-usb")
    world.run("qvm-start", "work")
    assert b"usb-controller" in world.run("qvm-device", "stick", "attach", "work", "dom0:1-1", status=1).stderr
    world.run("qvm-kill", "work")
    wait_for(lambda: world.state("work") == "Halted")

    world.run("qvm-features", "work", "usb-controller", "1")
    world.run("qvm-start", "work")
    world.run("qvm-device", "stick", "attach", "work", "dom0:1-1")
    wait_for(lambda: world.inside("work", there, "root", None) == "8192", 60)
    assert world.inside("work", "head -c 13 /dev/sda", "root") == "from the host"
    assert "usb" in world.inside("work", "readlink -f /sys/block/sda", "root")
    world.inside("work", "printf 'from the qube' | dd of=/dev/sda conv=notrunc,fsync 2>/dev/null", "root")
    # All this is known to a daemon that was not there.
    world.kill_daemon()
    assert b"already" in world.run("qvm-device", "stick", "attach", "work", "dom0:1-1", status=1).stderr
    world.run("qvm-device", "stick", "detach", "work", "dom0:1-1")
    wait_for(lambda: world.inside("work", there, "root", None) == "")
    with open(image, "rb") as file:
        assert file.read(13) == b"from the qube"

    # A stick that is required is there from the start, and its assignment alone gives the qube a controller.
    world.run("qvm-kill", "work")
    wait_for(lambda: world.state("work") == "Halted")
    world.run("qvm-features", "--unset", "work", "usb-controller")
    world.run("qvm-device", "stick", "assign", "--required", "--ro", "work", "dom0:1-1")
    world.run("qvm-start", "work")
    wait_for(lambda: world.inside("work", "cat /sys/block/sda/ro 2>/dev/null", "root", None) == "1", 60)
