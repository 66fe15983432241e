"""Kernel modules: which ones a guest needs, and in which order they load (reads ELF, not depmod's files)."""

from __future__ import annotations

import struct
from pathlib import Path

from casemate.wire.errors import TemplateBuildError

WANTED = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "virtio_net")
"""What a guest's devices need; what these depend on comes by itself. Loaded in this order."""

_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr, elf(5)


def module_info(data: bytes) -> dict[str, list[str]]:
    """The tags of a module (``depends``, ``name`` ...), from the section ``.modinfo`` of the ELF file."""
    section = _modinfo(data)
    tags: dict[str, list[str]] = {}
    for item in section.split(b"\0"):
        key, found, value = item.partition(b"=")
        if found:
            tags.setdefault(key.decode("ascii", "replace"), []).append(value.decode("utf-8", "replace"))
    return tags


def _modinfo(data: bytes) -> bytes:
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise TemplateBuildError("a kernel module is no 64-bit little-endian ELF file")
        table = struct.unpack_from("<Q", data, 0x28)[0]
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        sections = [_SECTION.unpack_from(data, table + i * size) for i in range(count)]
        base = sections[names][4]
        for section in sections:
            at = base + section[0]
            if data[at : data.index(b"\0", at)] == b".modinfo":
                return data[section[4] : section[4] + section[5]]
    except (struct.error, IndexError, ValueError):
        raise TemplateBuildError("a kernel module is a damaged ELF file") from None
    raise TemplateBuildError("a kernel module has no section .modinfo")


def load_order(directory: Path, wanted: tuple[str, ...] = WANTED) -> list[Path]:
    """The files of the wanted modules and of all they depend on, each after what it needs.

    A wanted module that is built into the kernel has no file and is left out.
    """
    files = {path.stem.replace("-", "_"): path for path in sorted(directory.rglob("*.ko"))}
    builtin_list = next(iter(directory.rglob("modules.builtin")), None)
    built_in = set()
    if builtin_list is not None:
        built_in = {Path(line).stem.replace("-", "_") for line in builtin_list.read_text().split()}
    order: list[Path] = []

    def add(name: str, needed_by: str) -> None:
        path = files.get(name)
        if path is None:
            if name in built_in:
                return
            raise TemplateBuildError(f"the kernel package has no module {name}, which {needed_by} needs")
        if path in order:
            return
        for need in module_info(path.read_bytes()).get("depends", [""])[0].split(","):
            if need:
                add(need.replace("-", "_"), name)
        order.append(path)

    for name in wanted:
        add(name, "a guest")
    return order
