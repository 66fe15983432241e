"""The bytes of the Admin API: requests, replies, events, lines of properties and lists. Without I/O, for both ends.

::

    request   METHOD+ARG SOURCE name DEST NUL payload <client closes its writing side>
    reply     0 NUL content                     2 NUL type NUL traceback NUL format NUL arguments… NUL
    events    1 NUL subject NUL name NUL (key NUL value NUL)* NUL, again and again

One connection carries one request, and one reply or a stream of events. The protocol is that of Qubes OS
(core-admin-client), whose clients are stricter than its documentation in some places; comments say where.
"""

from __future__ import annotations

from casemate.wire import names
from casemate.wire.errors import (
    CasemateError,
    DaemonAccessError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    ValueInvalidError,
    all_errors,
    printable,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NamedTuple as Record
else:
    from casemate.wire.records import Record

MAX_REQUEST = 65536
"""Limit of the Admin API (bytes): one request (header, NUL and payload), but for a few methods that take long texts."""

LONG_REQUESTS = {
    "admin.vm.notes.Set": 264 << 10,
    "admin.vm.firewall.Set": 128 << 10,
    "admin.casemate.List": 512 << 10,
    "admin.vm.volume.Import": 1 << 20,
    "admin.vm.volume.ImportWithSize": 1 << 20,
    "qubes.SyncAppMenus": (1 << 20) + 4096,
    "policy.Replace": 128 << 10,
    "policy.include.Replace": 128 << 10,
    "admin.casemate.policy.Check": 128 << 10,
    "admin.casemate.policy.include.Check": 128 << 10,
}
"""Methods whose requests may be longer, in bytes with the header. All others keep upstream's limit."""

MAX_TOKEN = 65535
"""Limit of the Admin API (bytes): part of an event. Upstream's clients cannot read a longer one."""

ADMIN = "dom0"
MAX_ARGUMENT = 1024
"""Limit of the Admin API (characters): argument of a method."""

CONNECTED = "connection-established"
"""The first event of every subscription."""

_UNFORMATTED = frozenset({ProtocolError.wire_name, PermissionDeniedError.wire_name})
"""Error types whose text upstream's clients show as it is. They apply ``%`` to the text of all others."""


def most_bytes(start: bytes | bytearray) -> int:
    """Most bytes of the request that begins with ``start``."""
    end = start.find(b"+", 0, 80)
    return LONG_REQUESTS.get(start[:end].decode("latin-1"), MAX_REQUEST) if end > 0 else MAX_REQUEST


class Request(Record):
    """One call: ``METHOD+ARG`` by ``source`` on ``dest``."""

    method: str
    arg: str
    source: str
    dest: str
    payload: bytes


def endpoint(text: str, what: str) -> str:
    """A qube's name or ``uuid:`` with a UUID."""
    if text.startswith("uuid:"):
        return "uuid:" + names.uuid_text(text[5:])
    return str(names.qube_name(text)) if text != ADMIN else text


def build_request(method: str, arg: str = "", dest: str = ADMIN, payload: bytes = b"", source: str = ADMIN) -> bytes:
    """The bytes of a call. ProtocolError for one that no daemon would accept, and for what a person typed that no
    name can have: NotFoundError for the qube, ValueInvalidError for the rest."""
    if not dest.isascii() or " " in dest or "\0" in dest:
        raise NotFoundError(dest)
    names.text(arg, f"argument of {method}")
    if " " in arg or "\0" in arg:  # blanks part the words of the header, so no name that travels in it has one
        raise ValueInvalidError(f"No blank can be in a name: {printable(arg, 80)!r}")
    data = f"{method}+{arg} {source} name {dest}\0".encode("ascii", "strict") + payload
    parse_request(data)
    return data


def parse_request(data: bytes) -> Request:
    """The call in the complete bytes of a request; raises ProtocolError."""
    if len(data) > MAX_REQUEST and len(data) > most_bytes(data[:80]):
        raise ProtocolError(f"The call is longer than {most_bytes(data[:80])} bytes")
    header, found, payload = data.partition(b"\0")
    if not found:
        raise ProtocolError("The call's header has no end")
    try:
        text = names.text(header, "header", 4096)
        words = text.split(" ", 3)
        if len(words) != 4:
            raise ProtocolError("The call's header does not have four words")
        call, source, kind, dest = words
        method, _, arg = call.partition("+")
        if len(arg) > MAX_ARGUMENT or any(not "!" <= c <= "~" for c in arg):
            raise ProtocolError("The call's argument is too long or not printable")
        if kind == "keyword":
            if dest != "adminvm":
                raise ProtocolError("The only keyword for a destination is 'adminvm'")
            dest = ADMIN
        elif kind != "name":
            raise ProtocolError("The destination is neither a name nor a keyword")
        return Request(
            str(names.service_name(method)), arg, endpoint(source, "source"), endpoint(dest, "destination"), payload
        )
    except ValueInvalidError as error:
        raise ProtocolError(str(error)) from error


class RequestReader:
    """Collects the bytes of one request, never more than a request may have."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take some more bytes; raises ProtocolError once there are too many."""
        size = len(self._data) + len(data)
        if size > MAX_REQUEST:
            most = most_bytes((self._data[:80] + data[:80])[:80])
            if size > most:
                raise ProtocolError(f"The call is longer than {most} bytes")
        self._data += data

    def begun(self, methods: frozenset[str]) -> Request | None:
        """The call so far, if its header is complete and it is to one of ``methods``; raises ProtocolError."""
        end = self._data.find(b"+", 0, 80)
        if end < 0 or self._data[:end].decode("latin-1") not in methods or b"\0" not in self._data:
            return None
        return self.finish()

    def finish(self) -> Request:
        """The call, now that its sender has closed its side; raises ProtocolError."""
        return parse_request(bytes(self._data))


# --------------------------------------------------------------------------------------------------------- replies


def success(content: str | bytes = b"") -> bytes:
    """The reply to a call that worked."""
    return b"0\0" + (content.encode() if isinstance(content, str) else content)


def failure(error: CasemateError) -> bytes:
    """The reply to a call that failed. No traceback is sent; ``%`` is doubled where clients format the text."""
    text = str(error).replace("\0", "\\x00")
    if error.wire_name not in _UNFORMATTED:
        text = text.replace("%", "%%")
    return b"2\0" + error.wire_name.encode() + b"\0\0" + text.encode("utf-8", "backslashreplace") + b"\0"


def parse_reply(data: bytes) -> bytes:
    """The content of a reply; raises the error that it reports."""
    if data.startswith(b"0\0"):
        return data[2:]
    if not data:
        raise DaemonAccessError("The daemon gave no answer")
    if not data.startswith(b"2\0"):
        raise DaemonAccessError(f"The daemon's answer is not understood: {printable(repr(data[:32]))}")
    fields = data[2:].split(b"\0")
    if len(fields) < 4 or fields[-1]:
        raise DaemonAccessError("The daemon's report of an error is cut off")
    name, _traceback, form, *args = (field.decode("utf-8", "backslashreplace") for field in fields[:-1])
    raise error_of(name, form, args)


def error_of(name: str, form: str, args: list[str]) -> CasemateError:
    """The error with that wire name; an unknown name becomes a plain CasemateError."""
    if name in _UNFORMATTED:
        text = form
    else:
        try:
            text = form % tuple(int(arg) if arg.isascii() and arg.isdecimal() else arg for arg in args)
        except (TypeError, ValueError, KeyError):
            text = form
    cls = _by_wire_name().get(name, CasemateError)
    error = cls.__new__(cls)
    CasemateError.__init__(error, text)
    return error


_errors: dict[str, type[CasemateError]] = {}


def _by_wire_name() -> Mapping[str, type[CasemateError]]:
    if not _errors:
        for cls in all_errors():
            _errors.setdefault(cls.wire_name, cls)
    return _errors


# ---------------------------------------------------------------------------------------------------------- events


class Event(Record):
    """One frame of a subscription; ``subject`` is a qube's name, or empty for the system."""

    subject: str
    name: str
    details: dict[str, str]


def build_event(subject: str, name: str, details: Mapping[str, str] | None = None) -> bytes:
    """The bytes of one frame; raises ProtocolError for one that clients cannot read."""
    tokens = [subject, name]
    for key, value in (details or {}).items():
        if not key:
            raise ProtocolError("a detail of an event has no name")
        tokens += (key, value)
    if not name:
        raise ProtocolError("an event has no name")
    parts = [token.encode("utf-8", "backslashreplace") for token in tokens]
    if any(b"\0" in part or len(part) >= MAX_TOKEN for part in parts):
        raise ProtocolError("a part of an event is too long or contains NUL")
    return b"1\0" + b"\0".join(parts) + b"\0\0"


class EventReader:
    """Cuts the bytes of a subscription into events; raises what an error reply in their place reports."""

    def __init__(self) -> None:
        self._data = b""
        self._started = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take some more bytes; the events that are complete now."""
        self._data += data
        while True:
            event = self._next()
            if event is None:
                return
            yield event

    def finish(self) -> None:
        """The stream has ended. Raises the error that was sent instead of events, or DaemonAccessError for half a
        frame."""
        if self._data or not self._started:
            parse_reply(self._data)
            raise DaemonAccessError("The daemon's events are cut off")

    def _next(self) -> Event | None:
        if len(self._data) < 2:
            return None
        if not self._data.startswith(b"1\0"):
            if self._started or self._data[:1] not in b"02":
                raise DaemonAccessError("The daemon's events are not understood")
            return None
        tokens: list[str] = []
        position = 2
        while True:
            end = self._data.find(b"\0", position)
            if end < 0:
                if len(self._data) - position > MAX_TOKEN:
                    raise DaemonAccessError("A part of the daemon's events is too long")
                return None
            token = self._data[position:end].decode("utf-8", "backslashreplace")
            position = end + 1
            if len(tokens) >= 2 and len(tokens) % 2 == 0 and not token:
                break
            tokens.append(token)
        if not tokens[1]:
            raise DaemonAccessError("The daemon's events are not understood")
        self._data = self._data[position:]
        self._started = True
        return Event(tokens[0], tokens[1], dict(zip(tokens[2::2], tokens[3::2], strict=True)))


# ------------------------------------------------------------------------------------------------ properties, lists


RESTORE_INCOMPLETE = "restore-incomplete"
"""The feature that marks a qube whose data has not arrived from a backup; its value is the process that restores it."""
PROHIBIT_START = "prohibit-start"
"""The feature that keeps a qube from being started; its value is the reason."""
NOT_RESTORED = "its data has not been restored from the backup"
"""That reason while a qube is restored."""
BACKUP_READER = "backup-restore-mgmt"
"""The tag of a disposable that reads a backup which is not trusted. The policy refuses all of its calls."""


class PropertyValue(Record):
    """A property on the wire. ``default`` says whether the value is the default; None where a reply does not tell."""

    default: bool | None
    tag: str
    text: str


def build_property(value: PropertyValue) -> str:
    """``default=True type=int 400``; without ``default=`` where that is not said."""
    start = "" if value.default is None else f"default={value.default} "
    return f"{start}type={value.tag} {value.text}"


def parse_property(line: str) -> PropertyValue:
    """The property in a daemon's reply to Get; raises DaemonAccessError."""
    default = None
    if line.startswith("default="):
        word, _, line = line[8:].partition(" ")
        default = word == "True"
    if not line.startswith("type="):
        raise DaemonAccessError("The daemon's value of a property is not understood")
    tag, _, text = line[5:].partition(" ")
    return PropertyValue(default, tag, text)


def escape(text: str) -> str:
    r"""Text for one line: backslash becomes ``\\``, a line feed ``\n``."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def unescape(text: str) -> str:
    """The text that ``escape`` was given."""
    out = []
    letters = iter(text)
    for letter in letters:
        if letter == "\\":
            following = next(letters, "")
            out.append("\n" if following == "n" else following)
        else:
            out.append(letter)
    return "".join(out)


def build_properties(values: Mapping[str, PropertyValue]) -> str:
    """The answer to GetAll: a line for each property."""
    return "".join(f"{name} {escape(build_property(value))}\n" for name, value in values.items())


def parse_properties(content: str) -> dict[str, PropertyValue]:
    """The properties in an answer to GetAll."""
    found = {}
    for line in content.split("\n"):
        if line:
            name, _, rest = line.partition(" ")
            found[name] = parse_property(unescape(rest))
    return found


class ListedQube(Record):
    """One line of ``admin.vm.List``."""

    name: str
    klass: str
    state: str
    uuid: str


def build_list(qubes: list[ListedQube]) -> str:
    """The answer to ``admin.vm.List``."""
    return "".join(f"{q.name} class={q.klass} state={q.state} uuid={q.uuid}\n" for q in qubes)


def parse_list(content: str) -> list[ListedQube]:
    """The qubes in an answer to ``admin.vm.List``; fields that are not known are skipped."""
    found = []
    for line in content.split("\n"):
        if line:
            name, *fields = line.split(" ")
            pairs = dict(field.partition("=")[::2] for field in fields)
            found.append(ListedQube(name, pairs.get("class", ""), pairs.get("state", ""), pairs.get("uuid", "")))
    return found
