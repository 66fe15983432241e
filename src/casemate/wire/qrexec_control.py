"""qrexec between an agent, the daemon of its domain and that daemon's clients: handshake, control messages. Sans-I/O.

The data phase and the command line of a call are in ``wire.qrexec``. What differs between versions 2, 3 and 4 of the
control channel is the request of a qube: its message and how long its fields may be.
"""

from __future__ import annotations

import struct

from casemate.wire.errors import ProtocolError, ValueInvalidError, printable
from casemate.wire.qrexec import (
    CONNECTION_TERMINATED,
    EXEC_CMDLINE,
    FIELD,
    HELLO,
    IDENT,
    JUST_EXEC,
    SERVICE_CONNECT,
    SERVICE_REFUSED,
    TRIGGER_FIXED,
    TRIGGER_SERVICE,
    TRIGGER_SERVICE3,
    TRIGGER_SERVICE4,
    LengthTable,
    message,
)

CONTROL_VERSION = 4
"""Newest version of the control channel."""
CLIENT_VERSION = 3
"""Version that the daemon and its clients speak, and the least they take."""
DATA_VERSION = 4
"""Version that is said on a data channel; it selects nothing but the length of a message."""
OLDEST = 2

MAX_PACKET = 65535
"""Longest body of a request to a daemon or an agent."""
MAX_SERVICE = 65000
"""Longest service name and argument."""
_FIELD2 = 32
_PARAMS = struct.Struct("<II")
_U32 = struct.Struct("<I")
PARAMS = _PARAMS.size

_EXEC_LENGTHS = (PARAMS + 2, MAX_PACKET)
_CONNECT_LENGTHS = (PARAMS + 2, PARAMS + IDENT)
"""Upstream pads a request id with zeros; a client may as well send it with its one NUL."""
_TRIGGERS = {
    TRIGGER_SERVICE: (2 * FIELD, 2 * FIELD),
    TRIGGER_SERVICE3: (FIELD + IDENT + 1, FIELD + IDENT + MAX_SERVICE + 1),
    TRIGGER_SERVICE4: (TRIGGER_FIXED + 1, TRIGGER_FIXED + MAX_SERVICE + 1),
}
_TERMINATED = {CONNECTION_TERMINATED: (PARAMS, PARAMS)}
HELLOS = LengthTable({HELLO: (4, 4)})
"""What both sides of every channel begin with."""
AGENT_MESSAGES = {
    2: LengthTable({TRIGGER_SERVICE: _TRIGGERS[TRIGGER_SERVICE], **_TERMINATED}),
    3: LengthTable({TRIGGER_SERVICE3: _TRIGGERS[TRIGGER_SERVICE3], **_TERMINATED}),
    4: LengthTable({kind: _TRIGGERS[kind] for kind in (TRIGGER_SERVICE3, TRIGGER_SERVICE4)} | _TERMINATED),
}
"""What an agent sends, by the version of the control channel."""
DAEMON_MESSAGES = LengthTable(
    {
        EXEC_CMDLINE: _EXEC_LENGTHS,
        JUST_EXEC: _EXEC_LENGTHS,
        SERVICE_CONNECT: _CONNECT_LENGTHS,
        SERVICE_REFUSED: (IDENT, IDENT),
    }
)
"""What a daemon sends its agent."""
CLIENT_REQUESTS = LengthTable(
    {EXEC_CMDLINE: _EXEC_LENGTHS, JUST_EXEC: _EXEC_LENGTHS, SERVICE_CONNECT: _CONNECT_LENGTHS}
)
"""What a client asks of a daemon."""
PLACES = LengthTable({kind: (PARAMS, PARAMS) for kind in (EXEC_CMDLINE, JUST_EXEC, SERVICE_CONNECT)})
"""What a daemon answers a client: where the data channel is."""
LOCAL_TRIGGERS = LengthTable({TRIGGER_SERVICE4: _TRIGGERS[TRIGGER_SERVICE4]})
"""What a program in a qube asks of its agent."""


def hello(version: int) -> bytes:
    """The first message of a channel."""
    return message(HELLO, _U32.pack(version))


def parse_hello(body: bytes, least: int = OLDEST) -> int:
    """The peer's version; ProtocolError when it is older than ``least``."""
    version: int = _U32.unpack(body)[0]
    if version < least:
        raise ProtocolError(f"qrexec: the peer speaks version {version}, at least {least} is wanted")
    return version


def chunk(version: int) -> int:
    """Most bytes in one message of a data channel on which the peer said ``version``."""
    return 4096 if version < 3 else 65536


def params(kind: int, domain: int, port: int, rest: bytes = b"") -> bytes:
    """A message whose body starts with a domain and a port."""
    return message(kind, _PARAMS.pack(domain, port) + rest)


def parse_params(body: bytes) -> tuple[int, int, bytes]:
    """(domain, port, the rest) of such a body."""
    domain, port = _PARAMS.unpack_from(body)
    return domain, port, body[PARAMS:]


def padded_ident(rest: bytes) -> bytes:
    """The request id of a SERVICE_CONNECT, with all its padding; ProtocolError when it does not end."""
    text, nul, padding = rest.partition(b"\0")
    if not text or not nul or padding.strip(b"\0"):
        raise ProtocolError("qrexec: malformed request id")
    return text.ljust(IDENT, b"\0")


def command_text(rest: bytes) -> bytes:
    """The command line after domain and port: its NUL must be the last byte and the only one, else ProtocolError."""
    if len(rest) < 2 or rest.find(b"\0") != len(rest) - 1:
        raise ProtocolError("qrexec: malformed command line")
    return rest[:-1]


