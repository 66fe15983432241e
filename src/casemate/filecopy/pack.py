"""Sends files over a call of qubes.Filecopy and waits until the receiver has confirmed all of them."""

from __future__ import annotations

import os
import stat
import time
import zlib

from casemate.streams.loop import Loop
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import Handler
from casemate.wire import call_data, qfile, qrexec
from casemate.wire.errors import CasemateError, DisconnectedError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

BUFFER = 4 * qrexec.MAX_CHUNK
"""Records and contents are gathered up to so many bytes; those are summed and sent at once."""
PATIENCE = 600.0
"""Limit of file copy (seconds): sender: time without a sign of the receiver."""
MAX_STDERR = 4096

_REASONS = {
    qfile.EEXIST: "it exists there already",
    qfile.EILSEQ: "its name is not taken there",
    qfile.EINVAL: "this type of file is not taken there",
    qfile.ENOLINK: "a link that leads out of what is copied is not taken there",
    qfile.EDQUOT: "that is more than is taken there",
    qfile.EREMOTEIO: "the stream was cut",
    qfile.SENDER_GONE: "the stream was cut",
}


class CopyError(CasemateError):
    """The files were not copied, or not all of them."""


class _Answered(Exception):
    """The receiver has answered before everything was sent."""


class Copy(Handler):
    """One copy of files or directories. ``progress`` is called with the bytes sent so far now and then."""

    def __init__(
        self,
        sock: socket.socket,
        paths: Sequence[str],
        progress: Callable[[int], None] = lambda _sent: None,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._loop = Loop()
        # The receiver closes its end after its answer, which is still to be read then.
        self._stream = SocketStream(self._loop, sock, self, drain=True)
        self._paths = paths
        self._progress = progress
        self._warn = warn
        self._side = call_data.CallerSide()
        self._result = qfile.ResultReader()
        self._stderr = b""
        self._ended = False
        self._batch = memoryview(bytearray(BUFFER))
        self._filled = 0
        self._crc = 0
        self._sent: set[bytes] = set()
        self._bytes = 0

    def run(self) -> None:
        """Send everything; returns when the receiver has confirmed it, else CopyError."""
        try:
            for path in self._paths:
                self._object(os.path.abspath(path), os.fsencode(os.path.basename(os.path.abspath(path))))
            self._record(qfile.END)
            self._flush()
            self._stream.writev(self._side.stdin_eof())
        except _Answered:
            pass
        self._confirm()

    # -- what is sent

    def _object(self, path: str, name: bytes) -> None:
        status = os.lstat(path)
        if name.count(b"/") >= qfile.MAX_DEPTH:
            raise CopyError(f"{printable(path)}: more than {qfile.MAX_DEPTH} directories deep")
        if stat.S_ISDIR(status.st_mode):
            self._directory(path, name, status)
        elif stat.S_ISLNK(status.st_mode):
            target = os.fsencode(os.readlink(path))
            self._sent.add(name)
            self._record(
                qfile.build_header(name, status.st_mode, len(target), status.st_atime_ns, status.st_mtime_ns) + target
            )
        elif stat.S_ISREG(status.st_mode):
            self._file(path, name)
        else:
            self._warn(f"{printable(path)}: not a file, directory or link; left out")

    def _directory(self, path: str, name: bytes, status: os.stat_result) -> None:
        header = qfile.build_header(name, status.st_mode, 0, status.st_atime_ns, status.st_mtime_ns)
        self._sent.add(name)
        self._record(header)
        with os.scandir(path) as found:
            # Whether it is a file the directory knows: no lstat for the many. What is not sure goes the long way.
            entries = sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in found)
        shallow = name.count(b"/") + 1 < qfile.MAX_DEPTH
        for entry, plain in entries:
            take = self._file if plain and shallow else self._object
            take(f"{path}/{entry}", name + b"/" + os.fsencode(entry))
        self._record(header)

    def _file(self, path: str, name: bytes) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            left = status.st_size
            header = qfile.build_header(name, status.st_mode, left, status.st_atime_ns, status.st_mtime_ns)
            self._sent.add(name)
            self._record(header)
            while left:
                if self._filled == BUFFER:
                    self._flush()
                count = os.readv(fd, [self._batch[self._filled : min(self._filled + left, BUFFER)]])
                if count == 0:
                    raise CopyError(f"{printable(path)}: it became shorter while it was read; nothing was confirmed")
                left -= count
                self._filled += count
        finally:
            os.close(fd)

    def _record(self, data: bytes) -> None:
        if self._filled + len(data) > BUFFER:
            self._flush()
        end = self._filled + len(data)
        self._batch[self._filled : end] = data
        self._filled = end

    def _flush(self) -> None:
        if self._filled:
            batch = self._batch[: self._filled]
            self._crc = zlib.crc32(batch, self._crc)
            self._send(self._side.stdin(batch))
            self._filled = 0

    def _send(self, pieces: list[bytes | memoryview]) -> None:
        """Send messages (a header and its bytes, by turns), each when the one before has gone."""
        self._loop.once(0)
        for at in range(0, len(pieces), 2):
            self._wait(lambda: not self._stream.pending, "has taken nothing")
            self._stream.writev(pieces[at : at + 2])
            self._bytes += sum(map(len, pieces[at : at + 2]))
        self._progress(self._bytes)

    # -- what comes back

    def _wait(self, done: Callable[[], bool], failing: str) -> None:
        """Serve the stream until ``done``; CopyError when nothing moves, _Answered when the receiver is through."""
        deadline, left = time.monotonic() + PATIENCE, self._stream.pending
        while True:
            if self._ended or self._result.get(False) is not None:
                raise _Answered
            if done():
                return
            self._loop.once(max(0.0, deadline - time.monotonic()))
            now = time.monotonic()
            if self._stream.pending != left:
                deadline, left = now + PATIENCE, self._stream.pending
            elif now >= deadline:
                raise CopyError(f"The receiver {failing} for {PATIENCE:g} seconds")

    def on_data(self, data: memoryview) -> None:
        for kind, view in self._side.feed(data):
            if kind == qrexec.DATA_STDOUT:
                self._result.feed(view)
            elif kind == qrexec.DATA_STDERR:
                self._stderr = (self._stderr + bytes(view))[:MAX_STDERR]
            elif kind == qrexec.DATA_EXIT_CODE:
                self._ended = True

    def on_eof(self) -> None:
        self._ended = True

    def on_abort(self, why: str) -> None:
        self._ended = True

    def _confirm(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._ended:
            if time.monotonic() >= deadline:
                raise CopyError(f"The receiver has not confirmed anything for {PATIENCE:g} seconds")
            self._loop.once(max(0.0, deadline - time.monotonic()))
        result, status = self._result.get(True), self._side.exit_code
        if result is None:
            raise self._without_result(status)
        if result.code != qfile.OK:
            raise CopyError(self._reason(result))
        if result.crc != self._crc:
            raise CopyError("The checksum of what arrived is not that of what was sent")
        if status != 0:
            raise CopyError(f"The receiver ended with status {status}")

    def _without_result(self, status: int | None) -> CasemateError:
        said = self._stderr.translate(call_data.VISIBLE).decode("ascii").strip()
        detail = f": {printable(said)}" if said else ""
        if status is None:
            return DisconnectedError("The receiver went away before it had confirmed anything" + detail)
        if status == qrexec.EXIT_NO_SERVICE:
            return CopyError("The target does not take files (it has no qubes.Filecopy)" + detail)
        return CopyError(f"The receiver ended with status {status} and without a result" + detail)

    def _reason(self, result: qfile.Result) -> str:
        why = _REASONS.get(result.code)
        if why is None:
            why = os.strerror(result.code) if 0 < result.code < 256 else f"error {result.code}"
        if result.last_name in self._sent:
            return f'"{qfile.shown(result.last_name)}" was not taken: {why}'
        return f"The copy was not taken: {why}"


def check_paths(paths: Sequence[str]) -> None:
    """CopyError for what cannot be sent, before anything is asked of anybody."""
    seen: dict[str, str] = {}
    for path in paths:
        if not path:
            # An empty variable in a script. abspath makes it the current directory, and all of that would be sent.
            raise CopyError("the name of a file is empty")
        whole = os.path.abspath(path)
        name = os.path.basename(whole)
        try:
            mode = os.lstat(whole).st_mode
        except OSError as error:
            raise CopyError(f"{printable(path)}: {error.strerror}") from error
        if not name:
            raise CopyError(f"{printable(path)}: it has no name to be sent under")
        if stat.S_ISLNK(mode):
            raise CopyError(f"{printable(path)}: a link cannot be sent by itself")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise CopyError(f"{printable(path)}: neither a file nor a directory")
        if name in seen:
            raise CopyError(f"{printable(seen[name])} and {printable(path)} would arrive under the same name")
        seen[name] = path


def send_files(
    sock: socket.socket,
    paths: Sequence[str],
    progress: Callable[[int], None] = lambda _sent: None,
    warn: Callable[[str], None] = lambda _text: None,
) -> None:
    """Copy files over an accepted call, which is closed; returns only when all were confirmed."""
    try:
        Copy(sock, paths, progress, warn).run()
    except OSError as error:
        raise CopyError(f"{printable(str(error.filename or 'copy'))}: {error.strerror}") from error
    except qfile.FileError as error:
        raise CopyError(str(error)) from error
    finally:
        sock.close()


class Progress:
    """Shows on a terminal how much has been sent; silent elsewhere."""

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd if fd >= 0 and os.isatty(fd) else -1
        self._next = 0.0

    def __call__(self, sent: int) -> None:
        """So many bytes were sent."""
        now = time.monotonic()
        if self._fd >= 0 and now >= self._next:
            self._next = now + 0.2
            os.write(self._fd, f"\rsent {sent // 1024} KiB".encode())

    def end(self) -> None:
        """Leave the line."""
        if self._fd >= 0 and self._next:
            os.write(self._fd, b"\n")


def remove_sent(paths: Sequence[str]) -> None:
    """Remove what was copied and confirmed; CopyError when something stays."""
    for path in paths:
        try:
            _remove(path)
        except OSError as error:
            raise CopyError(
                f"{printable(str(error.filename or path))} was copied and cannot be removed: {error.strerror}"
            ) from error


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for entry in os.listdir(path):
            _remove(f"{path}/{entry}")
        os.rmdir(path)
    else:
        os.unlink(path)
