"""Makes the guests' kernel: Debian's cloud kernel unpacked, an initramfs of ours beside it. Nothing is installed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casemate.host.build_lock import build_directory, build_lock
from casemate.host.initrd import cpio
from casemate.host.initrd.modules import NET_QUBE, WANTED, Module, load_order, module_directory
from casemate.host.process import Runner
from casemate.settings import Settings
from casemate.wire.errors import TemplateBuildError
from casemate.wire.names import kernel_name

Progress = Callable[[str], None]

META_PACKAGE = "linux-image-cloud-amd64"
"""Depends on the newest kernel of a suite that has drivers for virtual machines only: small, quick to boot."""

_INIT_SOURCE = Path(__file__).parent / "initrd" / "init.c"
_DIRECTORIES = ("dev", "proc", "sys", "root", "modules")
_PREFIX = "linux-image-"


@dataclass(frozen=True, slots=True)
class BuiltKernel:
    """A kernel that guests boot: where its files are, and the name they are kept under."""

    vmlinuz: Path
    initrd: Path
    name: str

    @property
    def initrd_net(self) -> Path:
        """The initramfs of net qubes: with the modules of their firewall, which others need not load."""
        return self.initrd.with_name("initrd-net")


def _sources_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted((*_INIT_SOURCE.parent.iterdir(), Path(__file__))):
        if path.suffix in (".c", ".py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


async def build_kernel(settings: Settings, runner: Runner, package: Path, progress: Progress) -> BuiltKernel:
    """The kernel of a Debian package (a ``.deb`` file that the bootstrap fetched and apt has verified), with our
    initramfs; taken from the cache when it is there already."""
    fields = await runner.run(["dpkg-deb", "--field", package, "Package", "Version"], timeout=60)
    told = dict(line.partition(": ")[::2] for line in fields.stdout.decode("utf-8", "replace").splitlines())
    release = told.get("Package", "").removeprefix(_PREFIX)
    if not release or not told.get("Package", "").startswith(_PREFIX):
        raise TemplateBuildError(f"{package.name} is no kernel package but {told.get('Package')!r}")
    name = kernel_name(f"debian-{release}")
    digest = hashlib.sha256(f"{told.get('Version')} {_sources_digest()}".encode()).hexdigest()[:8]
    done = settings.cache / "kernels" / f"{name}-{digest}"
    built = BuiltKernel(done / "vmlinuz", done / "initrd", name)
    async with build_lock(done, progress):
        if done.is_dir():
            return built
        with build_directory(done) as work:
            progress(f"kernel {name}: unpacking {told.get('Version')}")
            await runner.run(["dpkg-deb", "-x", package, work / "tree"], timeout=120)
            vmlinuz = work / "tree" / "boot" / f"vmlinuz-{release}"
            if not vmlinuz.is_file():
                raise TemplateBuildError(f"{package.name} has no /boot/vmlinuz-{release}")
            progress(f"kernel {name}: making its initramfs")
            out = work / "out"
            out.mkdir()
            vmlinuz.rename(out / "vmlinuz")
            init = await compile_static(runner, _INIT_SOURCE.name, work)
            modules = load_order(module_directory(work / "tree", release))
            (out / "initrd").write_bytes(initramfs(init, modules))
            more = load_order(module_directory(work / "tree", release), (*WANTED, *NET_QUBE))
            (out / "initrd-net").write_bytes(initramfs(init, more))
            for path in out.iterdir():
                path.chmod(0o644)
            out.chmod(0o755)
            out.rename(done)
    return built


async def compile_static(runner: Runner, source: str, work: Path) -> bytes:
    """A program of the guest, from ``host/initrd``: static, without a C library."""
    target = work / source.removesuffix(".c")
    await runner.run(["tcc", "-nostdlib", "-static", "-Wall", "-o", target, _INIT_SOURCE.with_name(source)], timeout=60)
    return target.read_bytes()


def initramfs(init: bytes, modules: list[Module]) -> bytes:
    """The archive that the kernel unpacks: /init, the modules, a console to complain on. Not compressed: it is small,
    and unpacking would cost a guest more than reading."""
    order = "".join(f"{module.name}\n" for module in modules)
    return cpio.archive(
        [
            *(cpio.directory(name) for name in _DIRECTORIES),
            cpio.character_device("dev/console", 5, 1),
            cpio.file("init", init, 0o755),
            cpio.file("modules/order", order.encode()),
            *(cpio.file(f"modules/{module.name}", module.data) for module in modules),
        ]
    )
