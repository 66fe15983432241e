"""``casemate interop``: put on this host what programs written for Qubes OS look for at fixed places.

Their client library takes the Admin API's socket only where ``/etc/qubes-release`` exists, imports volumes through
programs in ``/etc/qubes-rpc``, calls ``/usr/lib/qubes/qrexec-client``, and asks who is in the group ``qubes``. Its
policy editor calls ``/usr/bin/qrexec-client``, its manager the programs for menus. Nothing that is not ours is
overwritten or removed. (places: upstream's client, its config module and tools, the manager)

``/run/qubes`` is not made here: it is gone at each boot, and the daemon of the whole host makes it and what is in it
(engine/upstream_databases.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from casemate.cli import json_output, tool
from casemate.tools_directory import tools_directory
from casemate.wire.errors import CasemateError
from casemate.wire.upstream_paths import GROUP, MARK

BIN = tools_directory()

_IMPORT = f"""#!/bin/sh
# {{name}}: data for a volume comes on standard input ({MARK}).
exec {{casemate}} interop import {{name}} "$1"
"""

FILES = {
    "etc/qubes-release": f"Qubes release 4.3 (Casemate; {MARK})\n",
    "etc/qubes-rpc/admin.vm.volume.Import": _IMPORT,
    "etc/qubes-rpc/admin.vm.volume.ImportWithSize": _IMPORT,
}
"""Files below the root; those of a directory ``qubes-rpc`` are programs."""

LINKS = {
    "usr/lib/qubes/qrexec-client": "qrexec-client",
    "usr/bin/qrexec-client": "qrexec-client",
    "usr/bin/qubesd-query": "qubesd-query",
    "usr/bin/qvm-appmenus": "qvm-appmenus",
    "usr/bin/qvm-sync-appmenus": "qvm-sync-appmenus",
}
"""Links to our own tools: those that upstream's clients run and do not bring themselves."""

DIRECTORIES = ("etc/qubes/backup",)
"""Where the group may write."""


_PACKAGED = Path("/var/lib/dpkg/info/casemate-qubes-tools.list")
"""What Debian's package of the tools has put in place, one path a line; missing where it is not installed."""


class InteropError(CasemateError):
    """Something is at one of the places that is not ours."""


def _content(place: str) -> str:
    return (
        FILES[place].format(name=Path(place).name, casemate=BIN / "casemate") if "qubes-rpc" in place else FILES[place]
    )


def _target(link: Path, root: Path) -> Path:
    """Where a symbolic link leads. Debian's packages make relative ones within /usr, which are meant below ``root``."""
    said = link.readlink()
    if said.is_absolute():
        return said
    found = Path(os.path.normpath(link.parent / said))
    return Path("/") / found.relative_to(root) if found.is_relative_to(root) else found


def _state(root: Path, place: str) -> str:
    """``ours``, ``missing`` or ``foreign``."""
    path = root / place
    if not os.path.lexists(path):
        return "missing"
    if place in LINKS:
        return "ours" if path.is_symlink() and _target(path, root) == BIN / LINKS[place] else "foreign"
    try:
        return "ours" if path.is_file() and MARK in path.read_text("utf-8", "replace") else "foreign"
    except OSError:
        return "foreign"


def places(root: Path) -> dict[str, str]:
    """Each place and what is there."""
    return {place: _state(root, place) for place in (*FILES, *LINKS)}


def _group(user: str | None) -> int | None:
    """The id of the group, made if need be, with at least one member; None when this is not the real root."""
    import grp
    import subprocess

    try:
        found = grp.getgrnam(GROUP)
    except KeyError:
        subprocess.run(["groupadd", "--system", GROUP], check=True)
        found = grp.getgrnam(GROUP)
    if user and user not in found.gr_mem:
        subprocess.run(["gpasswd", "--add", user, GROUP], check=True, stdout=subprocess.DEVNULL)
    elif not user and not found.gr_mem:
        sys.stderr.write(f"casemate: nobody is in the group {GROUP} yet: --user NAME puts somebody in\n")
    return found.gr_gid


