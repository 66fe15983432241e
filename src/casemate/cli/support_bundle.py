"""``casemate support-bundle``: what a report of a fault needs, as one text that a person reads before it is written.

::

    status, properties, pools, logs ──▶ Scrubber ──▶ shown ──▶ yes? ──▶ FILE, the same bytes

Nothing is left out by a list of what is secret, because such a list is never complete. A word gets through only if it
is a word of Casemate's own code, or a short number: names of qubes become ``qube-1``, all else ``***``. Values of
features, notes, tags, firewall rules, the policy, profiles of backups and what consoles show are not looked at at all.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import casemate
from casemate.cli import tool
from casemate.client.qubes import Qubes
from casemate.settings import Settings
from casemate.wire import os_release
from casemate.wire.errors import CasemateError

HIDDEN = "***"
LOG_LINES = 200
"""Lines of the end of the daemon's log."""
LINK_LINES = 40
"""Lines of the end of the log of each qube's link."""
LOG_BYTES = 1 << 18
"""Bytes of the end of a log that are read for these lines."""
_CONSOLE = "its console ends:"
"""What stands in an error before words of a guest (engine/start_steps.py)."""
_SHORT = 7
"""Digits of the longest number that is shown. Longer ones may be numbers of accounts; sizes are shown in MiB."""
_UNTOLD = frozenset({"name", "qid", "uuid", "label", "mac", "backup_timestamp", "start_time"})
"""Properties that no fault depends on, or that say which qube it is."""
_WORD = re.compile(r"[A-Za-z0-9_]+(?:[-.@][A-Za-z0-9_]+)*|[^\x00-\x7f]+")
_PART = re.compile(r"[A-Za-z0-9]+")
_TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:,\d{3})? ")


@cache
def own_words() -> frozenset[str]:
    """Every word in Casemate's source, in lower case: what its messages, tracebacks and names are made of."""
    found: set[str] = set()
    for path in Path(casemate.__file__).parent.rglob("*.py"):
        found.update(word.lower() for word in _PART.findall(path.read_text("utf-8")))
    return frozenset(found)


class Scrubber:
    """Lets through the words of Casemate itself. ``names`` are those of the qubes, in the order of their numbers."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        others = (name for name in names if name != "dom0")
        self._aliases = {name: f"qube-{number}" for number, name in enumerate(others, 1)}
        parts = sorted(map(re.escape, self._aliases), key=len, reverse=True)
        # Part of a longer name it is another qube's, but for the names of logs: link-NAME.log, uplink-NAME.log.
        choice = "|".join(parts)
        self._names = re.compile(rf"(?:(?<![\w-])|(?<=link-))(?:{choice})(?![\w-])") if parts else None

    def text(self, text: str) -> str:
        """Text with all that is not Casemate's own hidden."""
        text = text.partition(_CONSOLE)[0]
        out, at = [], 0
        for found in self._names.finditer(text) if self._names else ():
            out += [_words(text[at : found.start()]), self._aliases[found[0]]]
            at = found.end()
        return "".join([*out, _words(text[at:])])

    def line(self, line: str) -> str:
        """A line of a log: its time stays."""
        found = _TIME.match(line)
        return found[0] + self.text(line[found.end() :]) if found else self.text(line)


def _words(text: str) -> str:
    return _WORD.sub(lambda found: found[0] if _is_own(found[0]) else HIDDEN, text)


def _is_own(word: str) -> bool:
    """Whether each part of a word, between dashes and dots, is a word of ours or a short number."""
    if not word.isascii():
        return False
    own = own_words()
    return all(len(part) < _SHORT if part.isdecimal() else part.lower() in own for part in _PART.findall(word))


def collect(qubes: Qubes) -> str:
    """The whole text. What cannot be found out is said where it would stand."""
    settings = qubes.transport.settings
    try:
        names = [qube.name for qube in qubes.listed()]
        trouble = ""
    except CasemateError as error:
        names, trouble = [], str(error)
    scrub = Scrubber(names)
    sections: list[tuple[str, Callable[[], Iterable[str]]]] = [
        ("Casemate", partial(_about, settings, scrub)),
        ("Host", partial(_host, settings)),
        ("Status", partial(_status, qubes, scrub)),
        ("Qubes", partial(_qubes, qubes, scrub)),
        ("Pools", partial(_pools, qubes, scrub)),
    ]
    sections += [
        (f"Log: {title}", partial(_log, path, most, scrub)) for title, path, most in _logs(settings, scrub, names)
    ]
    lines = ["Casemate support bundle. *** stands for a word that is not Casemate's own."]
    if trouble:
        lines += ["", f"The daemon does not answer: {scrub.text(trouble)}"]
    for title, write in sections:
        lines += ["", f"== {title}"]
        try:
            lines += write()
        except (CasemateError, OSError, ValueError, KeyError) as error:
            lines.append(f"not known: {scrub.text(str(error)) or type(error).__name__}")
    return "\n".join(lines) + "\n"


