"""Reads a backup that a qube keeps, by its service ``qubes.Restore`` or another that answers in the same way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

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
    with _sender(qube, place, is_service) as process:
        source = QfileSource(process.read, process.answer)
        with process.told(lambda: source.began):
            try:
                yield source.members()
            finally:
                source.answer()


@contextlib.contextmanager
def bytes_in_qube(qube: str, place: str, is_service: bool = False) -> Iterator[Callable[[int], bytes]]:
    """The same backup as the stream that the qube sends, for a reader elsewhere.

    The qube gets no answer, since that would come from this reader, which is not trusted: it sees its output closed.
    """
    began = False

    def read(most: int) -> bytes:
        nonlocal began
        data = process.read.read(most)
        began = began or bool(data)
        return data

    with _sender(qube, place, is_service) as process, process.told(lambda: began):
        yield read


class _Sender:
    """The call whose service sends."""

    def __init__(self, qube: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._qube = qube
        self._process = process
        self._input = process.stdin
        self.read = process.stdout
        self._said: list[bytes] = []
        errors = process.stderr
        self._listener = threading.Thread(target=lambda: self._said.append(errors.read(_SAID)), daemon=True)
        self._listener.start()

    def answer(self, data: bytes) -> None:
        """Write to the service."""
        os.write(self._input.fileno(), data)

    @contextlib.contextmanager
    def told(self, began: Callable[[], bool]) -> Iterator[None]:
        """While the block reads. An error of it is the qube's where the qube failed before anything ``began`` to
        come."""
        failed: CasemateError | None = None
        try:
            yield
        except CasemateError as error:
            failed = error
        # Our answer and its end travel; and whatever the sender still has to say, nobody takes it any more: else it
        # could wait for a reader and we for its end.
        self._input.close()
        self.read.close()
        status = self._ended()
        if failed is not None and status and not began():
            why = printable(b"".join(self._said).decode("utf-8", "replace").strip(), 400) or str(failed)
            raise QubeBackupError(f"{self._qube} does not give the backup: {why}") from None
        if failed is not None:
            raise failed

    def _ended(self) -> int:
        """Its exit status; 0 when it has to be ended by us."""
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return 0
        self._listener.join(_END_SECONDS)
        return status


@contextlib.contextmanager
def _sender(qube: str, place: str, is_service: bool) -> Iterator[_Sender]:
    """Call the service, and tell it the place; whatever happens, it has ended after the block."""
    if "\n" in place or not place:
        raise QubeBackupError("The place of a backup in a qube must be one line")
    service, begin = (place, "\n") if is_service else (SERVICE, f"{place}\n\n")
    process = subprocess.Popen(
        [*_TOOL, qube, service], env={**os.environ, "PYTHONPATH": python_path()}, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        sender = _Sender(qube, process)
        with contextlib.suppress(BrokenPipeError):  # it has failed already; its status and words tell
            sender.answer(begin.encode("utf-8", "surrogateescape"))
        yield sender
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