def install(root: Path, user: str | None) -> None:
    """Make what is missing; InteropError, before anything is made, for a place that somebody else uses."""
    there = places(root)
    foreign = [f"/{place}" for place, state in there.items() if state == "foreign"]
    if foreign:
        raise InteropError(f"not ours, so nothing was changed: {', '.join(foreign)}")
    group = _group(user) if root == Path("/") else None
    for place in FILES:
        path = root / place
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(_content(place), "ascii")
        path.chmod(0o755 if "qubes-rpc" in place else 0o644)
    for place, program in LINKS.items():
        if there[place] == "missing":
            path = root / place
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            path.symlink_to(BIN / program)
    for place in DIRECTORIES:
        path = root / place
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o2770)


def remove(root: Path) -> None:
    """Take away what is ours, and directories that are empty then; the group stays, and what a package has brought."""
    for place in removable(root):
        (root / place).unlink()
    for place in places(root):
        _remove_empty((root / place).parent, root)
    for place in DIRECTORIES:
        _remove_empty(root / place, root)


def removable(root: Path) -> list[str]:
    """The places that ``remove`` would take away."""
    try:
        packaged = set(_PACKAGED.read_text("utf-8", "surrogateescape").splitlines())
    except FileNotFoundError:
        packaged = set()
    return [place for place, state in places(root).items() if state == "ours" and f"/{place}" not in packaged]


def _remove_empty(path: Path, root: Path) -> None:
    while path != root and "qubes" in str(path.relative_to(root)):
        try:
            path.rmdir()
        except OSError:
            return
        path = path.parent


def carry(method: str, volume: str) -> int:
    """What the import programs do: standard input becomes the payload of a call, its reply standard output."""
    from casemate.client.transport import Transport
    from casemate.wire.names import qube_name

    target = qube_name(os.environ.get("QREXEC_REQUESTED_TARGET", ""))
    source = os.environ.get("QREXEC_REMOTE_DOMAIN", "")
    if source != "dom0":
        raise InteropError("this program serves programs of this host; qubes have the Admin API itself")
    sys.stdout.buffer.write(Transport().send_file_raw(method, volume, target, b"", sys.stdin.buffer))
    return 0


def run(args: argparse.Namespace) -> int:
    """Carry out a command line that ``add_to`` has parsed."""
    root = Path(args.root).resolve() if args.command != "import" else Path("/")
    if args.command == "import":
        return carry(args.method, args.volume)
    if args.command == "status":
        if json_output.wanted(args):
            json_output.write({f"/{place}": state for place, state in places(root).items()})
            return 0 if set(places(root).values()) == {"ours"} else 1
        for place, state in places(root).items():
            sys.stdout.write(f"{state:<8} /{place}\n")
        return 0 if set(places(root).values()) == {"ours"} else 1
    try:
        if args.command == "install":
            install(root, args.user)
        else:
            remove(root)
    except PermissionError as error:
        raise InteropError(f"{error.filename}: {error.strerror} (this needs root)") from None
    return 0


def add_to(commands: argparse._SubParsersAction[tool.Subparser]) -> None:
    """Add the command to a parser; ``body`` is set as for the others."""
    parser = commands.add_parser("interop", help="put in place what programs written for Qubes OS look for here")
    verbs = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for verb, text in (("install", "make it"), ("remove", "take it away"), ("status", "show what is there")):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("--root", default="/", help="directory to take for / (for packages)")
        if verb == "status":
            json_output.option(one)
        if verb == "install":
            one.add_argument("--user", help=f"put this user into the group {GROUP}")
    carrying = verbs.add_parser("import", help="what the programs in /etc/qubes-rpc call")
    carrying.add_argument("method", choices=[Path(place).name for place in FILES if "qubes-rpc" in place])
    carrying.add_argument("volume")
    parser.set_defaults(body=lambda args, _qubes: run(args))
