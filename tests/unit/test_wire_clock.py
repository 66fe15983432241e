"""The text in which the time travels, and which times a clock is not set to."""

from __future__ import annotations

import subprocess
import time

import pytest

from casemate.wire.clock import EARLIEST, MAX_STEP, ClockError, check_step, format_date, parse_date
from casemate.wire.errors import ProtocolError

NOW = 1_800_000_000_123_456_789


def test_a_time_is_the_same_after_its_way_as_text() -> None:
    assert format_date(NOW, True) == "2027-01-15T08:00:00,123456789+00:00\n"
    assert parse_date(format_date(NOW, True).encode()) == NOW
    assert parse_date(format_date(NOW, False).encode()) == NOW // 10**9 * 10**9
    for precision in ("seconds", "ns"):
        said = subprocess.run(["date", "-u", f"-I{precision}"], env={"LC_ALL": "C"}, capture_output=True, check=True)
        assert abs(parse_date(said.stdout) - time.time_ns()) < 60 * 10**9


@pytest.mark.parametrize(
    "untrusted",
    [
        b"", b"\n", b"now\n", b"2027-01-15\n", b"2027-01-15T08:00:00+00:00", b"2027-01-15T08:00:00+01:00\n",
        b"2027-01-15T08:00:00Z\n", b"2027-02-30T08:00:00+00:00\n", b"2027-13-01T08:00:00+00:00\n",
        b"2027-01-15T24:00:00+00:00\n", b"2027-01-15T08:00:60+00:00\n", b"2027-01-15T08:00:00,123+00:00\n",
        b"2027-01-15T08:00:00+00:00\n2027-01-15T08:00:00+00:00\n", b" 2027-01-15T08:00:00+00:00\n",
        "2027-01-15T08:00:0\N{ARABIC-INDIC DIGIT ONE}+00:00\n".encode(), b"0000-00-00T00:00:00+00:00\n",
    ],
)  # fmt: skip
def test_what_is_no_date_is_refused(untrusted: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a date"):
        parse_date(untrusted)


def test_a_step_of_more_than_a_day_needs_force_and_the_past_is_never_right() -> None:
    day = MAX_STEP * 10**9
    for step in (0, day, -day):
        check_step(NOW, NOW + step)
    for step in (day + 1, -day - 1):
        with pytest.raises(ClockError, match=r"2027-01-15T08:00:00\+00:00 to 2027-01-1[46].*--force"):
            check_step(NOW, NOW + step)
        check_step(NOW, NOW + step, force=True)
    for force in (False, True):
        with pytest.raises(ClockError, match="is not the time"):
            check_step(EARLIEST * 10**9, EARLIEST * 10**9 - 1, force)
