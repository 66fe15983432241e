"""Builds templates: Debian bootstrapped into an ext4 image, as root or not, with the agent put in at the end."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pwd
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casemate.host.agent_package import GuestFile, guest_files
from casemate.host.apt import Apt, archive_keyring, codename, debian_sources, room_for_builds
from casemate.host.build_lock import build_directory, build_lock
from casemate.host.files import copy_file, fsync_file
from casemate.host.guest_kernel import META_PACKAGE, Progress, compile_static
from casemate.host.process import Runner
from casemate.settings import Settings
from casemate.wire.errors import TemplateBuildError, ToolError

log = logging.getLogger(__name__)

KINDS: dict[str, tuple[str, ...]] = {
    "lean": ("python3", "iproute2", "nftables", "usr-is-merged"),
    "systemd": ("python3", "iproute2", "nftables", "usr-is-merged", "systemd-sysv", "udev", "dbus"),
}
"""Kinds of template, and what each has beyond Debian's minimal system."""

ROOT_SIZE = 20 << 30
"""Size of the root file system; only what is used takes room."""
_ROOM = 1 << 30
_BUILD_SECONDS = 1800.0
_FORMAT = "1"
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

# Inside the new system's directory $1, while /proc, /sys and /dev are mounted in it.
_CUSTOMIZE = r"""
set -eu
chroot "$1" useradd --uid 1000 --user-group --create-home --shell /bin/bash user
chroot "$1" passwd --delete root >/dev/null 2>&1
mkdir -p "$1/rw" "$1/usr/lib/casemate" "$1/etc/qubes-rpc" "$1/etc/qubes/rpc-config"
echo localhost >"$1/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$1/etc/hosts"
: >"$1/etc/fstab"
rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/log/* "$1/etc/resolv.conf"
rm -f "$1/etc/machine-id" && : >"$1/etc/machine-id"
"""

