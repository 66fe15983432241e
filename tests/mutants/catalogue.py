"""All mutants, by their ids, and which of them no longer fit the code."""

from __future__ import annotations

from pathlib import Path

from tests.mutants import (
    cards,
    engine,
    host,
    link,
    network,
    packages,
    qrexec,
    storage,
    store,
    streams,
    tools,
    warm,
    web,
    web_host,
)
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]

ALL = tuple(
    mutant
    for area in (
        cards,
        engine,
        host,
        link,
        network,
        packages,
        qrexec,
        storage,
        store,
        streams,
        tools,
        warm,
        web,
        web_host,
    )
    for mutant in area.MUTANTS
)


def by_id() -> dict[str, Mutant]:
    """All mutants; ValueError where two have one id."""
    found = {mutant.id: mutant for mutant in ALL}
    if len(found) != len(ALL):
        raise ValueError("two mutants have the same id")
    return found


def stale(mutant: Mutant, root: Path = ROOT) -> str:
    """Why a mutant cannot be applied to the tree below ``root``; empty when it can."""
    path = root / mutant.file
    if not path.is_file():
        return f"there is no {mutant.file}"
    count = path.read_text().count(mutant.old)
    if count != 1:
        return f"its old text occurs {count} times in {mutant.file}"
    missing = [test for test in mutant.tests if not (root / test.partition("::")[0]).is_file()]
    return f"there is no {missing[0].partition('::')[0]}" if missing else ""
