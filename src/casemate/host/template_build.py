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
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.host import debian_archive
from casemate.host.agent_package import guest_files
from casemate.host.build_lock import build_directory, build_lock
from casemate.host.build_memory import memory_directory
from casemate.host.build_steps import AGENT, IMAGE, KERNEL, BuildReport, ended_at
from casemate.host.files import fsync_file
from casemate.host.guest_kernel import BuiltKernel, build_kernel, compile_static
from casemate.host.image_files import digest_of, put_files
from casemate.host.process import Runner
from casemate.host.template_hooks import EXT4_OPTIONS, ROOT_SIZE, hooks
from casemate.settings import Settings
from casemate.wire.errors import TemplateBuildError, ToolError
from casemate.wire.recipe import Recipe

log = logging.getLogger(__name__)

_PACKAGES: dict[str, tuple[str, ...]] = {
    "lean": ("python3", "iproute2", "nftables", "e2fsprogs"),
    "systemd": ("python3", "iproute2", "nftables", "e2fsprogs", "systemd-sysv", "udev", "dbus"),
}
"""What each kind of template has beyond Debian's minimal system."""

_MERGED = {"bookworm": ("usr-is-merged",)}
"""Suites whose base still asks for a package that says that /usr is merged; without it usrmerge would come instead."""

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
    settings: Settings, runner: Runner, recipe: Recipe, report: BuildReport, fresh: bool = False
) -> BuiltTemplate:
    """The root image and the kernel of a template; from the cache unless something that goes in has changed.

    ``fresh`` bootstraps anew, for newer packages. ``report`` hears of all steps but the last, which is not ours.
    """
    progress = report.line
    # For the daemon alone: a recipe may put secrets into a template. Qubes get copies.
    images = settings.cache / "templates"
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    images.chmod(0o700)
    base = await _base_image(settings, runner, recipe, report, fresh)
    report.ended(IMAGE)
    with tempfile.TemporaryDirectory(prefix="casemate.") as work:
        programs = [await compile_static(runner, source, Path(work)) for source in ("run_as.c", "tools.c")]
    facts = base.facts()
    python = facts["python"]
    files = guest_files(recipe.kind, (python[0], python[1]) if python else None, *programs)
    # The time of the bootstrap is in the name: a newer base of the same inputs is another image.
    final = base.image.with_name(f"{base.image.stem}-{facts['built']}-{digest_of(files)}.ext4")
    async with build_lock(final, progress):
        if final.exists():
            os.utime(final)
        else:
            progress(f"{recipe.default_name}: putting the agent in")
            await put_files(runner, base.image, final, files)
    report.ended(AGENT)
    kernel = await build_kernel(settings, runner, base.kernel_package, progress)
    report.ended(KERNEL)
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


async def _base_image(settings: Settings, runner: Runner, recipe: Recipe, report: BuildReport, fresh: bool) -> _Base:
    progress = report.line
    sources = debian_archive.sources(recipe.suite)
    inputs = [_FORMAT, recipe.encode().decode(), sources, *hooks(recipe, "", "", ""), *_included(recipe),
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
            await _bootstrap(settings, runner, recipe, sources, made, report)
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


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """A new empty file, open for writing by programs that get its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


async def _bootstrap(
    settings: Settings, runner: Runner, recipe: Recipe, sources: str, made: _Base, report: BuildReport
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
            # As root it mounts the host's /proc, /sys and /dev/shm below the new system. In a namespace of its own they
            # go with the last of its processes, however that ends; in the host's they would stay after a kill.
            *(("unshare", "--mount", "--propagation", "private", "--") if root else ()),
            "mmdebstrap",
            f"--mode={'root' if root else 'unshare'}",
            "--variant=minbase",
            "--format=null",
            f"--include={','.join(_included(recipe))}",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
            *(f"--aptopt={line}" for line in await debian_archive.proxies(runner)),
            *(f"--customize-hook={hook}" for hook in hooks(recipe, str(work), str(made.kernel_package), str(image))),
        ]
        keyring = debian_archive.keyring(bool(sources))
        if keyring is not None:
            argv.append(f"--keyring={keyring}")
        # Without sources mmdebstrap takes those that it knows for the suite.
        argv += [recipe.suite, "/dev/null", *(["-"] if sources else [])]
        name = recipe.default_name

        def hear(line: str) -> None:
            if (step := ended_at(line)) is not None:
                report.ended(step)
            if _is_progress(line):
                report.line(f"{name}: {line[3:]}")

        try:
            async with memory_directory(runner, _ROOM) as memory:
                await runner.run(
                    argv, input=sources.encode(), timeout=_BUILD_SECONDS, cwd=Path("/"),
                    pass_fds=(image, memory[1]) if memory else (image,),
                    env={"TMPDIR": str(memory[0])} if memory else None,
                    failure_log=settings.cache / "logs" / f"mmdebstrap-{recipe.suite}-{recipe.kind}.log",
                    on_line=hear,
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
