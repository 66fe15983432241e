"""qrexec: messages, the command line of a call, requests and their answers. Sans-I/O; the data phase is call_data.

All messages are ``<II type, length`` and a body. Names follow Qubes OS. What a receiver may get depends on its role:
the wrong direction is a violation (ProtocolError: drop the connection), a name that is not allowed is a refusal
(ValueInvalidError: answer the request).
"""

from __future__ import annotations

import struct

from casemate.wire import names
from casemate.wire.errors import CallRefusedError, ProtocolError, ValueInvalidError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DATA_STDIN = 0x190
DATA_STDOUT = 0x191
DATA_STDERR = 0x192
DATA_EXIT_CODE = 0x193
EXEC_CMDLINE = 0x200
JUST_EXEC = 0x201
SERVICE_CONNECT = 0x202
SERVICE_REFUSED = 0x203
TRIGGER_SERVICE = 0x210
CONNECTION_TERMINATED = 0x211
TRIGGER_SERVICE3 = 0x212
TRIGGER_SERVICE4 = 0x213
HELLO = 0x300

HEADER = struct.Struct("<II")
_EXEC = struct.Struct("<II")

MAX_CHUNK = 65536
"""Limit of calls (bytes): data in one message."""
MAX_COMMAND = 65000
"""Limit of calls (bytes): command line of a call that this host makes, with its NUL."""
IDENT = 32
FIELD = 64
TRIGGER_FIXED = FIELD + FIELD + IDENT
MAX_CALL = 512
"""Limit of calls (bytes): service name and argument that a qube asks for, with the NUL."""

EXIT_FAILED = 125
EXIT_REFUSED = 126
EXIT_NO_SERVICE = 127
EXIT_VANISHED = 255

_IDENT_BYTES = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_. -"
_LONG_ARGUMENT = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._@+:-"

REQUEST_LENGTHS = {
    EXEC_CMDLINE: (_EXEC.size + 2, _EXEC.size + MAX_COMMAND),
    JUST_EXEC: (_EXEC.size + 2, _EXEC.size + MAX_COMMAND),
    TRIGGER_SERVICE4: (TRIGGER_FIXED + 2, TRIGGER_FIXED + MAX_CALL),
}
ANSWER_LENGTHS = {
    SERVICE_CONNECT: (_EXEC.size + IDENT, _EXEC.size + IDENT),
    SERVICE_REFUSED: (IDENT, IDENT),
}


class LengthTable:
    """Which types a receiver takes and how long each may be; give it to ``framing.MessageReader``."""

    __slots__ = ("_table",)

    def __init__(self, table: dict[int, tuple[int, int]]) -> None:
        self._table = table

    def __call__(self, fields: tuple[Any, ...]) -> int:
        """Length of the body, else ProtocolError."""
        kind, length = fields
        low, high = self._table.get(kind, (1, 0))
        if not low <= length <= high:
            raise ProtocolError(f"qrexec: message of type {kind:#x} and length {length} is not allowed here")
        return int(length)


HOST_REQUESTS = LengthTable({kind: REQUEST_LENGTHS[kind] for kind in (EXEC_CMDLINE, JUST_EXEC)})
"""What starts a call on a link's socket and on the stream to a guest."""
GUEST_REQUESTS = LengthTable({TRIGGER_SERVICE4: REQUEST_LENGTHS[TRIGGER_SERVICE4]})
"""What starts a call from a guest."""
ANSWERS = LengthTable(ANSWER_LENGTHS)
"""What a guest's request is answered with."""


def message(kind: int, body: bytes = b"") -> bytes:
    """One message."""
    return HEADER.pack(kind, len(body)) + body


# -- messages that start a call


