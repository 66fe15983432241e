"""Sends calls of the Admin API over its unix socket; starts the daemon if nobody listens there."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence

from casemate.settings import Settings, load
from casemate.wire.admin import ADMIN, Event, EventReader, build_request, parse_reply
from casemate.wire.errors import DaemonAccessError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

DAEMON = (sys.executable, "-P", "-m", "casemate.daemon.start")
"""The program to start. ``-P``: nothing is imported from the directory that a tool happens to be called in."""
START_SECONDS = 60.0
"""Seconds until a started daemon must listen. It adopts running qubes first, which takes a moment on a busy host."""
_POLL_SECONDS = 0.01
_ANOTHER_SERVES = 3
"""Exit status of a daemon that found another one of the same state (daemon/main.py)."""
_AGAIN_SECONDS = 0.2
"""Until the next try then. A start takes as long, and there may be many."""
_CHUNK = 65536
_LOG_TAIL = 2000
"""Bytes of the end of the daemon's log that are read for a message."""


_ANSWERED = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""What sending fails with when the daemon has answered, and closed, before it had read everything."""


def python_path() -> str:
    """PYTHONPATH of a program of ours: where this package lies, and what is said in our own environment."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    return os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))


def end_request(connection: socket.socket) -> None:
    """Say that the request is complete. A daemon that has answered already, and gone, is no error: its answer waits."""
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno not in _ANSWERED:
            raise


def read_reply(connection: socket.socket) -> bytes:
    """The content of the reply; raises the error that the daemon reports."""
    return parse_reply(_whole_reply(connection))


