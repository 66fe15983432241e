"""Kernel modules: which ones a guest needs, and in which order they load (reads ELF, not depmod's files)."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from casemate.wire.errors import TemplateBuildError

WANTED = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "virtio_net")
"""What a guest's devices need; what these depend on comes by itself. Loaded in this order."""

NET_QUBE = (
    "nf_tables", "nft_ct", "nft_nat", "nft_chain_nat", "nft_masq", "nft_redir", "nft_reject_ipv4", "nft_reject_ipv6",
    "nft_limit",
)  # fmt: skip
"""What the firewall and address translation of a net qube need besides."""

PLACES = ("lib/modules", "usr/lib/modules")
"""Where a kernel package keeps its modules: bookworm's in the first, trixie's (usr merged) in the second."""

MAX_MODULE = 64 << 20
"""Bytes of one unpacked module. The largest of Debian's cloud kernel has 4 MiB; more is a decompression bomb."""

_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr, elf(5)


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module as the guest loads it: the name of its file (``virtio.ko``) and its bytes, unpacked."""

    name: str
    data: bytes


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_MODULE)


_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".ko.gz": gzip.decompress,
    ".ko.xz": lzma.decompress,
    ".ko.zst": _unzstd,
}
"""How a module's file is read, by the end of its name. Unpacked here: the guest's first program cannot."""


def _ending(path: Path) -> str:
    return next((ending for ending in _UNPACK if path.name.endswith(ending)), "")


def _read(path: Path) -> bytes:
    ending = _ending(path)
    try:
        data = _UNPACK[ending](path.read_bytes())
    except (lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
        raise TemplateBuildError(f"the kernel's module {path.name} cannot be unpacked: {error}") from None
    if len(data) > MAX_MODULE:
        raise TemplateBuildError(f"the kernel's module {path.name} has more than {MAX_MODULE >> 20} MiB")
    return data


def module_directory(tree: Path, release: str) -> Path:
    """The modules of a kernel release in an unpacked kernel package."""
    for place in PLACES:
        if (tree / place / release).is_dir():
            return tree / place / release
    raise TemplateBuildError(f"the kernel package has no modules of {release} (looked in {' and '.join(PLACES)})")


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


def load_order(directory: Path, wanted: tuple[str, ...] = WANTED) -> list[Module]:
    """The wanted modules and all they depend on, each after what it needs.

    A wanted module that is built into the kernel has no file and is left out.
    """
    files: dict[str, Path] = {}
    for path in sorted(directory.rglob("*.ko*")):
        if ending := _ending(path):
            files[path.name.removesuffix(ending).replace("-", "_")] = path
    builtin_list = next(iter(directory.rglob("modules.builtin")), None)
    built_in = set()
    if builtin_list is not None:
        built_in = {Path(line).stem.replace("-", "_") for line in builtin_list.read_text().split()}
    order: dict[str, Module] = {}

    def add(name: str, needed_by: str) -> None:
        path = files.get(name)
        if path is None:
            if name in built_in:
                return
            raise TemplateBuildError(f"the kernel package has no module {name}, which {needed_by} needs")
        if name in order:
            return
        data = _read(path)
        for need in module_info(data).get("depends", [""])[0].split(","):
            if need:
                add(need.replace("-", "_"), name)
        order[name] = Module(path.name.removesuffix(_ending(path)) + ".ko", data)

    for name in wanted:
        add(name, "a guest")
    return list(order.values())
