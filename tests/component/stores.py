"""A store of a few qubes for tests that damage it: one change, and what a sound store looks like."""

from __future__ import annotations

import random
from pathlib import Path

from casemate.model import invariants
from casemate.store import reader
from casemate.store.store import Store


def whole(path: Path) -> dict[str, str]:
    """What a good store must be: whole, valid, its lock free, nothing piled up. Its features."""
    system = reader.read(path.read_bytes(), str(path))
    assert invariants.problems(system) == [] and len(system.domains) == 6
    features = dict(system.admin.features)
    assert features.get("n", "0") == features.get("n.twin", "0")
    with Store(path).write(20) as transaction:  # LockTimeoutError where a killed process left its lock
        transaction.system.admin.features["after"] = str(random.random())
    left = {p.name for p in path.parent.iterdir()} - {"qubes.xml", "qubes.xml.1", "qubes.xml.lock",
                                                      "qubes.xml.lock.gate", "qubes.xml.history", "log"}  # fmt: skip
    assert not left, f"piled up: {left}"
    return features


def bump(store: Store) -> None:
    with store.write() as transaction:
        features = transaction.system.admin.features
        value = str(int(features.get("n", "0")) + 1)
        features["n"] = features["n.twin"] = value