class Transport:
    """Reaches one daemon. ``daemon`` is the command that starts it on demand; empty: it is never started."""

    def __init__(self, settings: Settings | None = None, *, daemon: Sequence[str] | None = None) -> None:
        self.settings = settings if settings is not None else load()
        self._daemon = DAEMON if daemon is None else daemon

    def call(self, method: str, arg: str = "", dest: str = ADMIN, payload: bytes = b"") -> bytes:
        """The content of the reply; raises the error that the daemon reports."""
        with self.connect() as connection:
            send_request(connection, build_request(method, arg, dest, payload))
            return read_reply(connection)

    def speak_for(self, source: str, method: str, payload: bytes) -> None:
        """Pass on what a qube says of itself (``qubes.*``), on the socket for that; raises the error in the reply."""
        self.connect().close()  # starts the daemon where it does not run
        _ask(self.settings.misc_address, build_request(method, "", ADMIN, payload, source))

    def send_file(self, method: str, arg: str, dest: str, start: bytes, file: BinaryIO) -> bytes:
        """As ``call``, with a payload of ``start`` and all that a file has."""
        return parse_reply(self.send_file_raw(method, arg, dest, start, file))

    def send_file_raw(self, method: str, arg: str, dest: str, start: bytes, file: BinaryIO) -> bytes:
        """As ``send_file``: the reply as it travels, be it an error or not."""
        with self.connect() as connection:
            try:
                connection.sendall(build_request(method, arg, dest, start))
                while data := file.read(_CHUNK):
                    connection.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the daemon refused before it had read everything; its reply says why
            end_request(connection)
            return _whole_reply(connection)

    def internal(self, method: str, arg: str, dest: str, payload: bytes = b"") -> bytes:
        """As ``call``, on the socket for programs of this host (``internal.*``); the daemon runs already.

        DaemonAccessError where that socket is not for us: it belongs to the daemon's user.
        """
        return _ask(str(self.settings.internal_socket), build_request(method, arg, dest, payload))

    def events(self, dest: str = ADMIN, timeout: float | None = None) -> Events:
        """A subscription; the first event has arrived when this returns."""
        connection = self.connect()
        try:
            send_request(connection, build_request("admin.Events", "", dest))
        except BaseException:
            connection.close()
            raise
        return Events(connection, timeout)

    def connect(self) -> socket.socket:
        """A connection to the Admin API's socket; the daemon is started if nobody listens there."""
        connection = self._try_connect()
        if connection is not None:
            return connection
        if self.settings.shared:
            raise DaemonAccessError(
                "The daemon of this host does not run, and is not yours to start: any tool that root calls starts it "
                "(sudo casemate status). For qubes of your own set CASEMATE_STATE"
            )
        if not self._daemon:
            raise DaemonAccessError(f"No daemon listens on {self.settings.api_address}")
        return self._start_daemon()

    def _try_connect(self) -> socket.socket | None:
        """A connection, or None where there is no daemon."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self.settings.api_address)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        except OSError as error:
            connection.close()
            hint = "; log in again, as you were put into the group meanwhile" if self._lacks_group(error) else ""
            raise DaemonAccessError(f"{self.settings.api_address}: {error.strerror or error}{hint}") from error
        return connection

    def _lacks_group(self, error: OSError) -> bool:
        return self.settings.shared and error.errno == errno.EACCES

    def _start_daemon(self) -> socket.socket:
        """Start the daemon, unless another tool is just doing so, and wait until it listens."""
        run = self.settings.run
        try:
            # 0711: QEMU of each qube, which runs as a user of its own, passes through and can list nothing.
            umask = os.umask(0o022)  # parents are made by mkdir's own mode, less what the caller's umask takes away
            try:
                for directory in (self.settings.state, run):
                    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            finally:
                os.umask(umask)
            gate = os.open(run / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise DaemonAccessError(f"{error.filename or run}: {error.strerror}") from error
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)  # waits no longer than START_SECONDS, after which its holder gives up
            connection = self._try_connect()
            if connection is not None:
                return connection
            return self._spawn()
        finally:
            os.close(gate)

    def _spawn(self) -> socket.socket:
        log = self.settings.run / "daemon.log"
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        environment = {**os.environ, **self.settings.environment(), "PYTHONPATH": python_path()}
        # What it says until it serves is for us, and kept in memory: on a full disk its log stays empty.
        said = os.memfd_create("casemated", os.MFD_CLOEXEC)
        try:
            return self._wait_for_daemon(lambda: self._spawn_daemon(environment, log, append, said), log, said)
        finally:
            os.close(said)

    def _spawn_daemon(self, environment: dict[str, str], log: Path, append: int, said: int) -> int:
        return os.posix_spawn(
            self._daemon[0],
            list(self._daemon),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.fspath(log), append, 0o600),
                (os.POSIX_SPAWN_DUP2, said, 2),
            ],
            setsid=True,
        )

    def _wait_for_daemon(self, start: Callable[[], int], log: Path, said: int) -> socket.socket:
        deadline = time.monotonic() + START_SECONDS
        child = start()
        # It is ready when its socket listens. The standard library has nothing that waits for that, hence polling.
        while time.monotonic() < deadline:
            connection = self._try_connect()
            if connection is not None:
                return connection
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended == child and os.waitstatus_to_exitcode(status) == _ANOTHER_SERVES:
                # It listens soon, or it has been killed and is about to vanish, locks and all: then one of ours starts.
                time.sleep(_AGAIN_SECONDS)
                child = start()
            elif ended == child:
                reason = os.pread(said, _LOG_TAIL, 0).decode("utf-8", "replace").strip()
                why = printable(reason, _LOG_TAIL) if reason else _tail(os.fspath(log))
                raise DaemonAccessError(f"The daemon ended at once: {why}")
            time.sleep(_POLL_SECONDS)
        raise DaemonAccessError(f"The daemon does not listen after {START_SECONDS:g} s; {_tail(os.fspath(log))}")


class Events:
    """A subscription; iterate over it, close it, or use it as a context."""

    def __init__(self, connection: socket.socket, timeout: float | None = None) -> None:
        self._connection = connection
        self._reader = EventReader()
        self._ready: list[Event] = []
        self._connection.settimeout(timeout)
        try:
            while not self._ready:
                self._more()
        except BaseException:
            self.close()
            raise

    def _more(self) -> None:
        data = receive(self._connection)
        if not data:
            self._reader.finish()
            raise DaemonAccessError("The daemon ended the subscription")
        self._ready.extend(self._reader.feed(data))

    def next(self, timeout: float | None = None) -> Event:
        """The next event; raises TimeoutError after ``timeout`` seconds without one."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ready:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            self._more()
        return self._ready.pop(0)

    def __iter__(self) -> Iterator[Event]:
        while True:
            yield self.next()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription."""
        self._connection.close()


def _ask(address: str, request: bytes) -> bytes:
    """As ``Transport.call``, on another socket of a daemon that runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(address)
        except OSError as error:
            raise DaemonAccessError(f"The daemon cannot be reached: {error.strerror}") from error
        send_request(connection, request)
        return read_reply(connection)


def send_request(connection: socket.socket, request: bytes) -> None:
    """Send a whole request. A daemon that has answered before it read all of it is no error: its answer waits."""
    try:
        connection.sendall(request)
        end_request(connection)
    except OSError as error:
        if error.errno not in _ANSWERED:
            raise DaemonAccessError(f"The daemon cannot be reached: {error.strerror}") from error


def _whole_reply(connection: socket.socket) -> bytes:
    parts = []
    while part := receive(connection):
        parts.append(part)
    return b"".join(parts)


def receive(connection: socket.socket) -> bytes:
    """What has come; nothing at the end. A reset is an end too: the daemon closed without reading all of our request,
    and the kernel gives us what it had answered before it tells of that."""
    try:
        return connection.recv(_CHUNK)
    except TimeoutError:
        raise
    except ConnectionResetError:
        return b""
    except OSError as error:
        raise DaemonAccessError(f"The daemon's answer was cut off: {error.strerror}") from error


def _tail(log: str) -> str:
    """The end of the daemon's log, for a message."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()[-5:]
    except OSError:
        lines = []
    if not lines:
        return f"its log is {log}"
    return f"its log ({log}) ends:\n" + "\n".join(printable(line, 600) for line in lines)
