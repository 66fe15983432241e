"""``python -m casemate.store FILE COMMAND``: the store from a shell, to look at it and to try its promises."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from casemate.model import invariants
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
    return 0


def _set(store: Store, args: argparse.Namespace) -> int:
    with store.write(args.timeout) as transaction:
        transaction.system.admin.features.set(args.feature, args.value)
    _say(f"{args.feature}={args.value}")
    return 0


def _increment(store: Store, args: argparse.Namespace) -> int:
    for _ in range(args.times):
        with store.write(args.timeout) as transaction:
            features = transaction.system.admin.features
            value = int(features.get(args.feature, "0")) + 1
            for name in (args.feature, f"{args.feature}.twin"):
                features.set(name, str(value))
        _say(value)
    return 0


def _hold(store: Store, args: argparse.Namespace) -> int:
    with store.write(args.timeout) if args.mode == "exclusive" else store.read(args.timeout):
        _say("held")
        sys.stdin.read()
    return 0


def _save_twice(store: Store, args: argparse.Namespace) -> int:
    with store.write(args.timeout) as transaction:
        value = int(transaction.system.admin.features.get(args.feature, "0")) + 1
        transaction.system.admin.features.set(args.feature, str(value))
        transaction.save()
        _say("saved")
        if args.wait:
            sys.stdin.read()
        transaction.system.admin.features.set(f"{args.feature}.twin", str(value))
    _say(value)
    return 0


def _check(store: Store, args: argparse.Namespace) -> int:
    found = invariants.problems(store.snapshot())
    for problem in found:
        _say(problem)
    return 1 if found else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 75 where the lock was not free in time."""
    parser = argparse.ArgumentParser(prog="python -m casemate.store", description=__doc__)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the lock")
    parser.add_argument("file", type=Path)
    commands = parser.add_subparsers(required=True)
    read = commands.add_parser("read", help="print features of the admin qube")
    read.add_argument("features", nargs="*")
    read.add_argument("--wait", action="store_true", help="hold the lock until standard input ends")
    read.set_defaults(run=_read)
    change = commands.add_parser("set", help="set a feature of the admin qube")
    change.add_argument("feature")
    change.add_argument("value")
    change.set_defaults(run=_set)
    increment = commands.add_parser("increment", help="count a feature up, and its twin with it")
    increment.add_argument("feature")
    increment.add_argument("--times", type=int, default=1)
    increment.set_defaults(run=_increment)
    hold = commands.add_parser("hold", help="hold the lock until standard input ends")
    hold.add_argument("mode", choices=["shared", "exclusive"])
    hold.set_defaults(run=_hold)
    twice = commands.add_parser("save-twice", help="count a feature up, then its twin, in two saves under one lock")
    twice.add_argument("feature")
    twice.add_argument("--wait", action="store_true", help="wait between the saves until standard input ends")
    twice.set_defaults(run=_save_twice)
    check = commands.add_parser("check", help="read the store and name what does not hold")
    check.set_defaults(run=_check)
    args = parser.parse_args(argv)
    try:
        run: int = args.run(Store(args.file), args)
        return run
    except CasemateError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
