"""The initramfs: read back by cpio itself; modules ordered by what they need; the first program built and small."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from casemate.host.guest_kernel import compile_static, initramfs
from casemate.host.initrd import cpio
from casemate.host.initrd.modules import Module, load_order, module_directory, module_info
from casemate.host.process import Runner
from casemate.wire.errors import TemplateBuildError


def listed(archive: bytes) -> list[tuple[str, int, int]]:
    """Name, mode and size of each entry, by a reader of our own of the format that cpio(5) describes."""
    found, at = [], 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 109 + name_size].decode()
        if name == "TRAILER!!!":
            return found
        found.append((name, fields[1], size))
        at += (110 + name_size + 3) // 4 * 4
        at += (size + 3) // 4 * 4


def test_archive_reads_back() -> None:
    data = cpio.archive(
        [cpio.directory("dev"), cpio.character_device("dev/console", 5, 1), cpio.file("init", b"odd", 0o755)]
    )
    assert listed(data) == [("dev", 0o40755, 0), ("dev/console", 0o20600, 0), ("init", 0o100755, 3)]
    assert len(data) % 4 == 0


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
@pytest.mark.parametrize("size", range(6))
def test_cpio_itself_agrees(tmp_path: Path, size: int) -> None:
    data = cpio.archive([cpio.file("a" * (size + 1), b"x" * size), cpio.file("last", b"end")])
    done = asyncio.run(
        Runner().run(["cpio", "-i", "--quiet", "--no-absolute-filenames"], input=data, timeout=20, cwd=tmp_path)
    )
    assert not done.stderr
    assert (tmp_path / ("a" * (size + 1))).read_bytes() == b"x" * size
    assert (tmp_path / "last").read_bytes() == b"end"


def module(path: Path, depends: str) -> None:
    """A smallest ELF file with a section .modinfo."""
    names = b"\0.shstrtab\0.modinfo\0"
    info = b"license=GPL\0depends=" + depends.encode() + b"\0"
    header = 64
    table = header + len(names) + len(info)
    sections = [
        (0, 0, 0, 0),
        (1, 3, header, len(names)),
        (11, 1, header + len(names), len(info)),
    ]
    elf = b"\x7fELF\x02\x01" + bytes(10) + bytes(24) + struct.pack("<Q", table) + bytes(10)
    elf += struct.pack("<HHH", 64, len(sections), 1)
    body = b"".join(struct.pack("<IIQQQQIIQQ", n, t, 0, 0, at, size, 0, 0, 0, 0) for n, t, at, size in sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(elf + names + info + body)


def test_modules_load_after_what_they_need(tmp_path: Path) -> None:
    module(tmp_path / "drivers/virtio_pci.ko", "virtio_ring,virtio")
    module(tmp_path / "drivers/virtio.ko", "")
    module(tmp_path / "drivers/virtio_ring.ko", "virtio")
    module(tmp_path / "drivers/virtio-rng.ko", "virtio_ring,rng-core")
    module(tmp_path / "unused.ko", "virtio")
    (tmp_path / "modules.builtin").write_text("kernel/drivers/char/hw_random/rng-core.ko\n")
    order = load_order(tmp_path, ("virtio_pci", "virtio_rng"))
    assert [module.name for module in order] == ["virtio.ko", "virtio_ring.ko", "virtio_pci.ko", "virtio-rng.ko"]


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("zst", zstandard.compress)]
)
def test_compressed_modules_are_unpacked(tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    """Debian's are compressed by xz since trixie; the guest's first program loads only plain ones."""
    for name, depends in (("virtio", ""), ("virtio_blk", "virtio")):
        module(tmp_path / f"{name}.ko", depends)
    plain = load_order(tmp_path, ("virtio_blk",))
    for path in tmp_path.iterdir():
        path.with_name(f"{path.name}.{ending}").write_bytes(pack(path.read_bytes()))
        path.unlink()
    assert load_order(tmp_path, ("virtio_blk",)) == plain
    assert [one.name for one in plain] == ["virtio.ko", "virtio_blk.ko"]
    damaged = tmp_path / f"virtio.ko.{ending}"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(TemplateBuildError, match="virtio.ko.* cannot be unpacked"):
        load_order(tmp_path, ("virtio_blk",))


@pytest.mark.parametrize("place", ["lib/modules", "usr/lib/modules"])
def test_modules_are_found_where_the_release_of_debian_keeps_them(tmp_path: Path, place: str) -> None:
    (tmp_path / place / "6.12+deb13").mkdir(parents=True)
    assert module_directory(tmp_path, "6.12+deb13") == tmp_path / place / "6.12+deb13"
    with pytest.raises(TemplateBuildError, match="no modules of 6.1"):
        module_directory(tmp_path, "6.1")


def test_missing_module_is_named(tmp_path: Path) -> None:
    module(tmp_path / "virtio_blk.ko", "virtio")
    with pytest.raises(TemplateBuildError, match="no module virtio, which virtio_blk needs"):
        load_order(tmp_path, ("virtio_blk",))


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(100), bytes(1000)])
def test_damaged_module_is_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(TemplateBuildError):
        module_info(data)


def test_first_program_is_static_small_and_in_the_archive(tmp_path: Path) -> None:
    init = asyncio.run(compile_static(Runner(), "init.c", tmp_path))
    assert init[:4] == b"\x7fELF" and len(init) < 20_000
    assert b"ld-linux" not in init
    names = [name for name, _mode, _size in listed(initramfs(init, [Module("virtio.ko", b"data")]))]
    assert {"init", "dev/console", "modules/virtio.ko", "modules/order"} <= set(names)


def test_run_as_becomes_the_user_and_the_program(tmp_path: Path) -> None:
    program = tmp_path / "run-as"
    program.write_bytes(asyncio.run(compile_static(Runner(), "run_as.c", tmp_path)))
    program.chmod(0o755)
    user = str(os.geteuid())
    if user != "0":
        done = subprocess.run([program, user, user, user, "/", "/bin/true"], capture_output=True)
        assert (done.returncode, done.stderr) == (126, b"cannot start: cannot become the user\n")
        return
    argv = [
        "1234",
        "1235",
        "1235,1240",
        "/tmp",
        "/bin/sh",
        "-c",
        'id -u; id -g; id -G; pwd; echo "$1"',
        "sh",
        "an argument",
    ]
    done = subprocess.run([program, *argv], capture_output=True, env={"PATH": "/usr/bin:/bin"})
    assert done.stdout.split(b"\n") == [b"1234", b"1235", b"1235 1240", b"/tmp", b"an argument", b""]
    done = subprocess.run([program, "1", "1", "1", "/", "/no/such"], capture_output=True)
    assert (done.returncode, done.stderr) == (126, b"cannot start: /no/such\n")
    for bad in (["x", "1", "1", "/", "/bin/true"], ["1", "1", "", "/"]):
        assert subprocess.run([program, *bad], capture_output=True).returncode == 126
