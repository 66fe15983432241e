"""What the host's own apt knows: its Debian sources handed to template builds, packages fetched without installing."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from casemate.host.process import Runner
from casemate.wire.errors import TemplateBuildError

_SOURCES = Path("/etc/apt/sources.list")
_SOURCES_DIR = Path("/etc/apt/sources.list.d")
_ONE_LINE = re.compile(r"^deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)(\s+.*)?$")


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package as apt would install it."""

    name: str
    version: str
    depends: str


class Apt:
    """Asks apt-get and apt-cache; as any user, nothing is installed. Lists of our own are made where the host has none.

    ``directory`` is where those lists and the packages' files go.
    """

    def __init__(self, runner: Runner, directory: Path) -> None:
        self._runner = runner
        self._directory = directory
        self._options: list[str] = []

    async def show(self, name: str) -> Package:
        """The candidate version of a package."""
        found = await self._show(name)
        if found is None:
            await self._own_lists()
            found = await self._show(name)
        if found is None:
            raise TemplateBuildError(f"apt knows no package {name}; do the host's apt sources have Debian's main?")
        return found

    async def _show(self, name: str) -> Package | None:
        argv = ["apt-cache", *self._options, "show", "--no-all-versions", name]
        done = await self._runner.run(argv, timeout=60, check=False)
        fields = dict(
            line.split(": ", 1)
            for line in done.stdout.decode("utf-8", "replace").split("\n\n")[0].splitlines()
            if ": " in line and not line.startswith(" ")
        )
        if done.status != 0 or "Version" not in fields:
            return None
        return Package(fields["Package"], fields["Version"], fields.get("Depends", ""))

    async def _own_lists(self) -> None:
        """Fetch package lists into our directory, as apt-get update does for the host."""
        lists, cache = self._directory / "lists", self._directory / "cache"
        for path in (lists / "partial", cache / "archives/partial"):
            path.mkdir(parents=True, exist_ok=True)
        self._options = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User="]
        await self._runner.run(["apt-get", *self._options, "-q", "update"], timeout=600)

    async def download(self, package: Package, into: Path) -> Path:
        """Fetch the package's file into an empty directory; apt checks its signature chain and hash."""
        await self._runner.run(
            ["apt-get", "-o", "APT::Sandbox::User=", *self._options, "-q", "download",
             f"{package.name}={package.version}"],
            timeout=900, cwd=into,
        )  # fmt: skip
        files = list(into.glob("*.deb"))
        if len(files) != 1:
            raise TemplateBuildError(f"apt-get download of {package.name} left {len(files)} files instead of one")
        return files[0]


def codename() -> str:
    """The Debian release of this host, such as ``bookworm``."""
    for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines():
        key, _equals, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip("\"'")
    raise TemplateBuildError("/etc/os-release names no Debian release (VERSION_CODENAME)")


def debian_sources(release: str) -> str:
    """The host's apt sources of this Debian release, in apt's one-line form.

    Others (third parties', whose keys a template would need too) are left out: an entry counts as Debian's when its
    suite is the release or one of its companions, its components are Debian's, and Debian's keyring vouches for it.
    """
    suites = {release, *(f"{release}{tail}" for tail in ("-updates", "-security", "/updates"))}
    lines: list[str] = []
    for path in (_SOURCES, *sorted(_SOURCES_DIR.glob("*.list")), *sorted(_SOURCES_DIR.glob("*.sources"))):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            lines.extend(_from_deb822(text, suites) if path.suffix == ".sources" else _from_lines(text, suites))
    if not lines:
        raise TemplateBuildError(f"/etc/apt has no source of Debian {release}")
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def _line(uri: str, suite: str, components: list[str], suites: set[str]) -> list[str]:
    main = [name for name in components if name in ("main", "contrib", "non-free", "non-free-firmware")]
    if suite not in suites or "main" not in main or len(main) != len(components):
        return []
    return [f"deb {uri} {suite} main"]


def _from_lines(text: str, suites: set[str]) -> list[str]:
    found: list[str] = []
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#", 1)[0].strip())
        if match is None or not _debian_key(match[1] if "signed-by" in (match[1] or "") else ""):
            continue
        found.extend(_line(match[2], match[3], (match[4] or "").split(), suites))
    return found


def _from_deb822(text: str, suites: set[str]) -> list[str]:
    found: list[str] = []
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            elif ":" in line:
                key, _colon, value = line.partition(":")
                key = key.lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        if not _debian_key(fields.get("signed-by", "")):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                found.extend(_line(uri, suite, fields.get("components", "").split(), suites))
    return found


def _debian_key(signed_by: str) -> bool:
    """True unless a key other than those of Debian's archive is named, or one is embedded."""
    return not signed_by or "debian-archive" in signed_by


def archive_keyring() -> Path | None:
    """Debian's keyring where it is installed; else apt's trusted keys do."""
    path = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    return path if path.exists() else None


def room_for_builds(needed: int) -> Path | None:
    """A directory in memory for temporary files of a build, None when there is too little room."""
    memory = Path("/dev/shm")
    try:
        return memory if shutil.disk_usage(memory).free >= needed else None
    except OSError:
        return None
