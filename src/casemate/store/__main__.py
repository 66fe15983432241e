"""``python -m casemate.store FILE COMMAND``: the store from a shell, to inspect, repair and test it.

Each command prints a line for each thing that it did, at once. Some commands wait until standard input ends, so that a
test decides when they go on. The exit status is 75 (EX_TEMPFAIL) when the lock was not free in time.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from casemate.model import invariants
from casemate.store import reader
from casemate.store.store import Store
from casemate.wire.errors import CasemateError


def _say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _read(store: Store, args: argparse.Namespace) -> int:
    with store.read(args.timeout) as system:
        features = system.admin.features
        for name in args.features or list(features):
            _say(f"{name}={features.get(name, '')}")
        if args.wait:
            sys.stdin.read()
        time.sleep(args.seconds)
    return 0


def _snapshot(store: Store, args: argparse.Namespace) -> int:
    """Read again and again without the lock; print the longest wait, and how often a feature differed from its twin.

    A writer of the tests sets a feature and its twin in one transaction, so a reader that sees them differ saw half of
    it.
    """
    longest, rounds, torn = 0.0, 0, 0
    end = time.monotonic() + args.seconds
    while rounds == 0 or time.monotonic() < end:
        begin = time.monotonic()
        features = store.snapshot().admin.features
        longest = max(longest, time.monotonic() - begin)
        torn += features.get(args.feature, "0") != features.get(f"{args.feature}.twin", "0")
        rounds += 1
    _say(f"rounds={rounds} torn={torn} longest={longest:.3f}")
    return 1 if torn else 0


def _loop(store: Store, args: argparse.Namespace) -> int:
    """Hold the lock shared again and again; print how often a feature differed from its twin."""
    rounds, torn = 0, 0
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        with store.read(args.timeout) as system:
            features = system.admin.features
            torn += features.get(args.feature, "0") != features.get(f"{args.feature}.twin", "0")
            time.sleep(args.hold)
        rounds += 1
        if rounds == 1:
            _say("reading")
    _say(f"rounds={rounds} torn={torn}")
    return 1 if torn else 0


def _set(store: Store, args: argparse.Namespace) -> int:
    with store.write(args.timeout) as transaction:
        domain = transaction.system.domains[args.qube]
        if args.property:
            domain.set_text(args.name, args.value)
        else:
            domain.features.set(args.name, args.value)
    _say(f"{args.name}={args.value}")
    return 0


def _increment(store: Store, args: argparse.Namespace) -> int:
    for _ in range(args.times):
        with store.write(args.timeout) as transaction:
            features = transaction.system.domains[args.qube].features
            value = int(features.get(args.feature, "0")) + 1
            for name in (args.feature, f"{args.feature}.twin"):
                features.set(name, str(value))
        _say(value)
    return 0


def _hold(store: Store, args: argparse.Namespace) -> int:
    with store.write(args.timeout) if args.mode == "exclusive" else store.read(args.timeout):
        _say("held")
        if args.child:
            # Without the lock's descriptors, whatever the child does and however long it lives.
            _say(subprocess.Popen(args.child, stdin=subprocess.DEVNULL, close_fds=False).pid)
        if args.fork:
            child = os.fork()
            if child == 0:
                time.sleep(args.fork)
                os._exit(0)
            _say(child)
        if args.open:
            store.path.read_bytes()  # another descriptor of the data file, opened and closed
            _say("opened")
        sys.stdin.read()
    _say("released")
    return 0


def _save_many(store: Store, args: argparse.Namespace) -> int:
    """Count up and save in one transaction; the twin is set only with the last save."""
    with store.write(args.timeout) as transaction:
        for _ in range(args.saves - 1):
            features = transaction.system.admin.features
            features.set(args.feature, str(int(features.get(args.feature, "0")) + 1))
            transaction.save()
            _say("saved")
            if args.wait:
                sys.stdin.readline()
            time.sleep(args.pause)
        features = transaction.system.admin.features
        value = features.get(args.feature, "0")
        features.set(f"{args.feature}.twin", value)
    _say(value)
    return 0


def _check(store: Store, args: argparse.Namespace) -> int:
    """Print what does not hold. Creates and changes nothing, even where there is no store."""
    try:
        system = reader.read(store.path.read_bytes(), str(store.path))
    except OSError as error:
        sys.stderr.write(f"{store.path}: {error.strerror}\n")
        return 1
    found = invariants.problems(system)
    for problem in found:
        _say(problem)
    if not found:
        _say(f"{store.path}: sound; {len(system.domains)} qubes, save number {system.generation}")
    return 1 if found else 0


def _history(store: Store, args: argparse.Namespace) -> int:
    for copy in store.copies():
        state = copy.problem or f"{copy.qubes} qubes, save number {copy.generation}"
        _say(f"{copy.name:<18} {copy.when:%Y-%m-%d %H:%M:%S} UTC  {state}")
    return 0


def _restore(store: Store, args: argparse.Namespace) -> int:
    name = args.name
    if name is None:
        good = [copy.name for copy in store.copies() if not copy.problem]
        if not good:
            raise CasemateError(f"There is no copy of {store.path} that could be restored")
        name = good[0]
    aside = store.restore(name, args.timeout)
    _say(f"{store.path}: restored from {name}" + (f"; the damaged file is {aside}" if aside else ""))
    return 0


def _import(store: Store, args: argparse.Namespace) -> int:
    from casemate.store import upgrade

    system, notes = upgrade.read_r3(args.source.read_bytes(), str(args.source))
    store.begin_with(system, args.timeout)
    for note in notes:
        _say(note)
    _say(f"{store.path}: {len(system.domains)} qubes of {args.source}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m casemate.store", description=__doc__)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the lock")
    parser.add_argument("file", type=Path)
    commands = parser.add_subparsers(required=True)
    read = commands.add_parser("read", help="print features of the admin qube, under the shared lock")
    read.add_argument("features", nargs="*")
    read.add_argument("--wait", action="store_true", help="hold the lock until standard input ends")
    read.add_argument("--seconds", type=float, default=0.0, help="hold the lock so long")
    read.set_defaults(run=_read)
    snapshot = commands.add_parser("snapshot", help=_snapshot.__doc__)
    snapshot.add_argument("feature")
    snapshot.add_argument("--seconds", type=float, default=0.0)
    snapshot.set_defaults(run=_snapshot)
    loop = commands.add_parser("loop", help=_loop.__doc__)
    loop.add_argument("feature")
    loop.add_argument("--seconds", type=float, default=1.0)
    loop.add_argument("--hold", type=float, default=0.0, help="seconds under the lock each time")
    loop.set_defaults(run=_loop)
    change = commands.add_parser("set", help="set a feature of the admin qube")
    change.add_argument("name")
    change.add_argument("value")
    change.add_argument("--qube", default="dom0")
    change.add_argument("--property", action="store_true", help="a property, not a feature")
    change.set_defaults(run=_set)
    increment = commands.add_parser("increment", help="count a feature up, and its twin with it")
    increment.add_argument("feature")
    increment.add_argument("--times", type=int, default=1)
    increment.add_argument("--qube", default="dom0")
    increment.set_defaults(run=_increment)
    hold = commands.add_parser("hold", help="hold the lock until standard input ends")
    hold.add_argument("mode", choices=["shared", "exclusive"])
    hold.add_argument("--open", action="store_true", help="open and close the data file meanwhile")
    hold.add_argument("--fork", type=float, default=0.0, help="fork a child that lives so many seconds")
    hold.add_argument("--child", nargs=argparse.REMAINDER, help="start this program under the lock")
    hold.set_defaults(run=_hold)
    for name, saves in (("save-twice", 2), ("save-many", 3)):
        many = commands.add_parser(name, help=_save_many.__doc__)
        many.add_argument("feature")
        many.add_argument("--saves", type=int, default=saves)
        many.add_argument("--wait", action="store_true", help="wait for a line of standard input after each save")
        many.add_argument("--pause", type=float, default=0.0, help="seconds between the saves")
        many.set_defaults(run=_save_many)
    commands.add_parser("check", help="read the store and name what does not hold").set_defaults(run=_check)
    commands.add_parser("history", help="list earlier saves that are kept").set_defaults(run=_history)
    restore = commands.add_parser("restore", help="put an earlier save in place; a damaged file is set aside")
    restore.add_argument("name", nargs="?", help="as history names it (default: the newest that is sound)")
    restore.set_defaults(run=_restore)
    imported = commands.add_parser("import-r3", help="make the store from a qubes.xml of Qubes OS 3")
    imported.add_argument("source", type=Path)
    imported.set_defaults(run=_import)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    args = _parser().parse_args(argv)
    try:
        run: int = args.run(Store(args.file), args)
        return run
    except CasemateError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"{error.filename or args.file}: {error.strerror}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
