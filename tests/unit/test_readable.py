"""Waiting for descriptors of any number."""

from __future__ import annotations

import fcntl
import os
import resource
import time

from casemate.streams.ready import readable

HIGH = 2000
"""Above what select(2) can wait for."""


def test_any_descriptor_can_be_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 1), hard))
    reading, writing = os.pipe()
    high = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, HIGH)
    try:
        assert high >= HIGH and readable([high], 0) == []
        os.write(writing, b"x")
        assert readable([high]) == [high]
    finally:
        for fd in (reading, writing, high):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_end_can_be_read_and_a_limit_holds() -> None:
    reading, writing = os.pipe()
    other, quiet = os.pipe()
    with open(reading, "rb") as file:
        begin = time.monotonic()
        assert readable([file, other], 0.05) == []
        assert time.monotonic() - begin >= 0.05
        os.close(writing)
        assert readable([file, other], 10) == [file]
    for fd in (other, quiet):
        os.close(fd)
