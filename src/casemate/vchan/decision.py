"""Asks the policy whether a call may be made: over the policy daemon's socket, or a program where there is none."""

from __future__ import annotations

import errno
import os
import signal
import socket

from casemate.calls.children import Children
from casemate.streams.deadlines import Deadlines
from casemate.streams.loop import READ, Loop
from casemate.wire.errors import ProtocolError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[["Decision"], None]

SOCKET = "/var/run/qubes/policy.sock"
MAX_ANSWER = 4096
SECONDS = 600.0
"""Seconds that a decision may take: a person may have to be asked."""
REQUESTED_SOURCE = "QREXEC_REQUESTED_SOURCE"
"""Variable of the policy program: the qube that a relay speaks for."""
_FULL_ATTEMPTS, _FULL_PAUSE = 500, 0.02
_WANTED = ("user", "target", "requested_target", "autostart")
_KNOWN = frozenset((*_WANTED, "target_uuid", "service", "policy_source"))


class Decision:
    """What the policy says: ``allow`` and how, or the reason of the refusal."""

    __slots__ = (
        "allow",
        "autostart",
        "policy_source",
        "reason",
        "requested_target",
        "service",
        "target",
        "target_uuid",
        "user",
    )

    def __init__(self, reason: str = "", fields: dict[str, str] | None = None) -> None:
        fields = fields or {}
        self.allow = bool(fields)
        self.reason = reason
        self.user = fields.get("user", "")
        self.target = fields.get("target", "")
        self.target_uuid = fields.get("target_uuid", "").removeprefix("uuid:")
        self.requested_target = fields.get("requested_target", "")
        self.autostart = fields.get("autostart") == "True"
        self.service = fields.get("service", "")
        self.policy_source = fields.get("policy_source", "")
        """Who the service is told that calls, where a relay speaks for a qube on another machine; empty: the source."""


def parse_answer(data: bytes) -> Decision:
    """The policy daemon's answer; ProtocolError when it is none."""
    if len(data) > MAX_ANSWER or b"\0" in data:
        raise ProtocolError("answer of the policy is too long or has a NUL in it")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("answer of the policy is not ASCII") from None
    fields: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):
        key, equals, value = line.partition("=")
        if not equals or key in fields or key not in _KNOWN | {"result"}:
            raise ProtocolError(f"answer of the policy has a line {printable(line, 60)!r}")
        fields[key] = value
    result = fields.pop("result", "")
    if result == "deny" and not fields:
        return Decision("denied by policy")
    if result != "allow" or any(not fields.get(key) for key in _WANTED):
        raise ProtocolError("answer of the policy is incomplete")
    if fields["autostart"] not in ("True", "False"):
        raise ProtocolError("answer of the policy has a bad autostart")
    return Decision(fields=fields)


class Policy:
    """Asks the policy daemon that listens at ``path``; where none does, runs ``program``, if there is one.

    Each question is answered exactly once, by ``answer``. Whatever goes wrong is a refusal.
    """

    def __init__(self, loop: Loop, children: Children, path: str, program: str = "") -> None:
        self._loop = loop
        self._children = children
        self._path = path
        self._program = program
        self._deadlines = Deadlines(loop, SECONDS)

    def decide(self, source: str, requested_source: str, target: str, call: str, answer: Answer) -> None:
        """Ask about a call of ``source``; ``call`` is ``SERVICE`` or ``SERVICE+ARGUMENT``, as the caller said it.

        The policy daemon is always told a ``+``, a program what the caller said, as upstream's daemon does.
        """
        target = target or "@default"
        full = call if "+" in call else call + "+"
        lines = [f"source={source}", f"intended_target={target}", f"service_and_arg={full}"]
        if requested_source:
            lines.append(f"requested_source={requested_source}")
        self._connect("\n".join(lines).encode() + b"\n\n", (source, requested_source, target, call), answer, 0)

    def _connect(self, request: bytes, words: tuple[str, str, str, str], answer: Answer, attempt: int) -> None:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as error:  # no descriptors
            answer(Decision(f"the policy cannot be asked: {error.strerror}"))
            return
        sock.setblocking(False)
        number = sock.connect_ex(self._path) if self._path else errno.ENOENT
        if number == errno.EAGAIN and attempt < _FULL_ATTEMPTS:
            sock.close()
            self._loop.later(_FULL_PAUSE, lambda: self._connect(request, words, answer, attempt + 1))
            return
        try:
            if number == 0 and sock.send(request) == len(request):
                fd = sock.detach()
                self._read(fd, lambda data: self._socket_answered(data, words, answer))
                return
            why = os.strerror(number) if number else "it takes no more"
        except OSError as error:
            why = error.strerror or "lost"
        sock.close()
        self._run(f"the policy daemon cannot be asked: {why}", words, answer)

    def _socket_answered(self, data: bytes, words: tuple[str, str, str, str], answer: Answer) -> None:
        try:
            decision = parse_answer(data)
        except ProtocolError as error:
            self._run(str(error), words, answer)
        else:
            answer(decision)

    def _run(self, why: str, words: tuple[str, str, str, str], answer: Answer) -> None:
        source, requested_source, target, call = words
        if not self._program:
            answer(Decision(why))
            return
        # Upstream's program has no argument for the source that a relay speaks for, and decides about the relay itself,
        # which could ask in its own name as well. Ours finds it in the environment.
        environment = dict(os.environ)
        environment.pop(REQUESTED_SOURCE, None)
        if requested_source and requested_source != source:
            environment[REQUESTED_SOURCE] = requested_source
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            answer(Decision(f"the policy cannot be asked: {error.strerror}"))
            return
        try:
            pid = os.posix_spawn(
                self._program,
                [self._program, "--", source, target, call],
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)],
                setsigdef=(signal.SIGPIPE,),
            )
        except OSError as error:
            os.close(reading)
            answer(Decision(f"{self._program}: {error.strerror}"))
            return
        finally:
            os.close(writing)
        found: list[bytes | int] = []

        def part(value: bytes | int) -> None:
            found.append(value)
            if len(found) == 2:
                status = next(item for item in found if isinstance(item, int))
                data = next(item for item in found if isinstance(item, bytes))
                try:
                    answer(parse_answer(data) if status == 0 else Decision(f"{self._program}: status {status}"))
                except ProtocolError as error:
                    answer(Decision(f"{self._program}: {error}"))

        self._children.add(pid, part)
        self._read(reading, part)

    def _read(self, fd: int, on_end: Callable[[bytes], None]) -> None:
        """Read to the end of the file, or until there is more than an answer may have, and call ``on_end`` with it.

        It gets no bytes at all when the deadline comes first, which is no answer either.
        """
        os.set_blocking(fd, False)
        data = bytearray()

        def end(result: bytes) -> None:
            self._deadlines.discard(data_of)
            self._loop.unwatch(fd)
            os.close(fd)
            on_end(result)

        def ready(_mask: int) -> None:
            try:
                more = os.read(fd, MAX_ANSWER + 1)
            except BlockingIOError:
                return
            except OSError:
                more = b""
            data.extend(more)
            if not more or len(data) > MAX_ANSWER:
                end(bytes(data))

        data_of = object()
        self._deadlines.add(data_of, lambda: end(b""))
        self._loop.watch(fd, READ, ready)
