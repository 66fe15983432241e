"""Builds templates: Debian bootstrapped into an ext4 image, as root or not, with the agent put in at the end.

```
recipe ── mmdebstrap ──┬── base image ─── agent's files put in (debugfs) ──> root image of the template
                       └── kernel package ─── initramfs of ours beside it ──> kernel of the template
```

Base image, kernel package and what is known of them are one entry of the cache, named after everything that went in.
All comes from the recipe's suite: nothing is asked of the host's own package lists.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import pwd
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.host import debian_archive
from casemate.host.agent_package import GuestFile, guest_files
from casemate.host.build_lock import build_directory, build_lock
from casemate.host.files import copy_file, free_bytes, fsync_file
from casemate.host.guest_kernel import META_PACKAGE, BuiltKernel, Progress, build_kernel, compile_static
from casemate.host.process import Runner
from casemate.settings import Settings
from casemate.wire.errors import TemplateBuildError, ToolError
from casemate.wire.recipe import Recipe

log = logging.getLogger(__name__)

_PACKAGES: dict[str, tuple[str, ...]] = {
    "lean": ("python3", "iproute2", "nftables"),
    "systemd": ("python3", "iproute2", "nftables", "systemd-sysv", "udev", "dbus"),
}
"""What each kind of template has beyond Debian's minimal system."""

_MERGED = {"bookworm": ("usr-is-merged",)}
"""Suites whose base still asks for a package that says that /usr is merged; without it usrmerge would come instead."""

ROOT_SIZE = 20 << 30
"""Size of the root file system in bytes; only what is used takes room."""

_ROOM = 1 << 30
"""Bytes that must be free in memory for a build to keep its temporary files there."""

_BUILD_SECONDS = 1800.0

_UNUSED_DAYS = 30
"""Cached images that no build has used for so long are removed: each has half a gigabyte."""

_FORMAT = "2"
"""Raise when a cached base image must not be used any more for a reason its inputs do not show."""

_EXCLUDED = (
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/bug/*",
)

# No metadata checksums and no 64-bit fields: they cost an emulated guest time. uninit_bg: inode tables stay holes.
_EXT4 = ("-t", "ext4", "-q", "-F", "-m", "0", "-O", "^metadata_csum,^64bit,uninit_bg")
_THERE = frozenset({"/", "/etc", "/usr", "/usr/bin", "/usr/lib", "/usr/lib/systemd", "/usr/lib/systemd/system",
                    "/usr/lib/casemate", "/etc/qubes", "/etc/qubes-rpc", "/etc/qubes/rpc-config"})  # fmt: skip
"""Directories that every base image has."""
EXT4_OPTIONS = (*_EXT4, "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard")
"""How file systems for guests are made (mke2fs)."""

# Inside the new system's directory $1, while /proc, /sys and /dev are mounted in it: first what every template has,
# then the recipe's files and commands, which may use all of it, then what must not stay.
_SETTLE = r"""
set -eu
chroot "$1" useradd --uid 1000 --user-group --create-home --shell /bin/bash user
chroot "$1" passwd --delete root >/dev/null 2>&1
mkdir -p "$1/rw" "$1/usr/lib/casemate" "$1/etc/qubes-rpc" "$1/etc/qubes/rpc-config"
echo localhost >"$1/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$1/etc/hosts"
: >"$1/etc/fstab"
"""

# By the apt outside with the new system's configuration (mmdebstrap(1), MMDEBSTRAP_APT_CONFIG): it has the network, and
# checks the package's hash against the suite's signed lists. mmdebstrap's own ``download`` then takes the package out:
# not another descriptor of ours, because mmdebstrap's shells (dash) know none above 9, and it needs some itself.
_FETCH_KERNEL = r"""
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
package=$(apt-cache depends META | sed -n 's/^ *Depends: *\(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
[ -n "$package" ] || { echo "E: META depends on no kernel" >&2; exit 1; }
mkdir "$1/kernel-package"
cd "$1/kernel-package"
apt-get -o APT::Sandbox::User= -q download "$package" >&2
mv ./*.deb package
"""

_CLEAN = r"""
set -eu
rm -r "$1/kernel-package"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/* "$1/etc/resolv.conf"
rm -f "$1/etc/machine-id" && : >"$1/etc/machine-id"
"""

_SETTLE_KIND = {
    "systemd": r"""
set -eu
mkdir -p "$1/etc/systemd/system-generators"
for generator in "$1"/usr/lib/systemd/system-generators/*; do
    ln -s /dev/null "$1/etc/systemd/system-generators/${generator##*/}"
