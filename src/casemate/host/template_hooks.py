"""What is done inside a new template's system, as hooks of mmdebstrap: users, the recipe, the kernel, the image.

Each hook is a line or script for a shell outside the new system, whose directory is ``$1``. All run as the root of the
build, which without root is the root of a user namespace.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from casemate.host.guest_kernel import META_PACKAGE
from casemate.wire.recipe import Recipe

ROOT_SIZE = 20 << 30
"""Size of the root file system in bytes; only what is used takes room."""

# No metadata checksums and no 64-bit fields: they cost an emulated guest time. uninit_bg: inode tables stay holes.
_EXT4 = ("-t", "ext4", "-q", "-F", "-m", "0", "-O", "^metadata_csum,^64bit,uninit_bg")
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


def hooks(recipe: Recipe, files: str, kernel_package: str, image_fd: str) -> list[str]:
    """What is done in the new system, in order, up to its image.

    ``files`` is the directory in which the recipe's files lie, named by their number. The kernel's package is put at
    the path ``kernel_package``; the image goes to the inherited descriptor ``image_fd``.
    """
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
