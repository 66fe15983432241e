"""``casemate fork``: makes disposables of a running qube, which go on from where it is."""

from __future__ import annotations

import argparse
from typing import Any

from casemate.client.qubes import Qubes
from casemate.wire.errors import printable


def add_to(commands: Any) -> None:
    """Add the command ``fork``."""
    fork = commands.add_parser("fork", help="make disposables of a running qube, with its memory, programs and files")
    fork.add_argument("QUBE", help="a disposable, or a template for disposables, that runs")
    fork.add_argument("-n", "--number", type=int, default=1, help="how many (default: 1)")
    fork.set_defaults(body=_fork)


def _fork(args: argparse.Namespace, qubes: Qubes) -> int:
    names = qubes.call("admin.casemate.vm.Fork", str(args.number), args.QUBE).split()
    for name in names:
        print(printable(name))
    return 0
