"""Standard input, output and error that are closed or full: mended before a tool begins, told of when it ends.

A tool that is started with a closed descriptor (``qvm-ls >&-``) must not get the first socket that it opens under that
number: what it writes would go to the daemon. So each of the three is there from the beginning, as one that cannot be
read (input) or written (output): whoever uses it gets an error, and what is lost is not lost in silence. What would
go to a closed standard error is thrown away, as whoever closed it has asked.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

LOST = 74
"""Exit status when what a tool had to say could not be written (EX_IOERR of sysexits.h)."""

CLOSED: set[int] = set()
"""Which of 0, 1 and 2 were closed when the tool was started."""


def mend() -> None:
    """Open what is closed. Does nothing where all three are open."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            CLOSED.add(fd)
            _open(fd)
    if 0 in CLOSED:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the tool runs, as the next two
    if 1 in CLOSED:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if 2 in CLOSED:
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115


def _open(fd: int) -> None:
    """Make ``fd`` a descriptor that its use fails on (2: that takes everything)."""
    if fd == 2:
        found = os.open(os.devnull, os.O_WRONLY)
    else:
        # A file without a name, opened the wrong way round. Not /dev/null: a tool that opens its output anew, for a
        # mode of its own (calls/caller.py), would get one that takes everything.
        file = os.memfd_create("closed")
        found = os.open(f"/proc/self/fd/{file}", os.O_WRONLY if fd == 0 else os.O_RDONLY)
        os.close(file)
    if found != fd:
        os.dup2(found, fd)
        os.close(found)
    os.set_inheritable(fd, True)


def finish(prog: str, status: int) -> int:
    """Write what is left; the exit status, which is LOST where that fails and the tool had no other complaint."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard()
        status = status or 141
    except OSError as error:
        discard()
        complain(prog, error)
        status = status or LOST
    try:
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)  # messages alone are lost; the status says the same
    return status


def complain(prog: str, error: OSError) -> None:
    """Say that standard output, or a file that the error names, failed; nothing where that cannot be said either."""
    what = error.filename if error.filename is not None else "standard output"
    why = "it is closed" if error.filename is None and 1 in CLOSED else error.strerror
    try:
        sys.stderr.write(f"{prog}: error: {what}: {why}\n")
    except OSError:
        pass


def discard(stream: TextIO | None = None) -> None:
    """Let what is still in the buffer of a stream (None: standard output) go nowhere: Python writes it when it ends,
    and complains in words of its own where it cannot."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, (stream or sys.stdout).fileno())
    os.close(null)