done
rm -rf "$1/etc/systemd/system/getty.target.wants"
ln -s /dev/null "$1/etc/systemd/system/getty-static.service"
rm -f "$1/var/lib/dbus/machine-id"
ln -s /etc/machine-id "$1/var/lib/dbus/machine-id"
"""
}
"""For some kinds more. No generators: nothing is mounted, unlocked or resumed by systemd here, and each costs an
emulated guest time before the agent can start. No logins: the console belongs to the host. No machine id: else all
qubes of a template had the same."""

# The image is made beside the directory, by the same (perhaps mapped) root, of the tree without what is mounted in it
# (a bind mount shows only one file system); then its data goes to the descriptor that we were handed: the file behind
# that belongs to a user whom this namespace may not know.
_IMAGE = r"""
set -eu
image="$1.ext4"; tree="$1.tree"
trap 'rm -f "$image"; rmdir "$tree" 2>/dev/null || true' EXIT
mkdir "$tree"
truncate -s SIZE "$image"
unshare -m sh -euc 'mount --bind "$1" "$2"; shift; mke2fs OPTIONS -d "$1" "$2"' sh "$1" "$tree" "$image"
/usr/bin/python3 -IS -c '
import errno, os, sys
source, target, at = os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2]), 0
while True:
    try:
        at = os.lseek(source, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            break
        raise
    end = os.lseek(source, at, os.SEEK_HOLE)
    while at < end:
        at += os.pwrite(target, os.pread(source, min(1 << 20, end - at), at), at)
' "$image" FD
"""


@dataclass(frozen=True, slots=True)
class BuiltTemplate:
    """A template's root file system, ready to be imported: a raw ext4 image, the size it claims to have, its kernel,
    and when it was bootstrapped (seconds since 1970)."""

    root_image: Path
    size: int
    kernel: BuiltKernel
    built: int


@dataclass(frozen=True, slots=True)
class _Base:
    """An entry of the cache: an image without our own files, the kernel package, and what is known of them."""

    image: Path

    @property
    def kernel_package(self) -> Path:
        return self.image.with_suffix(".deb")

    @property
    def facts_file(self) -> Path:
        return self.image.with_suffix(".json")

    @property
    def complete(self) -> bool:
        return all(path.exists() for path in (self.image, self.kernel_package, self.facts_file))

    def facts(self) -> dict[str, Any]:
        """``python`` (version in the image, or None) and ``built`` (seconds since 1970)."""
        found: dict[str, Any] = json.loads(self.facts_file.read_text())
        return found

    def touch(self) -> None:
        """Note that the entry was used."""
        for path in (self.image, self.kernel_package, self.facts_file):
            os.utime(path)


async def build_template(
    settings: Settings, runner: Runner, recipe: Recipe, progress: Progress, fresh: bool = False
) -> BuiltTemplate:
    """The root image and the kernel of a template; from the cache unless something that goes in has changed.

    ``fresh`` bootstraps anew, for newer packages.
    """
    base = await _base_image(settings, runner, recipe, progress, fresh)
    with tempfile.TemporaryDirectory(prefix="casemate.") as work:
        programs = [await compile_static(runner, source, Path(work)) for source in ("run_as.c", "tools.c")]
    facts = base.facts()
    python = facts["python"]
    files = guest_files(recipe.kind, (python[0], python[1]) if python else None, *programs)
    # The time of the bootstrap is in the name: a newer base of the same inputs is another image.
    final = base.image.with_name(f"{base.image.stem}-{facts['built']}-{_digest_of(files)}.ext4")
    async with build_lock(final, progress):
        if final.exists():
            os.utime(final)
        else:
            progress(f"{recipe.default_name}: putting the agent in")
            await _put_files(runner, base.image, final, files)
    kernel = await build_kernel(settings, runner, base.kernel_package, progress)
    _remove_unused(final.parent)
    return BuiltTemplate(final, ROOT_SIZE, kernel, int(facts["built"]))


def _remove_unused(directory: Path) -> None:
    """Remove images that nothing has used for a month. Their locks stay: another process may wait at one."""
    oldest = time.time() - _UNUSED_DAYS * 86400
    for path in directory.iterdir():
        try:
            if path.suffix in (".ext4", ".json", ".deb") and path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            continue  # removed by another build at the same time


async def _base_image(settings: Settings, runner: Runner, recipe: Recipe, progress: Progress, fresh: bool) -> _Base:
    sources = debian_archive.sources(recipe.suite)
    inputs = [_FORMAT, recipe.encode().decode(), sources, *_hooks(recipe, "", "", ""), *_included(recipe),
              *_EXCLUDED, *EXT4_OPTIONS, str(ROOT_SIZE)]  # fmt: skip
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:10]
    base = _Base(settings.cache / "templates" / f"{recipe.suite}-{recipe.kind}-{digest}.ext4")
    async with build_lock(base.image, progress):
        if base.complete and not fresh:
            base.touch()
            built = datetime.datetime.fromtimestamp(base.facts()["built"])
            progress(f"{recipe.default_name}: base image built before, on {built:%Y-%m-%d}")
            return base
        progress(f"{recipe.default_name}: bootstrapping Debian {recipe.suite} (takes half a minute or more)")
        with build_directory(base.image) as work:
            made = _Base(work / "root.ext4")
            await _bootstrap(settings, runner, recipe, sources, made, progress)
            python = await _python_in(runner, made.image)
            made.facts_file.write_text(json.dumps({"python": python, "built": int(time.time())}))
            # The facts come last: the entry counts as complete only with all three.
            for source, target in (
                (made.image, base.image),
                (made.kernel_package, base.kernel_package),
                (made.facts_file, base.facts_file),
            ):
                fsync_file(source)
                source.replace(target)
    return base


def _included(recipe: Recipe) -> list[str]:
    """The packages of the new system."""
    wanted = (*_PACKAGES[recipe.kind], *_MERGED.get(recipe.suite, ()), *recipe.packages)
    return list(dict.fromkeys(wanted))


def _hooks(recipe: Recipe, files: str, kernel_package: str, image_fd: str) -> list[str]:
    """What is done in the new system, in order, up to its image. ``files``: where the recipe's files lie, by number."""
    fetch = _FETCH_KERNEL.replace("META", META_PACKAGE)
    make_image = (
        _IMAGE.replace("SIZE", str(ROOT_SIZE))
        .replace("OPTIONS", f"{shlex.join(EXT4_OPTIONS)} -L root -J size=32 -i 65536")
        .replace("FD", image_fd)
    )
    return [
        _SETTLE,
        *(
            hook
            for number, file in enumerate(recipe.files)
            for hook in _file_hooks(f"{files}/{number}", file.path, file.mode)
        ),
        *(
            f'echo {shlex.quote(f"I: recipe: {command}")} >&2; chroot "$1" /bin/sh -euc {shlex.quote(command)}'
            for command in recipe.commands
        ),
        *([_SETTLE_KIND[recipe.kind]] if recipe.kind in _SETTLE_KIND else []),
        'echo "I: fetching the kernel" >&2',
        fetch,
        f"download /kernel-package/package {shlex.quote(kernel_package)}",
        _CLEAN,
        'echo "I: making the image" >&2',
        make_image,
    ]


def _file_hooks(source: str, path: str, mode: int) -> list[str]:
    """Put a file of the recipe in. mmdebstrap's own ``upload`` crosses the user namespace of a build without root."""
    target = shlex.quote(path)
    return [
        f'chroot "$1" mkdir -p {shlex.quote(str(Path(path).parent))}',
        f"upload {shlex.quote(source)} {target}",
        f'chroot "$1" chmod {mode:04o} {target}',
    ]


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """A new empty file, open for writing by programs that get its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


async def _bootstrap(
    settings: Settings, runner: Runner, recipe: Recipe, sources: str, made: _Base, progress: Progress
) -> None:
    """Make a base image and fetch its kernel package, in one run of mmdebstrap."""
    root = os.geteuid() == 0
    if not root:
        _need_subordinate_ids()
    work = made.image.parent
    for number, file in enumerate(recipe.files):
        (work / str(number)).write_bytes(file.data)
    with _new_file(made.image) as image:
        os.ftruncate(image, ROOT_SIZE)
        argv: list[str | Path] = [
            "mmdebstrap",
            f"--mode={'root' if root else 'unshare'}",
            "--variant=minbase",
            "--format=null",
            f"--include={','.join(_included(recipe))}",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
            *(f"--aptopt={line}" for line in await debian_archive.proxies(runner)),
            *(f"--customize-hook={hook}" for hook in _hooks(recipe, str(work), str(made.kernel_package), str(image))),
        ]
        keyring = debian_archive.keyring(bool(sources))
        if keyring is not None:
            argv.append(f"--keyring={keyring}")
        # Without sources mmdebstrap takes those that it knows for the suite.
        argv += [recipe.suite, "/dev/null", *(["-"] if sources else [])]
        memory = _room_in_memory(_ROOM)
        name = recipe.default_name
        try:
            await runner.run(
                argv, input=sources.encode(), timeout=_BUILD_SECONDS, pass_fds=(image,), cwd=Path("/"),
                env={"TMPDIR": str(memory)} if memory else None,
                failure_log=settings.cache / "logs" / f"mmdebstrap-{recipe.suite}-{recipe.kind}.log",
                on_line=lambda line: progress(f"{name}: {line[3:]}") if _is_progress(line) else None,
            )  # fmt: skip
        except ToolError as error:
            raise TemplateBuildError(f"Bootstrapping Debian {recipe.suite} failed: {error}") from None
        if not any(os.pread(image, 4096, 0)[1080:1082]):
            raise TemplateBuildError("Bootstrapping Debian ended well, but the image has no file system")
        if not made.kernel_package.exists():
            raise TemplateBuildError("Bootstrapping Debian ended well, but no kernel was fetched")


def _is_progress(line: str) -> bool:
    """Whether a line of mmdebstrap tells a person how far it is; those about hooks show scripts of ours."""
    return line.startswith("I: ") and not line.startswith(("I: running --", "I: running special hook"))


def _room_in_memory(needed: int) -> Path | None:
    """A directory in memory for a build's temporary files; None when there is too little room."""
    memory = Path("/dev/shm")
    try:
        return memory if free_bytes(memory) >= needed else None
    except OSError:
        return None


def _need_subordinate_ids() -> None:
    """Without root a bootstrap needs a range of user ids to work with."""
    name = pwd.getpwuid(os.geteuid()).pw_name
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        try:
            if any(line.split(":")[0] in (name, str(os.geteuid())) for line in path.read_text().splitlines()):
                continue
        except OSError:
            pass
        raise TemplateBuildError(
            f"{name} has no subordinate ids in {path}, which building without root needs: "
            f"as root run 'usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}', or build as root"
        )


async def _python_in(runner: Runner, image: Path) -> tuple[int, int] | None:
    """The version of the Python in an image that we have just made, by where its /usr/bin/python3 points."""
    done = await runner.run(["debugfs", "-R", "stat /usr/bin/python3", image], timeout=60)
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if "Fast link dest" in line:
            major, _dot, minor = line.partition("python")[2].strip('"').partition(".")
            if major.isdigit() and minor.isdigit():
                return int(major), int(minor)
    return None


def _digest_of(files: list[GuestFile]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.mode}\0{file.link}\0{len(file.data)}\0".encode() + file.data)
    return digest.hexdigest()[:10]


async def _put_files(runner: Runner, base: Path, final: Path, files: list[GuestFile]) -> None:
    """A copy of an image with files of ours in it; no mount, no root (debugfs)."""
    with build_directory(final) as work:
        image = work / "image"
        copy_file(base, image)
        commands = [f"mkdir {path}" for path in _directories(files)]
        for number, file in enumerate(files):
            if file.link:
                commands.append(f"symlink {file.path} {file.link}")
                continue
            (work / str(number)).write_bytes(file.data)
            commands += [
                f"write {number} {file.path}",
                *(f"set_inode_field {file.path} {field} {value}" for field, value in _fields(file)),
            ]
        (work / "commands").write_text("".join(f"{line}\n" for line in commands))
        done = await runner.run(["debugfs", "-w", "-f", work / "commands", image], timeout=60, cwd=work)
        said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        if len(said) > 1:  # the first line is its version
            raise TemplateBuildError(f"Files could not be put into the image: {' / '.join(said[1:5])}")
        fsync_file(image)
        image.chmod(0o600)  # the daemon alone reads it; qubes get a copy
        image.replace(final)


def _directories(files: list[GuestFile]) -> list[str]:
    """Those of ours that a base image lacks, parents first."""
    parents = {str(parent) for file in files for parent in Path(file.path).parents}
    return sorted(path for path in parents if path not in _THERE)


def _fields(file: GuestFile) -> tuple[tuple[str, str], ...]:
    return (("mode", f"0{0o100000 | file.mode:o}"), ("uid", "0"), ("gid", "0"), *(
        (field, "@0") for field in ("atime", "mtime", "ctime", "crtime")
    ))  # fmt: skip
