"""Menus of a hostile qube: what is kept is what may be shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.wire.errors import ProtocolError
from casemate.wire.menus import MAX_ENTRIES, MAX_TEXT, build_lines, parse_lines, parse_menus


def test_what_is_kept() -> None:
    data = (
        b"/usr/share/applications/a.desktop:Name=Editor\n"
        b"/usr/share/applications/a.desktop:Exec=rm -rf /\n"
        b"/usr/share/applications/a.desktop:Icon=edit-it\n"
        b"/usr/share/applications/a.desktop:Name=Second\n"
        b"/b.desktop:Name=\x1b[2Jx\n"
        b"/b.desktop:Icon=../../etc/passwd\n"
        b"/b.desktop:Comment=Tab\there\n"
        b"/..desktop:Name=x\n/-rf.desktop:Name=x\n/a b.desktop:Name=x\nno colon\n:=\n"
    )
    assert [tuple(entry) for entry in parse_menus(data)] == [
        ("a", "Editor", "", "edit-it", ""),
        ("b", "b", "", "", ""),
    ]


def test_bounds() -> None:
    with pytest.raises(ProtocolError):
        parse_menus(b"x" * (MAX_TEXT + 1))
    lines = b"".join(b"/e%d.desktop:Name=x\n" % i for i in range(MAX_ENTRIES))
    assert len(parse_menus(lines)) == MAX_ENTRIES
    with pytest.raises(ProtocolError):
        parse_menus(lines + b"/more.desktop:Name=x\n")
    big = b"".join(b"/a.desktop:K%d=%s\n" % (i, b"v" * 100) for i in range(300))
    assert [entry.ident for entry in parse_menus(big + b"/b.desktop:Name=B\n")] == ["b"]


@given(
    st.lists(st.tuples(st.binary(max_size=12), st.sampled_from([b"Name", b"Icon", b"Comment"]), st.binary(max_size=40)))
)
def test_lines_survive_whatever_was_said(said: list[tuple[bytes, bytes, bytes]]) -> None:
    found = parse_menus(b"".join(b"/" + name + b".desktop:" + key + b"=" + value + b"\n" for name, key, value in said))
    text = build_lines(found)
    assert text.isascii() and parse_lines(text) == found
    assert all(c.isprintable() or c in "\t\n" for c in text)
