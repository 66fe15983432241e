"""Files of a qube beside the collection: a damaged one is an error, never what an absent one means."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from casemate.engine.qube_files import MAX_FIREWALL, MAX_NOTES, QubeFiles
from casemate.wire.errors import NotesError, StoreError
from casemate.wire.firewall import ALLOW_ALL
from tests.builders import uuid

DROP = {"action": "drop", "proto": "tcp"}


def test_rules_come_back_and_expire(tmp_path: Path) -> None:
    files = QubeFiles(tmp_path)
    assert files.rules(uuid(1)) == [dict(ALLOW_ALL)] and not files.has_rules(uuid(1))
    now = int(time.time())
    old, later = ({**DROP, "expire": str(now + seconds)} for seconds in (-10, 1000))
    files.set_rules(uuid(1), [DROP, old, later])
    assert files.rules(uuid(1)) == [DROP, later] and files.has_rules(uuid(1))
    assert files.rules(uuid(2)) == [dict(ALLOW_ALL)], "rules are of one qube"
    files.rules(uuid(1))[0]["action"] = "accept"
    assert files.rules(uuid(1)) == [DROP, later], "nobody changes what others get"
    QubeFiles(tmp_path).set_rules(uuid(1), [later])
    assert files.rules(uuid(1)) == [later], "somebody else replaced them"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"<firewall",
        b"\0" * 100,
        b"<firewall version='2'><rules><rule><properties><property name='action'>perhaps</property></properties></rule>"
        b"</rules></firewall>",
        b"<!DOCTYPE f [<!ENTITY x 'accept'>]><firewall><rules><rule><properties><property name='action'>&x;</property>"
        b"</properties></rule></rules></firewall>",
        b"x" * (MAX_FIREWALL + 1),
    ],
    ids=["empty", "cut", "zeros", "no such action", "entity", "too long"],
)
def test_a_damaged_firewall_file_is_no_hole_in_the_wall(tmp_path: Path, damage: bytes) -> None:
    files = QubeFiles(tmp_path)
    files.set_rules(uuid(1), [DROP])
    path = tmp_path / str(uuid(1)) / "firewall.xml"
    path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"firewall\.xml"):
        files.rules(uuid(1))


def test_a_file_that_is_too_long_is_not_cut(tmp_path: Path) -> None:
    """What is shown would be saved again without its end."""
    files = QubeFiles(tmp_path)
    files.set_notes(uuid(1), "x" * MAX_NOTES)
    assert len(files.notes(uuid(1))) == MAX_NOTES
    with open(tmp_path / str(uuid(1)) / "notes.txt", "a") as file:
        file.write("x")
    with pytest.raises(NotesError, match=f"longer than {MAX_NOTES}"):
        files.notes(uuid(1))
