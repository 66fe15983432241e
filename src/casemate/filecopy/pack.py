"""Sends files over a call of qubes.Filecopy and waits until the receiver has confirmed all of them."""

from __future__ import annotations

import errno
import os
import stat
import time
import zlib

from casemate.calls.caller import SILENCE_SECONDS
from casemate.filecopy.directories import Found, walk
from casemate.streams.loop import Loop
from casemate.streams.socket_stream import SocketStream
from casemate.streams.stream import Handler
from casemate.wire import call_data, qfile, qrexec
from casemate.wire.errors import CasemateError, DisconnectedError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from casemate.calls.caller import OnSilence

BUFFER = 4 * qrexec.MAX_CHUNK
"""Records and contents are gathered up to so many bytes; those are summed and sent at once."""
PATIENCE = 600.0
"""Limit of file copy (seconds): sender: time without a sign of the receiver."""
MAX_STDERR = 4096
ALL_NAMES = "allow-all-names"
"""Argument of qubes.Filecopy by which a sender asks for all names to be taken; the policy decides about it."""
ALL_NAMES_HINT = (
    f"Such names are taken where the policy allows the call qubes.Filecopy+{ALL_NAMES} "
    f"(a line: qubes.Filecopy +{ALL_NAMES} SOURCE TARGET allow)"
)

_REASONS = {
    qfile.EEXIST: "it exists there already",
    qfile.EILSEQ: "its name has characters that the receiver refuses",
    qfile.EINVAL: "the receiver refuses this type of file",
    qfile.ENOLINK: "the receiver refuses a link that leads out of what is copied",
    qfile.EDQUOT: "a limit of the receiver is exceeded",
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
        ignore_links: bool = False,
        on_silence: OnSilence | None = None,
    ) -> None:
        self._loop = Loop()
        self._on_silence = on_silence
        self._moved_at = time.monotonic()
        if on_silence is not None:
            self._loop.later(SILENCE_SECONDS, self._look)
        # The receiver closes its end after its answer, which is still to be read then.
        self._stream = SocketStream(self._loop, sock, self, drain=True)
        self._paths = paths
        self._progress = progress
        self._warn = warn
        self._ignore_links = ignore_links
        self._side = call_data.CallerSide()
        self._result = qfile.ResultReader()
        self._stderr = b""
        self._ended = False
        self._batch = memoryview(bytearray(BUFFER))
        self._filled = 0
        self._crc = 0
        self._tops: list[tuple[bytes, str]] = []
        """Name of each tree that was begun, as it is sent, and where it is."""
        self._bytes = 0

    def run(self) -> None:
        """Send everything; returns when the receiver has confirmed it, else CopyError."""
        try:
            for path in self._paths:
                self._tops.append((os.fsencode(os.path.basename(os.path.abspath(path))), path))
                self._tree(path)
            self._record(qfile.END)
            self._flush()
            self._stream.writev(self._side.stdin_eof())
        except _Answered:
            pass
        self._confirm()

    # -- what is sent

    def _tree(self, path: str) -> None:
        headers: list[bytes] = []  # of the directories that are being sent: each is sent again after what is in it
        for found in walk(path):
            if found.end:
                self._record(headers.pop())
            elif found.kind == stat.S_IFREG:
                self._file(found)
            elif found.kind == stat.S_IFDIR:
                headers.append(_header(found, os.lstat(found.entry, dir_fd=found.directory), 0))
                self._record(headers[-1])
            elif found.kind != stat.S_IFLNK:
                self._warn(f"{qfile.shown(found.name)}: not a file, directory or link; left out")
            elif not self._ignore_links:
                target = os.readlink(found.entry, dir_fd=found.directory)
                status = os.lstat(found.entry, dir_fd=found.directory)
                self._record(_header(found, status, len(target)) + target)

    def _file(self, found: Found) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(found.entry, flags, dir_fd=found.directory)
        try:
            status = os.fstat(fd)
            left = status.st_size
            self._record(_header(found, status, left))
            while left:
                if self._filled == BUFFER:
                    self._flush()
                count = os.readv(fd, [self._batch[self._filled : min(self._filled + left, BUFFER)]])
                if count == 0:
                    raise CopyError(
                        f"{qfile.shown(found.name)}: it became shorter while it was read; nothing was confirmed"
                    )
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

    def _look(self) -> None:
        """Have a sender told of a receiver that has moved nothing for a while."""
        assert self._on_silence is not None
        pause = SILENCE_SECONDS
        if time.monotonic() - self._moved_at >= SILENCE_SECONDS:
            pause = self._on_silence(True)  # something was sent: the copy ends by PATIENCE, or by the receiver
        self._loop.later(pause, self._look)

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
                self._moved_at = now
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
        said = printable(self._stderr.translate(call_data.VISIBLE).decode("ascii").strip().replace("\n", "; "))
        if said:
            why = f"{why}; the receiver says: {said}"
        if self._was_sent(result.last_name):
            text = f'"{qfile.shown(result.last_name)}" was refused: {why}'
            if result.code == qfile.EILSEQ and not qfile.is_plain(result.last_name):
                text += f". {ALL_NAMES_HINT}"
            return text
        return f"The copy was refused: {why}"

    def _was_sent(self, name: bytes) -> bool:
        """Whether a name that the receiver tells of is one of ours, looked up where it was read. What a receiver says
        is not to be believed, and to remember all names would take memory for each."""
        for top, path in self._tops:
            if name == top:
                return True
            if name.startswith(top + b"/") and b".." not in name.split(b"/"):
                try:
                    os.lstat(os.fsencode(os.path.abspath(path)) + name[len(top) :])
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:  # deeper than a path may be: it cannot be looked up
                        continue
                except ValueError:
                    continue
                return True
        return False