def check_command(text: bytes) -> None:
    """A client's command line names a user; ProtocolError when it does not."""
    user, colon, _rest = text.partition(b":")
    if not user or not colon:
        raise ProtocolError("qrexec: the command line names no user")


# -- requests of a qube


class ServiceRequest:
    """A qube's request for a call. What it says about its own name is kept for the policy alone, where it may speak
    for another (a relay); identity comes from the channel."""

    __slots__ = ("call", "ident", "source", "target")

    def __init__(self, ident: bytes, target: str, call: str, source: str = "") -> None:
        self.ident = ident
        self.target = target
        self.call = call
        self.source = source

    @property
    def service(self) -> str:
        """The service without its argument."""
        return self.call.partition("+")[0]

    @property
    def full(self) -> str:
        """Service and argument, always with a ``+``."""
        return self.call if "+" in self.call else self.call + "+"


_WORD = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.-"
_IDENT_BYTES = frozenset(_WORD + b" ")


_FIELD_BYTES = _WORD + b"@:"
_CALL_BYTES = _WORD + b"@:+"
NAME_MAX = 255
"""Longest name of a service without its argument."""


def _field(raw: bytes) -> str:
    """Text of a field up to its NUL. Where upstream's daemon makes ``_`` of illegal bytes, the request is refused here:
    two names must never become one."""
    text, nul, _junk = raw.partition(b"\0")
    if not nul or text.translate(None, _FIELD_BYTES):
        raise ValueInvalidError(f"A field of the request does not end, or is no name: {printable(repr(text), 80)}")
    return text.decode("ascii")


def _split(kind: int, body: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """(source, target, request id, service) as they stand in the message."""
    if kind == TRIGGER_SERVICE4:
        return body[:FIELD], body[FIELD : 2 * FIELD], body[2 * FIELD : TRIGGER_FIXED], body[TRIGGER_FIXED:]
    if kind == TRIGGER_SERVICE3:
        return b"\0", body[:FIELD], body[FIELD : FIELD + IDENT], body[FIELD + IDENT :]
    service = body[:FIELD].partition(b"\0")
    # A field of fixed length: what follows its NUL is not looked at, as in upstream.
    return b"\0", body[FIELD : FIELD + _FIELD2], body[FIELD + _FIELD2 :], service[0] + service[1]


def request_ident(kind: int, body: bytes) -> bytes:
    """The request id as received and not checked: only to be echoed in a refusal."""
    return _split(kind, body)[2]


def parse_request(kind: int, body: bytes) -> ServiceRequest:
    """A qube's request of any version; ValueInvalidError means: refuse it, with ``request_ident``."""
    source, target, ident, call = _split(kind, body)
    text, nul, padding = ident.partition(b"\0")
    if not nul or padding.strip(b"\0") or not _IDENT_BYTES.issuperset(text):
        raise ValueInvalidError("Invalid request id")
    if call.find(b"\0") != len(call) - 1 or len(call) < 2 or call.startswith(b"+"):
        raise ValueInvalidError("The request names no service")
    if call[:-1].translate(None, _CALL_BYTES):
        raise ValueInvalidError(f"Invalid service: {printable(repr(call[:-1]), 80)}")
    name = call[:-1].decode("ascii")
    if len(name) > MAX_SERVICE or len(name.partition("+")[0]) > NAME_MAX:
        raise ValueInvalidError(f"The name of the service is too long: {printable(name, 80)!r}")
    return ServiceRequest(ident, _field(target), name, _field(source))


def trigger(version: int, body: bytes, ident: bytes) -> bytes:
    """A TRIGGER_SERVICE4 body of a program in the qube as the message for a daemon of ``version``, under our own id.

    ValueInvalidError when that version has no room for it.
    """
    source, target, _ident, call = _split(TRIGGER_SERVICE4, body)
    ident = ident.ljust(IDENT, b"\0")
    if version >= 4:
        return message(TRIGGER_SERVICE4, source + target + ident + call)
    if source.strip(b"\0"):
        raise ValueInvalidError("This daemon does not let a qube speak for another")
    if version == 3:
        return message(TRIGGER_SERVICE3, target + ident + call)
    short = target.partition(b"\0")[0]
    if len(short) >= _FIELD2 or len(call) > FIELD:
        raise ValueInvalidError("The name of the service or of the target is too long for this daemon")
    return message(TRIGGER_SERVICE, call.ljust(FIELD, b"\0") + short.ljust(_FIELD2, b"\0") + ident)


def trigger4(target: str, call: str, source: str = "") -> bytes:
    """What a program in a qube asks its agent; ValueInvalidError when it cannot be said."""
    try:
        fields = [source.encode("ascii"), target.replace("$", "@", 1).encode("ascii")]
        name = call.encode("ascii")
    except UnicodeEncodeError:
        raise ValueInvalidError("Names of qubes and services are ASCII") from None
    if any(len(field) >= FIELD or b"\0" in field for field in fields):
        raise ValueInvalidError("The name of a qube is too long")
    if not 0 < len(name) <= MAX_SERVICE or b"\0" in name:
        raise ValueInvalidError("The name of the service is empty or too long")
    raw = b"".join(field.ljust(FIELD, b"\0") for field in fields)
    return message(TRIGGER_SERVICE4, raw + b"SOCKET".ljust(IDENT, b"\0") + name + b"\0")


def answer_place(data: bytes) -> tuple[int, int]:
    """(domain, port) in an agent's answer to a program of its qube: eight bytes without a header."""
    domain, port = _PARAMS.unpack(data)
    return domain, port


def place_answer(domain: int, port: int) -> bytes:
    """That answer."""
    return _PARAMS.pack(domain, port)
