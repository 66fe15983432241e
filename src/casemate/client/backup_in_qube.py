"""Reads a backup that a qube keeps, by its service ``qubes.Restore`` or another that answers in the same way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

from casemate.backup.outer import Member
from casemate.backup.qfile_source import QfileSource
from casemate.client.transport import python_path
from casemate.wire.errors import CasemateError, printable

SERVICE = "qubes.Restore"
_TOOL = (sys.executable, "-P", "-m", "casemate.cli", "qvm-run", "--pass-io", "--no-gui", "--service", "--")
_END_SECONDS = 30.0
"""How long the qube may take to end after our answer; then the call is hung up."""
_SAID = 16384


class QubeBackupError(CasemateError):
    """The qube could not give the backup."""


@contextlib.contextmanager
def backup_in_qube(qube: str, place: str, is_service: bool = False) -> Iterator[Iterator[Member]]:
    """The members of a backup: ``place`` is its file in the qube, or a command that writes it.

    With ``is_service`` it is a service that knows the place, such as ``qubes.RestoreById+ID``.

    What the qube says on its standard error is told, when it fails. However the reading ends, the qube hears of it and
    its service ends.
    """
    if "\n" in place or not place:
        raise QubeBackupError("The place of a backup in a qube must be one line")
    service, begin = (place, "\n") if is_service else (SERVICE, f"{place}\n\n")
    process = subprocess.Popen(
        [*_TOOL, qube, service], env={**os.environ, "PYTHONPATH": python_path()}, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    said: list[bytes] = []
    listener = threading.Thread(target=lambda: said.append(process.stderr.read(_SAID)), daemon=True)  # type: ignore[union-attr]
    listener.start()
    source = QfileSource(process.stdout, lambda data: os.write(process.stdin.fileno(), data))  # type: ignore[union-attr]
    try:
        with contextlib.suppress(BrokenPipeError):  # it has failed already; its status and words tell
            os.write(process.stdin.fileno(), begin.encode("utf-8", "surrogateescape"))
        failed: CasemateError | None = None
        try:
            yield source.members()
        except CasemateError as error:
            failed = error
        source.answer()
        # Our answer and its end travel; and whatever the sender still has to say, nobody takes it any more: else it
        # could wait for a reader and we for its end.
        process.stdin.close()
        process.stdout.close()
        status = _ended(process, listener)
        if failed is not None and status and not source.began:
            why = printable(b"".join(said).decode("utf-8", "replace").strip(), 400) or str(failed)
            raise QubeBackupError(f"{qube} does not give the backup: {why}") from None
        if failed is not None:
            raise failed
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _ended(process: subprocess.Popen[bytes], listener: threading.Thread) -> int:
    """Its exit status; 0 when it has to be ended by us."""
    try:
        status = process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return 0
    listener.join(_END_SECONDS)
    return status
