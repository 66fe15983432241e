"""Where Debian's packages come from when a template is built: sources, keys, proxies. Downloads nothing.

A Debian host has chosen a mirror: its sources are used, translated to the suite that is wanted. Any other host leaves
the choice to mmdebstrap, which knows Debian's own mirror. The host's package lists are never read or changed.
"""

from __future__ import annotations

import re
from pathlib import Path

from casemate.host.process import Runner
from casemate.wire.errors import TemplateBuildError, ToolError
from casemate.wire.recipe import RELEASES

_SOURCES = Path("/etc/apt/sources.list")
_SOURCES_DIR = Path("/etc/apt/sources.list.d")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_ONE_LINE = re.compile(r"^deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)(\s+.*)?$")
_COMPONENTS = frozenset({"main", "contrib", "non-free", "non-free-firmware"})

_SUITES = (*RELEASES, "bullseye", "stable", "oldstable", "testing", "unstable")
"""Names under which sources of a Debian host may go."""
_COMPANIONS = ("", "-updates", "-security", "/updates")
"""Endings of a release's companions; the last was security's until 2021."""

Source = tuple[str, str, str]
"""One source of Debian's main component: URI, suite, and the companion's ending (empty for the release itself)."""


def sources(suite: str) -> str:
    """apt sources of a suite in one-line form, from this host's mirrors; empty where it has none of Debian.

    Third parties' sources are left out, because a template would need their keys too: an entry counts as Debian's when
    its suite is a Debian suite, its components are Debian's, and no key but that of Debian's archive vouches for it.
    """
    found = host_sources()
    exact = [one for one in found if one[1] == suite]
    if not exact and found:
        # The same mirror under another suite. Only one suite's entries, else each URI came several times.
        first = next((one[1] for one in found if one[2] == ""), found[0][1])
        exact = [(uri, suite, ending) for uri, of, ending in found if of == first]
    if suite == "sid":
        exact = [one for one in exact if one[2] == ""]  # unstable has no companions
    lines = [f"deb {uri} {name}{'-security' if end == '/updates' else end} main" for uri, name, end in exact]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def host_sources() -> list[Source]:
    """Every source of Debian's main component that this host's apt uses."""
    found: list[Source] = []
    for path in (_SOURCES, *sorted(_SOURCES_DIR.glob("*.list")), *sorted(_SOURCES_DIR.glob("*.sources"))):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found.extend(_from_deb822(text) if path.suffix == ".sources" else _from_lines(text))
    return found


def _source(uri: str, name: str, components: list[str]) -> list[Source]:
    if "main" not in components or not _COMPONENTS.issuperset(components):
        return []
    for ending in _COMPANIONS:
        suite = name.removesuffix(ending) if ending else name
        if suite in _SUITES and suite + ending == name:
            return [(uri, suite, ending)]
    return []


def _from_lines(text: str) -> list[Source]:
    found: list[Source] = []
    for line in text.splitlines():
        match = _ONE_LINE.match(line.split("#", 1)[0].strip())
        if match is None or not _debian_key(match[1] if "signed-by" in (match[1] or "") else ""):
            continue
        found.extend(_source(match[2], match[3], (match[4] or "").split()))
    return found


def _from_deb822(text: str) -> list[Source]:
    found: list[Source] = []
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
            for name in fields.get("suites", "").split():
                found.extend(_source(uri, name, fields.get("components", "").split()))
    return found


def _debian_key(signed_by: str) -> bool:
    """True unless a key other than those of Debian's archive is named, or one is embedded."""
    return not signed_by or "debian-archive" in signed_by


def keyring(have_sources: bool) -> Path | None:
    """The file of the archive's keys. None on a Debian host without that file: apt's trusted keys do there."""
    if _KEYRING.exists():
        return _KEYRING
    if have_sources:
        return None
    raise TemplateBuildError(
        f"There is no {_KEYRING}, so nothing could vouch for Debian's packages: install the package "
        "debian-archive-keyring (Fedora: debian-keyring)"
    )


async def proxies(runner: Runner) -> list[str]:
    """The proxies of the host's apt, as options; none where there is no apt-config."""
    try:
        done = await runner.run(["apt-config", "dump"], timeout=30)
    except ToolError:
        return []
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return [line for line in lines if line.startswith("Acquire::") and "::Proxy " in line and not line.endswith('"";')]
