"""What keeps a QEMU in: its driver's configuration, and which files its user may open."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.host import qemu_access
from casemate.host.hypervisor import Disk
from casemate.host.libvirt_embed import configuration
from casemate.wire.errors import HypervisorError
from tests.unit.test_domain_xml import WORK

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change owners")


def settings_of(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


def test_every_driver_is_told_to_confine_qemu() -> None:
    """See qemu.conf of libvirt. V4: a filter of system calls. No capabilities, no core with a guest's memory."""
    for text in (configuration(False, False), configuration(True, True), configuration(True, False)):
        found = settings_of(text)
        assert found["seccomp_sandbox"] == "1" and found["clear_emulator_capabilities"] == "1"
        assert found["max_core"] == "0" and found["stdio_handler"] == '"file"'
        assert found["save_image_format"] == '"raw"' and found["remember_owner"] == "0"


def test_a_driver_of_root_limits_what_qemu_sees_and_takes() -> None:
    """V2: never root, and no owner of a shared file changes. V5: its own view of /dev. V6: limits."""
    found = settings_of(configuration(True, True))
    assert found["user"] == found["group"] == '"libvirt-qemu"' and found["dynamic_ownership"] == "0"
    assert found["namespaces"] == '[ "mount" ]'
    assert (int(found["max_processes"]), int(found["max_files"])) == (256, 1024)
    devices = set(found["cgroup_device_acl"].strip("[ ]").replace('"', "").split(", "))
    assert devices == {f"/dev/{name}" for name in ("null", "full", "zero", "random", "urandom", "ptmx", "kvm")}
    assert settings_of(configuration(True, False))["namespaces"] == "[]"


def identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


@root_only
def test_a_machine_owns_what_it_writes_and_reads_the_rest(tmp_path: Path) -> None:
    """S3: what others use too belongs to root and is readable by the group alone."""
    written, layer, own_layer, read = (tmp_path / name for name in ("written", "layer", "own-layer", "read"))
    for path in (written, layer, own_layer, read):
        path.touch(mode=0o666)
    disks = (
        Disk("vda", "root", written, "qcow2", backing=((layer, "qcow2"),)),
        Disk("vdb", "private", written, "qcow2", backing=((own_layer, "qcow2"),), own_layers=True),
        Disk("vdc", "volatile", read, "raw", readonly=True),
    )
    assert WORK.uid is not None and WORK.gid is not None
    qemu_access.grant(replace(WORK, disks=disks))
    assert identity(written) == (WORK.uid, WORK.gid, 0o600)
    assert identity(own_layer) == (WORK.uid, WORK.gid, 0o400)
    assert identity(layer) == identity(read) == (0, WORK.gid, 0o640)


@root_only
def test_a_disk_that_is_a_link_or_no_file_is_given_to_nobody(tmp_path: Path) -> None:
    """A hijacked QEMU may put a link to a file of the host in place of its disk."""
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    (tmp_path / "link").symlink_to(secret)
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(HypervisorError, match=f"Cannot prepare disk .*{name}"):
            qemu_access.grant(replace(WORK, disks=(Disk("vda", "root", tmp_path / name, "raw"),)))
    assert identity(secret) == (0, 0, 0o600)


@root_only
def test_sockets_are_handed_over_and_links_are_not_followed(tmp_path: Path) -> None:
    secret, socket = tmp_path / "secret", tmp_path / "channel.sock"
    secret.touch(mode=0o600)
    socket.touch()
    (tmp_path / "console.sock").symlink_to(secret)
    qemu_access.hand_over(replace(WORK, channel=socket, console=tmp_path / "console.sock"))
    assert identity(socket)[:2] == (WORK.uid, WORK.gid) and identity(secret) == (0, 0, 0o600)


def test_only_block_devices_are_lent(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o600)
    with pytest.raises(HypervisorError, match="not a block device"):
        qemu_access.lend(file, 12345, False)