def _about(settings: Settings, scrub: Scrubber) -> Iterator[str]:
    yield f"version: {casemate.__version__}"
    yield f"python: {sys.version.split()[0]}"
    yield f"installed: {'in a clone' if (Path(casemate.__file__).parents[2] / 'pyproject.toml').exists() else 'yes'}"
    yield f"state: {scrub.text(settings.origin)}"
    yield f"hypervisor: {settings.hypervisor}"
    yield f"user: {'root' if os.geteuid() == 0 else 'not root'}"


def _host(settings: Settings) -> Iterator[str]:
    system = os.uname()
    fields = os_release.parse(Path("/etc/os-release").read_text("utf-8", "replace"))
    yield f"system: {fields.get('ID', '?')} {fields.get('VERSION_ID', '?')}, kernel {system.release}, {system.machine}"
    page = os.sysconf("SC_PAGE_SIZE")
    memory, free = (os.sysconf(name) * page >> 20 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    yield f"processors: {len(os.sched_getaffinity(0))}"
    yield f"memory: {memory} MiB, free {free} MiB"
    device = Path("/dev/kvm")
    kvm = "missing" if not device.exists() else "usable" if os.access(device, os.W_OK) else "closed to us"
    yield f"/dev/kvm: {kvm}"
    try:
        room = os.statvfs(settings.state)
        yield f"disk of the state: {room.f_bavail * room.f_frsize >> 20} MiB free"
    except OSError:
        pass  # it is not there yet, or closed to us


def _status(qubes: Qubes, scrub: Scrubber) -> Iterator[str]:
    status = qubes.status()
    for key, value in status.items():
        if key == "host":  # versions of QEMU and libvirt, written by the daemon: numbers with dots
            yield f"host: {value}"
        elif key not in ("protections", "state"):
            yield f"{key}: {scrub.text(str(value))}"
    for one in status.get("protections", []):
        yield f"{'has  ' if one['present'] else 'LACKS'} {one['id']}: {scrub.text(str(one['why']))}"


def _qubes(qubes: Qubes, scrub: Scrubber) -> Iterator[str]:
    for entry in qubes.inventory(None, None):
        properties: dict[str, dict[str, object]] = entry.get("properties", {})
        chosen = {
            key: scrub.text(str(one["value"])) or "none"
            for key, one in sorted(properties.items())
            if not one.get("default") and key not in _UNTOLD
        }
        features = " ".join(sorted(scrub.text(key) for key in entry.get("features", {})))
        words = ", ".join(f"{key}={value}" for key, value in chosen.items())
        yield f"{scrub.text(str(entry['name']))}: {entry['class']}, {entry['state']}; {words}"
        if features:
            yield f"    features: {features}"


def _pools(qubes: Qubes, scrub: Scrubber) -> Iterator[str]:
    for number, name in enumerate(qubes.call("admin.pool.List").split(), 1):
        lines = qubes.call("admin.pool.Info", name).splitlines()
        facts = {key: value for key, _, value in (line.partition("=") for line in lines)}
        sizes = ", ".join(f"{key} {int(facts[key]) >> 20} MiB" for key in ("size", "usage") if facts.get(key))
        yield f"pool-{number}: {scrub.text(facts.get('driver', '?'))}, {sizes}"


def _logs(settings: Settings, scrub: Scrubber, names: Iterable[str]) -> Iterator[tuple[str, Path, int]]:
    log = settings.run / "log"
    yield "casemated", log / "casemated.log", LOG_LINES
    yield "start of casemated", settings.run / "daemon.log", LINK_LINES
    for name in names:
        path = settings.qube_log("link", name)
        if name != "dom0" and os.path.exists(path):  # noqa: PTH110 - also False where the directory is closed to us
            yield f"link of {scrub.text(name)}", path, LINK_LINES


def _log(path: Path, most: int, scrub: Scrubber) -> list[str]:
    """The end of a log. What follows a guest's console in an error is that guest's, up to the next record."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ["there is none"]
    lines, hidden = [], size - LOG_BYTES > 0  # the first line may be the middle of a console
    for line in text.splitlines():
        if _TIME.match(line) or (line.startswith("Traceback") and not hidden):
            hidden = False
        if not hidden:
            lines.append(scrub.line(line))
        hidden = hidden or _CONSOLE in line
    return lines[-most:] or ["it is empty"]


def run(args: argparse.Namespace, qubes: Qubes) -> int:
    """Show the bundle, ask, and write it. Without a terminal to ask at it is only shown, unless ``--yes`` was said."""
    text = collect(qubes)
    sys.stdout.write(text)
    sys.stdout.flush()
    path = args.output or time.strftime("casemate-support-%Y%m%d-%H%M%S.txt")
    if not args.yes:
        if not sys.stdin.isatty():
            sys.stderr.write("Nothing is written: read it, then say --yes\n")
            return 0
        if not tool.confirmed(f"Write this to {path}?", "Nothing was written.\n", sys.stderr):
            return 1
    try:
        # Nobody else may read it before its owner sends it, and nothing of another file is lost.
        with open(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError as error:
        raise CasemateError(f"{path}: {error.strerror}") from None
    sys.stderr.write(f"{path} is written. Nothing is sent anywhere.\n")
    return 0
