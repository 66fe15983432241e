"""Damage and history: a damaged file is refused and kept, and an earlier save takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.store import reader
from casemate.store.store import Store
from casemate.wire.errors import StoreError
from tests.builders import small_system
from tests.component.laws.processes import features, run
from tests.component.stores import bump, whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a few qubes."""
    path = tmp_path / "qubes.xml"
    Store(path).begin_with(small_system())
    return path


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a block of zeros": lambda data: data[:512] + bytes(512) + data[1024:],
    "a wrong reference": lambda data: data.replace(b'name="template">deb', b'name="template">dab', 1),
    "a newer version": lambda data: data.replace(b'casemate-format="1"', b'casemate-format="2"', 1),
    "another document": lambda data: b"<html/>",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused_never_overwritten_and_can_be_restored(path: Path, kind: str) -> None:
    store = Store(path)
    bump(store)
    good = path.read_bytes()
    damaged = DAMAGE[kind](good)
    path.write_bytes(damaged)
    for one in (store, Store(path)):
        with pytest.raises(
            StoreError, match="newer Casemate" if kind == "a newer version" else r"qubes\.xml"
        ) as caught:
            one.snapshot()
        if damaged.startswith(b"<?xml"):
            assert str(caught.value).removeprefix(f"{path}:").split(":")[0].isdecimal(), "the line is named"
        with pytest.raises(StoreError), one.write():
            raise AssertionError("entered")
    checked = run(path, "check")
    assert checked.returncode == 1 and (checked.stdout + checked.stderr).count(b"qubes.xml") >= 1
    assert run(path, "set", "a", "b").returncode == 1 and path.read_bytes() == damaged
    history = run(path, "history").stdout.decode()
    assert "qubes.xml.1" in history and "6 qubes" in history
    restored = run(path, "restore", "qubes.xml.1")
    assert restored.returncode == 0 and b"damaged" in restored.stdout
    aside = next(path.parent.glob("qubes.xml.damaged-*"))
    assert aside.read_bytes() == damaged
    aside.unlink()
    system = reader.read(path.read_bytes())
    assert len(system.domains) == 6 and system.generation > reader.read(good).generation - 1
    assert "n" not in store.snapshot().admin.features, "the save before the last one"
    assert run(path, "check").returncode == 0
    whole(path)


def test_a_missing_file_is_not_made_anew_over_a_history(path: Path) -> None:
    bump(Store(path))
    path.unlink()
    with pytest.raises(StoreError, match="casemate store restore"):
        Store(path).snapshot()
    assert run(path, "restore").returncode == 0
    whole(path)


def test_copies_are_kept_by_the_hour_and_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from casemate.store import history

    now = time.time()
    store = Store(path)
    for hours in range(30):
        monkeypatch.setattr(history.time, "time", lambda hours=hours: now + hours * 3700)
        bump(store)
        bump(store)
    kept = [copy for copy in store.copies() if copy.name != "qubes.xml.1"]
    assert len(kept) == history.COPIES and not any(copy.problem for copy in kept)
    assert run(path, "restore", kept[-1].name).returncode == 0
    assert features(path)["n"] == str(2 * 29 - 2 * (len(kept) - 1) + 2 - 2)
    assert run(path, "restore", "../../etc/passwd").returncode == 1