_CUSTOMIZE_KIND = {
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
    """A template's root file system, ready to be imported: a raw ext4 image, and the size it claims to have."""

    root_image: Path
    size: int
    kernel_name: str


@dataclass(frozen=True, slots=True)
class _Base:
    """A cached image without our own files, and which Python is in it."""

    image: Path
    python: tuple[int, int] | None


async def build_template(
    settings: Settings, runner: Runner, kind: str, progress: Progress, fresh: bool = False
) -> BuiltTemplate:
    """The root image of a template of a kind; taken from the cache unless something that goes in has changed.

    ``fresh`` bootstraps anew, for newer packages. The kernel is built apart (build_kernel); its name is told here.
    """
    if kind not in KINDS:
        raise TemplateBuildError(f"There is no kind of template {kind!r}; there are {', '.join(KINDS)}")
    release = codename()
    base = await _base_image(settings, runner, kind, release, progress, fresh)
    with tempfile.TemporaryDirectory(prefix="casemate.") as work:
        run_as = await compile_static(runner, "run_as.c", Path(work))
    files = guest_files(kind, base.python, run_as)
    final = base.image.with_name(f"{base.image.stem}-{_digest_of(files)}.ext4")
    async with build_lock(final, progress):
        if not final.exists():
            progress(f"template {kind}: putting the agent in")
            await _put_files(runner, base.image, final, files)
            for old in final.parent.glob(f"{base.image.stem}-*.ext4"):
                if old != final:
                    old.unlink(missing_ok=True)
    kernel = await Apt(runner, settings.cache / "apt").show(META_PACKAGE)
    return BuiltTemplate(final, ROOT_SIZE, f"debian-{kernel.depends.split()[0].removeprefix('linux-image-')}")


async def _base_image(
    settings: Settings, runner: Runner, kind: str, release: str, progress: Callable[[str], None], fresh: bool
) -> _Base:
    sources = debian_sources(release)
    hooks = _hooks(kind)
    inputs = [_FORMAT, kind, release, sources, *hooks, _IMAGE, *KINDS[kind], *_EXCLUDED, *EXT4_OPTIONS]
    digest = hashlib.sha256("\0".join([*inputs, str(ROOT_SIZE)]).encode()).hexdigest()[:10]
    image = settings.cache / "templates" / f"{release}-{kind}-{digest}.ext4"
    facts = image.with_suffix(".json")
    async with build_lock(image, progress):
        if fresh or not (image.exists() and facts.exists()):
            progress(f"template {kind}: bootstrapping Debian {release} (takes half a minute or more)")
            with build_directory(image) as work:
                await _bootstrap(runner, kind, release, sources, work, work / "root.ext4", progress)
                python = await _python_in(runner, work / "root.ext4")
                (work / "facts").write_text(json.dumps({"python": python}))
                fsync_file(work / "root.ext4")
                (work / "root.ext4").replace(image)
                (work / "facts").replace(facts)
        else:
            progress(f"template {kind}: base image built before")
    python = json.loads(facts.read_text())["python"]
    return _Base(image, (python[0], python[1]) if python else None)


def _hooks(kind: str) -> list[str]:
    """What is changed in the new system before its image is made."""
    return [_CUSTOMIZE, _CUSTOMIZE_KIND[kind]] if kind in _CUSTOMIZE_KIND else [_CUSTOMIZE]


async def _bootstrap(
    runner: Runner, kind: str, release: str, sources: str, work: Path, image: Path, progress: Progress
) -> None:
    root = os.geteuid() == 0
    if not root:
        _need_subordinate_ids()
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, ROOT_SIZE)
        make = (
            _IMAGE.replace("SIZE", str(ROOT_SIZE))
            .replace("OPTIONS", f"{shlex.join(EXT4_OPTIONS)} -L root -J size=32 -i 65536")
            .replace("FD", str(fd))
        )
        argv: list[str | Path] = [
            "mmdebstrap",
            f"--mode={'root' if root else 'unshare'}",
            "--variant=minbase",
            "--format=null",
            f"--include={','.join(KINDS[kind])}",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
            *(f"--aptopt={line}" for line in await _proxies(runner)),
            *(f"--customize-hook={hook}" for hook in (*_hooks(kind), make)),
        ]
        keyring = archive_keyring()
        if keyring is not None:
            argv.append(f"--keyring={keyring}")
        argv += [release, "/dev/null", "-"]
        memory = room_for_builds(_ROOM)
        try:
            await runner.run(
                argv, input=sources.encode(), timeout=_BUILD_SECONDS, pass_fds=(fd,), cwd=Path("/"),
                env={"TMPDIR": str(memory)} if memory else None,
                on_line=lambda line: progress(f"template {kind}: {line[3:]}") if line.startswith("I: ") else None,
            )  # fmt: skip
        except ToolError as error:
            raise TemplateBuildError(f"Bootstrapping Debian {release} failed: {error}") from None
        if not any(os.pread(fd, 4096, 0)[1080:1082]):
            raise TemplateBuildError("Bootstrapping Debian ended well, but the image has no file system")
    finally:
        os.close(fd)


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


async def _proxies(runner: Runner) -> list[str]:
    """The host's proxies for apt, as options."""
    done = await runner.run(["apt-config", "dump"], timeout=30)
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return [line for line in lines if line.startswith("Acquire::") and "::Proxy " in line and not line.endswith('"";')]


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
        image.chmod(0o644)
        image.replace(final)


def _directories(files: list[GuestFile]) -> list[str]:
    """Those of ours that a base image lacks, parents first."""
    parents = {str(parent) for file in files for parent in Path(file.path).parents}
    return sorted(path for path in parents if path not in _THERE)


def _fields(file: GuestFile) -> tuple[tuple[str, str], ...]:
    return (("mode", f"0{0o100000 | file.mode:o}"), ("uid", "0"), ("gid", "0"), *(
        (field, "@0") for field in ("atime", "mtime", "ctime", "crtime")
    ))  # fmt: skip
