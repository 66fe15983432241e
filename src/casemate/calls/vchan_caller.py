"""The caller's end of a call over vchan, for programs of one call: ask, serve the data channel, shake hands."""

from __future__ import annotations

import socket

from casemate.calls.vchan_sockets import Listening, SocketDirectory
from casemate.streams.exactly import exactly
from casemate.streams.ready import readable
from casemate.wire import qrexec_control as control
from casemate.wire.errors import CallRefusedError, DisconnectedError, ProtocolError
from casemate.wire.qrexec import HEADER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HELLO_SECONDS = 10.0


def read_message(sock: socket.socket, lengths: Callable[[tuple[int, int]], int]) -> tuple[int, bytes]:
    """One message; ProtocolError for one that may not come, DisconnectedError when none comes."""
    kind, length = HEADER.unpack(_taken(sock, HEADER.size))
    return kind, _taken(sock, lengths((kind, length)))


def _taken(sock: socket.socket, size: int) -> bytes:
    """So many bytes; DisconnectedError when they do not come."""
    try:
        return exactly(sock, size)
    except EOFError:
        raise DisconnectedError("The other end closed the connection") from None
    except OSError as error:
        raise DisconnectedError(error.strerror or "The other end does not answer") from error


def ask_agent(sock: socket.socket, target: str, call: str, source: str = "") -> tuple[int, int]:
    """In a domain: ask its agent for a call; (domain, port) where to serve it, CallRefusedError when it is refused."""
    try:
        sock.sendall(control.trigger4(target, call, source))
    except BrokenPipeError:
        pass  # an agent refuses by closing the connection: the answer below tells
    except OSError as error:
        raise DisconnectedError(error.strerror or "connection lost") from error
    try:
        return control.answer_place(_taken(sock, 8))
    except DisconnectedError:
        raise CallRefusedError("Request refused") from None


def serve(
    vchans: SocketDirectory, domain: int, port: int, seconds: float | None, watched: socket.socket
) -> tuple[socket.socket, int]:
    """Wait for the executing side of a call and shake hands: (its socket, most bytes in a message).

    DisconnectedError when it does not come within ``seconds`` (None: no limit), or when ``watched`` ends first.
    """
    listening = Listening(vchans.serving(domain, port))
    try:
        ready = readable([listening.sock, watched], seconds)
        if listening.sock not in ready:
            raise DisconnectedError("The call ended before it began" if ready else "The other end did not connect")
        peer = listening.accept()
    finally:
        listening.close()
    try:
        peer.settimeout(HELLO_SECONDS)
        peer.sendall(control.hello(control.DATA_VERSION))
        _kind, body = read_message(peer, control.HELLOS)
        return peer, control.chunk(control.parse_hello(body))
    except OSError as error:
        peer.close()
        raise DisconnectedError(error.strerror or "connection lost") from error
    except (DisconnectedError, ProtocolError):
        peer.close()
        raise


class DaemonConversation:
    """A client's connection to the daemon of a domain, greeted."""

    def __init__(self, path: str, seconds: float = HELLO_SECONDS) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.sock.connect(path)
            self.sock.settimeout(seconds)
            _kind, body = read_message(self.sock, control.HELLOS)
            control.parse_hello(body, control.CLIENT_VERSION)
            self.sock.sendall(control.hello(control.CLIENT_VERSION))
            self.sock.settimeout(None)
        except OSError as error:
            self.sock.close()
            raise DisconnectedError(error.strerror or "connection lost") from error
        except BaseException:
            self.sock.close()
            raise

    def ask(self, kind: int, caller: int, port: int, rest: bytes) -> tuple[int, int]:
        """Send the request; (domain, port) of the data channel. CallRefusedError when the daemon will not."""
        self.sock.sendall(control.params(kind, caller, port, rest))
        if port:
            return caller, port
        try:
            got, body = read_message(self.sock, control.PLACES)
        except DisconnectedError:
            raise CallRefusedError("The daemon has refused the call") from None
        if got != kind:
            raise ProtocolError("qrexec: the daemon answers something else")
        domain, given, _rest = control.parse_params(body)
        return domain, given

    def wait_end(self) -> None:
        """Wait until the call has ended everywhere."""
        try:
            while self.sock.recv(4096):
                pass
        except OSError:
            pass

    def close(self) -> None:
        """Leave."""
        self.sock.close()
