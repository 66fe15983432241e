"""Puts files of ours into an ext4 image by debugfs: nothing is mounted, and root is not needed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from casemate.host.agent_package import GuestFile
from casemate.host.build_lock import build_directory
from casemate.host.files import copy_file, fsync_file
from casemate.host.process import Runner
from casemate.wire.errors import TemplateBuildError

_THERE = "directory already exists"
"""What debugfs says to mkdir where the base image, or the recipe's files, have the directory already."""


def digest_of(files: list[GuestFile]) -> str:
    """Ten hexadecimal digits that name these files: another path, mode, link or content gives others."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.mode}\0{file.link}\0{len(file.data)}\0".encode() + file.data)
    return digest.hexdigest()[:10]


async def put_files(runner: Runner, base: Path, final: Path, files: list[GuestFile]) -> None:
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
        said = [
            line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip() and _THERE not in line
        ]
        if len(said) > 1:  # the first line is its version
            raise TemplateBuildError(f"Files could not be put into the image: {' / '.join(said[1:5])}")
        fsync_file(image)
        image.chmod(0o600)  # the daemon alone reads it; qubes get a copy
        image.replace(final)


def _directories(files: list[GuestFile]) -> list[str]:
    """All that lead to a file of ours, parents first; debugfs makes no parents by itself."""
    parents = {str(parent) for file in files for parent in Path(file.path).parents}
    return sorted(parents - {"/"})


def _fields(file: GuestFile) -> tuple[tuple[str, str], ...]:
    return (("mode", f"0{0o100000 | file.mode:o}"), ("uid", "0"), ("gid", "0"), *(
        (field, "@0") for field in ("atime", "mtime", "ctime", "crtime")
    ))  # fmt: skip
