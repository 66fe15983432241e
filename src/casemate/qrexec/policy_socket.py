"""The protocol of upstream's policy daemon: a qrexec daemon's question about a call, and the answer. No I/O.

A request is lines ``KEY=VALUE`` and an empty line. ``source``, ``intended_target`` and ``service_and_arg`` must be
there; ``assume_yes_for_ask``, ``just_evaluate`` (``yes`` or ``no``) and ``requested_source`` may. The answer is lines
up to the end of the connection: ``result=deny`` alone, or ``result=allow`` with what the daemon needs to make the
call. A request that is not understood gets no answer at all, which the daemon takes for a denial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from casemate.qrexec.decide import Asker, decide, decide_now
from casemate.qrexec.evaluate import Allow, Ask, Deny, SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.tokens import ADMIN, DISPOSABLE, HOST
from casemate.wire.errors import CallRefusedError, CasemateError, ProtocolError, printable
from casemate.wire.names import qube_name
from casemate.wire.qrexec import parse_call, requested_target

log = logging.getLogger(__name__)

MAX_REQUEST = 65536
MAX_ANSWER = 4096
END = b"\n\n"
DENY = b"result=deny\n"
_NEEDED = frozenset({"source", "intended_target", "service_and_arg"})
_FLAGS = {"yes": True, "no": False}


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """A parsed request."""

    source: str
    target: str
    service: str
    argument: str
    assume_yes: bool = False
    just_evaluate: bool = False
    requested_source: str | None = None


def parse_request(data: bytes) -> PolicyRequest:
    """A whole request, with its empty line; ProtocolError means: close the connection without an answer."""
    if len(data) > MAX_REQUEST or not data.endswith(END):
        raise ProtocolError("policy request is cut off or too long")
    found: dict[str, str] = {}
    try:
        for line in data[: -len(END)].decode("ascii").split("\n"):
            key, equals, value = line.partition("=")
            if not equals or key in found:
                raise ProtocolError(f"policy request: not a line, or twice: {printable(line, 80)!r}")
            found[key] = value
    except UnicodeDecodeError:
        raise ProtocolError("policy request is not ASCII") from None
    unknown = found.keys() - _NEEDED - {"assume_yes_for_ask", "just_evaluate", "requested_source"}
    if unknown or not found.keys() >= _NEEDED:
        raise ProtocolError(f"policy request has or lacks {printable(', '.join(unknown or _NEEDED - found.keys()))}")
    flags = [found.get(key, "no") for key in ("assume_yes_for_ask", "just_evaluate")]
    if any(flag not in _FLAGS for flag in flags):
        raise ProtocolError("policy request: a flag is yes or no")
    try:
        service, argument = parse_call(found["service_and_arg"])
        asked_for = found.get("requested_source")
        return PolicyRequest(
            _caller(found["source"]), requested_target(found["intended_target"]), service, argument or "",
            _FLAGS[flags[0]], _FLAGS[flags[1]], qube_name(asked_for) if asked_for else None,
        )  # fmt: skip
    except CasemateError as error:
        raise ProtocolError(f"policy request: {error}") from None


def _caller(text: str) -> str:
    return ADMIN if text in (ADMIN, HOST) else str(qube_name(text))


async def _nobody(_question: object) -> str:
    raise CallRefusedError("nobody is asked when a policy is just evaluated")


async def resolve(
    request: PolicyRequest, files: PolicyFiles, info: Callable[[], SystemInfo], asker: Asker
) -> Allow | Deny:
    """The decision about a request; the reason of a denial is for the log."""
    source = request.source
    if request.requested_source is not None:
        remote = info().find(request.requested_source)
        if remote is None or remote.klass != "RemoteVM" or remote.relayvm != source:
            return Deny(f"{source} is not the relay of {request.requested_source}")
        source = remote.name
    call = (source, request.service, request.argument, request.target)
    if request.assume_yes:
        found = decide_now(files, info(), *call)
        if not isinstance(found, Ask):
            return found
        wished = HOST if request.target == ADMIN else request.target
        return found.chosen(wished if wished in found.targets else found.default_target or found.targets[0])
    try:
        return await decide(files, info, _nobody if request.just_evaluate else asker, *call)
    except CallRefusedError as error:
        return Deny(str(error), notify=False, cause=error.cause)


def answer(decision: Allow | Deny, request: PolicyRequest, info: SystemInfo) -> bytes:
    """The lines for a decision."""
    if isinstance(decision, Deny):
        return DENY
    target = info.find(HOST if decision.target == ADMIN else decision.target)
    lines = [
        "result=allow",
        f"user={decision.user or 'DEFAULT'}",
        f"target={HOST if decision.target == ADMIN else decision.target}",
        f"requested_target={request.target}",
        f"autostart={decision.autostart}",
    ]
    if target is not None and not target.is_admin and not decision.target.startswith(DISPOSABLE):
        lines.append(f"target_uuid=uuid:{target.uuid}")
    if decision.call is not None:
        lines.append(f"service={decision.call[0]}+{decision.call[1]}")
    if request.requested_source is not None:
        lines.append(f"policy_source={request.requested_source}")
    data = "".join(f"{line}\n" for line in lines).encode("ascii")
    return data if len(data) <= MAX_ANSWER else DENY


Told = Callable[[PolicyRequest, Allow | Deny], None]
"""Called with each decision, for log, trace and user."""


def _log(request: PolicyRequest, decision: Allow | Deny) -> None:
    if isinstance(decision, Deny):
        call = f"{request.service}+{request.argument} of {request.source} to {request.target}"
        log.info("refused: %s: %s", call, printable(decision.reason))


async def serve_request(
    data: bytes, files: PolicyFiles, info: Callable[[], SystemInfo], asker: Asker, told: Told = _log
) -> bytes:
    """The answer to a whole request; empty, which means no, when it is not understood."""
    try:
        request = parse_request(data)
    except ProtocolError as error:
        log.warning("%s", error)
        return b""
    decision = await resolve(request, files, info, asker)
    told(request, decision)
    return answer(decision, request, info())
