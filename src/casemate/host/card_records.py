"""What is written down of the cards that net qubes have, before anything happens to a card: how to undo it.

One file for each qube, ``RUN/qubes/NAME.card``. Whoever finds one can take the card back, without a daemon or a room
that works: ``undo``. ``casemate clean`` runs that in a process of its own (``clean_up.py``).
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from casemate.host import cards
from casemate.host.files import replace_file
from casemate.host.room import namespaces
from casemate.model.uplinks import CARD

log = logging.getLogger(__name__)

SUFFIX = ".card"
HOLDER = "CASEMATE_HOLDS"
"""Variable of the process that holds the room for a card: the path of the card's record. The process is found by it, so
none is left of a daemon that was killed just after it started one."""


@dataclass(frozen=True, slots=True)
class CardRecord:
    """A card that a qube has, or is about to have."""

    qube: str
    kind: str
    """``card`` or ``shared``."""
    card: str
    """Its name on this host."""
    interface: str
    """What stands in the room: the card itself, or the interface that shares it."""
    address: str
    """MAC address of what stands in the room."""
    room: int
    """The number of the room's network namespace."""
    up: bool
    """Whether this host used the card before."""

    @property
    def moved(self) -> bool:
        """Whether the card itself is in the room."""
        return self.kind == CARD

    def undo(self) -> str | None:
        """Give a moved card back, or remove the interface of a shared one; the name of a card that is back, None when
        there is none. Done twice it does nothing more. Changes the thread's namespace. CardError."""
        found = namespaces.find(self.room)
        try:
            if self.moved:
                return cards.give_back(self.card, self.address, None if found is None else found.net, self.up)
            if found is not None:
                cards.remove(self.interface, self.address, found.net)
            return None
        finally:
            if found is not None:
                found.close()


def path_of(run: Path, qube: str) -> Path:
    """Where the record of a qube's card is."""
    return run / "qubes" / f"{qube}{SUFFIX}"


def write(run: Path, record: CardRecord) -> None:
    """Write a record: after this the card may be touched. OSError, and it may not."""
    replace_file(path_of(run, record.qube), json.dumps(asdict(record)).encode() + b"\n", mode=0o600)


def read(run: Path, qube: str) -> CardRecord | None:
    """The record of a qube's card; None where it has none."""
    try:
        return CardRecord(**json.loads(path_of(run, qube).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def read_all(run: Path) -> Iterator[CardRecord]:
    """All records."""
    for path in sorted((run / "qubes").glob(f"*{SUFFIX}")):
        record = read(run, path.name.removesuffix(SUFFIX))
        if record is not None:
            yield record


def forget(run: Path, qube: str) -> None:
    """Remove a record: the card is back."""
    path_of(run, qube).unlink(missing_ok=True)


def holders(run: Path, qube: str) -> list[int]:
    """Descriptors (pidfd) of the processes that hold the room for the qube's card; the caller closes them."""
    mark = b"\0%s=%s\0" % (HOLDER.encode(), os.fsencode(path_of(run, qube)))
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            pidfd = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        try:
            # Read after the pidfd was opened, so it is that process that is killed by it.
            if mark in b"\0" + (entry / "environ").read_bytes() + b"\0":
                found.append(pidfd)
                continue
        except OSError:
            pass  # it has ended, or is not ours to look at
        os.close(pidfd)
    return found


def let_go(run: Path, qube: str) -> None:
    """End what holds the room for the qube's card. Nothing depends on when it is gone."""
    for pidfd in holders(run, qube):
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.close(pidfd)


def undo_all(run: Path) -> None:
    """Take every card back that a record knows; for who removes a state. Each in a child, for its namespace's sake."""
    for record in list(read_all(run)):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                record.undo()
                status = 0
            finally:
                os._exit(status)
        _pid, ended = os.waitpid(pid, 0)
        if ended == 0:
            let_go(run, record.qube)
            forget(run, record.qube)
        else:
            log.error("%s of %s could not be taken back", record.card, record.qube)
