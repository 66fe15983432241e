"""Lists of warm images and snapshots: what one side writes the other reads, and later words do no harm."""

from __future__ import annotations

from casemate.wire.images import ListedImage, Snapshot, build_lines, parse_lines

IMAGES = [ListedImage("00ff", "dvm", 1, 2, 3 << 20), ListedImage("1f", "other", 4, 5, 0)]
SNAPSHOTS = [Snapshot("ready", "work", "dvm", 1, 3 << 20)]


def test_what_is_written_is_read() -> None:
    assert parse_lines(ListedImage, build_lines(IMAGES)) == IMAGES
    assert parse_lines(Snapshot, build_lines(SNAPSHOTS)) == SNAPSHOTS
    assert build_lines(SNAPSHOTS) == "ready qube=work base=dvm made=1 bytes=3145728\n"
    assert build_lines(IMAGES).startswith("00ff template=dvm made=1 used=2 bytes=3145728\n1f ")
    assert build_lines([]) == "" and parse_lines(Snapshot, "") == []


def test_words_of_a_later_version_are_passed_over() -> None:
    assert parse_lines(Snapshot, "ready later=x qube=work made=1 base=dvm bytes=3145728\n") == SNAPSHOTS
