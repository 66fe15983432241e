"""What users' programs do all day, as processes of their own: ``watch`` reads everything, ``churn ROUNDS SEED NAME…``
creates, starts, kills and removes qubes of a few names that others use too.

Errors that the API documents for a qube that has just come or gone are ordinary; any other ends the program with
status 1 and is its last line.
"""

from __future__ import annotations

import random
import sys

from casemate.client.qubes import Qubes
from casemate.client.transport import Transport
from casemate.settings import load
from casemate.streams.ready import readable
from casemate.wire.errors import (
    AlreadyExistsError,
    CasemateError,
    NotFoundError,
    NotHaltedError,
    NotStartedError,
    PermissionDeniedError,
)

EXPECTED = (AlreadyExistsError, NotFoundError, NotHaltedError, NotStartedError)


def watch(qubes: Qubes) -> None:
    rounds = 0
    while not readable([sys.stdin], 0):
        names = [str(entry["name"]) for entry in qubes.inventory(None, None, True) if entry["name"] != "dom0"]
        for name in names:
            for method, arg in (("admin.vm.CurrentState", ""), ("admin.vm.property.Get", "xid"),
                                ("admin.vm.property.GetAll", ""), ("admin.vm.volume.List", "")):  # fmt: skip
                try:
                    qubes.call(method, arg, name)
                except EXPECTED:
                    pass
        rounds += 1
    print(rounds)


def churn(qubes: Qubes, rounds: int, seed: int, names: list[str]) -> None:
    dice = random.Random(seed)
    done = {"create": 0, "start": 0}
    for _ in range(rounds):
        name = dice.choice(names)
        steps = [
            ("create", "admin.vm.Create.StandaloneVM", "", "dom0", f"name={name} label=red"),
            ("start", "admin.vm.Start", "", name, ""),
            ("kill", "admin.vm.Kill", "", name, ""),
            ("remove", "admin.vm.Remove", "", name, ""),
        ]
        for what, method, arg, dest, payload in steps:
            try:
                qubes.call(method, arg, dest, payload)
            except EXPECTED:
                continue
            if what in done:
                done[what] += 1
    print(done["create"], done["start"])


def main() -> int:
    qubes = Qubes(Transport(load(), daemon=()))
    try:
        if sys.argv[1] == "watch":
            watch(qubes)
        else:
            churn(qubes, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    except (CasemateError, PermissionDeniedError) as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