def exec_message(cmdline: str, kind: int = EXEC_CMDLINE) -> bytes:
    """EXEC_CMDLINE or JUST_EXEC with domain 0 and port 0: the data phase follows on the same stream."""
    raw = cmdline.encode("ascii")
    if not raw or b"\0" in raw or len(raw) >= MAX_COMMAND:
        raise ValueInvalidError("The command line of the call is empty, too long or has a NUL in it")
    return message(kind, _EXEC.pack(0, 0) + raw + b"\0")


def parse_exec(body: bytes) -> str:
    """The command line in an EXEC_CMDLINE or JUST_EXEC body; its NUL must be the last byte and the only one."""
    if not _EXEC.size + 2 <= len(body) <= _EXEC.size + MAX_COMMAND or body.find(b"\0", _EXEC.size) != len(body) - 1:
        raise ProtocolError("qrexec: malformed exec parameters")
    try:
        return body[_EXEC.size : -1].decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("qrexec: command line is not ASCII") from None


class Command:
    """What an executing side is asked to run: ``USER:QUBESRPC SERVICE+ARG SOURCE[ TYPE TARGET]``.

    ``user`` is ``DEFAULT`` or a name; ``argument`` is None where there is no ``+``. ``target_type`` is ``""``,
    ``"name"`` or ``"keyword"``; ``target`` is without the ``@`` for a keyword.
    """

    __slots__ = ("argument", "service", "source", "target", "target_type", "user")

    def __init__(
        self,
        user: str,
        service: str,
        argument: str | None,
        source: str,
        target_type: str = "",
        target: str = "",
    ) -> None:
        self.user = user
        self.service = service
        self.argument = argument
        self.source = source
        self.target_type = target_type
        self.target = target

    @property
    def full_name(self) -> str:
        """Service and argument as looked up: always with a ``+``."""
        return f"{self.service}+{self.argument or ''}"

    @property
    def descriptor(self) -> str:
        """What a socket service is told: everything after ``QUBESRPC ``."""
        call = self.service if self.argument is None else f"{self.service}+{self.argument}"
        tail = f" {self.target_type} {self.target}" if self.target_type else ""
        return f"{call} {self.source}{tail}"

    def cmdline(self) -> str:
        """The text for ``exec_message``."""
        return f"{self.user}:QUBESRPC {self.descriptor}"


def parse_call(text: str, long: bool = False) -> tuple[str, str | None]:
    """``SERVICE[+ARG]`` as (service, argument or None); ``long`` allows an argument beyond 255 characters."""
    service, plus, argument = text.partition("+")
    service = names.service_name(service)
    if not plus:
        return service, None
    if not long:
        return service, names.argument(argument)
    if argument.encode("ascii", "replace").translate(None, _LONG_ARGUMENT):
        raise ValueInvalidError(f"Invalid service argument: {printable(argument, 80)!r}")
    return service, argument


def parse_command(cmdline: str) -> Command:
    """The one parser of a call's command line, for both ends; anything but its grammar is ValueInvalidError."""
    user, colon, rest = cmdline.partition(":")
    if not colon:
        raise ValueInvalidError("The command line of the call names no user")
    if user != "DEFAULT":
        user = names.user_name(user)
    if rest.startswith("nogui:"):
        rest = rest[6:]
    words = rest.split(" ")
    if words[0] != "QUBESRPC" or len(words) not in (3, 5):
        raise ValueInvalidError("The command line of the call is not a service request")
    service, argument = parse_call(words[1], long=True)
    source = _vm(words[2])
    if len(words) == 3:
        return Command(user, service, argument, source)
    kind, target = words[3], words[4]
    if kind == "name":
        target = _vm(target)
    elif kind == "keyword":
        target = requested_target("@" + target)[1:]
    else:
        raise ValueInvalidError("The command line of the call has a bad kind of target")
    return Command(user, service, argument, source, kind, target)


def _vm(text: str) -> str:
    if text.startswith("uuid:"):
        return "uuid:" + names.uuid_text(text[5:])
    return names.qube_name(text)