def _header(found: Found, status: os.stat_result, size: int) -> bytes:
    return qfile.build_header(found.name, status.st_mode, size, status.st_atime_ns, status.st_mtime_ns)


def name_beyond_plain(paths: Sequence[str], ignore_links: bool = False) -> bytes:
    """The first name, or target of a link, that a receiver takes only with ``allow-all-names``; empty for none.

    Walks through everything that is to be sent, because the receiver is asked before the first byte. CopyError for
    what cannot be read.
    """
    try:
        for path in paths:
            for found in walk(path):
                if found.end or found.kind == stat.S_IFLNK and ignore_links:
                    continue
                if not qfile.is_plain(found.entry):
                    return found.name
                if found.kind == stat.S_IFLNK and not qfile.is_plain(os.readlink(found.entry, dir_fd=found.directory)):
                    return found.name
    except OSError as error:
        raise CopyError(f"{printable(str(error.filename or 'copy'))}: {error.strerror}") from error
    return b""


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
    ignore_links: bool = False,
    on_silence: OnSilence | None = None,
) -> None:
    """Copy files over an accepted call, which is closed; returns only when all were confirmed."""
    try:
        Copy(sock, paths, progress, warn, ignore_links, on_silence).run()
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


def remove_sent(paths: Sequence[str], ignore_links: bool = False) -> None:
    """Remove what was copied and confirmed; CopyError when something stays. With ``ignore_links`` links stay, and the
    directories that they are in."""
    for path in paths:
        name = path
        try:
            for found in walk(path):
                name = os.fsdecode(found.name)
                if found.end:
                    _remove_directory(found, ignore_links)
                elif found.kind != stat.S_IFDIR and not (ignore_links and found.kind == stat.S_IFLNK):
                    os.unlink(found.entry, dir_fd=found.directory)
        except OSError as error:
            raise CopyError(f"{printable(name)} was copied and cannot be removed: {error.strerror}") from error


def _remove_directory(found: Found, may_stay: bool) -> None:
    try:
        os.rmdir(found.entry, dir_fd=found.directory)
    except OSError as error:
        if not may_stay or error.errno != errno.ENOTEMPTY:
            raise