def requested_target(text: str) -> str:
    """A target that a caller may ask for: a name, ``uuid:UUID``, or one of the keywords; "" means ``@default``."""
    if text in ("", "@default"):
        return "@default"
    if text in ("@adminvm", "@dispvm"):
        return text
    if text.startswith("@dispvm:"):
        return "@dispvm:" + _vm(text[8:])
    return _vm(text)


def target_words(target: str) -> tuple[str, str]:
    """A requested target as (TYPE, TARGET) of a command line."""
    return ("keyword", target[1:]) if target.startswith("@") else ("name", target)


# -- requests of a guest and their answers


class Trigger:
    """A guest's request for a call. What it says about its own name is not kept: identity comes from the channel."""

    __slots__ = ("argument", "ident", "service", "target")

    def __init__(self, ident: bytes, target: str, service: str, argument: str | None) -> None:
        self.ident = ident
        self.target = target
        self.service = service
        self.argument = argument

    @property
    def call(self) -> str:
        """``SERVICE`` or ``SERVICE+ARG`` as asked for."""
        return self.service if self.argument is None else f"{self.service}+{self.argument}"


def _field(text: str, size: int) -> bytes:
    raw = text.encode("ascii")
    if b"\0" in raw or len(raw) >= size:
        raise ValueInvalidError(f"Too long: {printable(text, 80)!r}")
    return raw.ljust(size, b"\0")


def trigger4(target: str, call: str, ident: str = "SOCKET", source: str = "") -> bytes:
    """A TRIGGER_SERVICE4 message."""
    raw = call.encode("ascii")
    if not raw or b"\0" in raw or len(raw) >= MAX_CALL:
        raise ValueInvalidError("The name of the service is empty or too long")
    return message(TRIGGER_SERVICE4, _field(source, FIELD) + _field(target, FIELD) + _field(ident, IDENT) + raw + b"\0")


def trigger_ident(body: bytes) -> bytes:
    """The request id in a TRIGGER_SERVICE4 body, as received and not checked: only to be echoed in a refusal."""
    if not TRIGGER_FIXED <= len(body) <= TRIGGER_FIXED + MAX_CALL:
        raise ProtocolError("qrexec: malformed service request")
    return body[2 * FIELD : TRIGGER_FIXED]


def _unpadded(raw: bytes, what: str) -> bytes:
    text, _, padding = raw.partition(b"\0")
    if len(text) == len(raw) or padding.strip(b"\0"):
        raise ValueInvalidError(f"{what} is not padded with zeros")
    return text


def parse_trigger4(body: bytes) -> Trigger:
    """A guest's request; ValueInvalidError means: refuse it, with ``trigger_ident``."""
    ident = trigger_ident(body)
    if _unpadded(ident, "request id").translate(None, _IDENT_BYTES):
        raise ValueInvalidError("Invalid request id")
    _unpadded(body[:FIELD], "source")
    target = names.text(_unpadded(body[FIELD : 2 * FIELD], "target"), "target")
    call = body[TRIGGER_FIXED:]
    if call.find(b"\0") != len(call) - 1:
        raise ValueInvalidError("The name of the service does not end with its NUL")
    service, argument = parse_call(names.text(call[:-1], "service name"))
    return Trigger(ident, requested_target(target.replace("$", "@", 1)), service, argument)


def service_connect(ident: bytes) -> bytes:
    """The answer "go on": the data phase follows on this stream."""
    return message(SERVICE_CONNECT, _EXEC.pack(0, 0) + ident)


def service_refused(ident: bytes) -> bytes:
    """The answer "no"."""
    return message(SERVICE_REFUSED, ident)


def check_answer(kind: int, body: bytes) -> None:
    """Return when the answer to a request is SERVICE_CONNECT; CallRefusedError when it was refused."""
    if kind == SERVICE_REFUSED:
        raise CallRefusedError("Request refused")
    if kind != SERVICE_CONNECT or len(body) != _EXEC.size + IDENT:
        raise ProtocolError("qrexec: unexpected answer to a service request")
