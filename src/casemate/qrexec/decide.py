"""A whole decision: evaluate the policy, ask a person if a rule says so, and evaluate again after the answer."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from casemate.qrexec.evaluate import BROKEN_POLICY, NOT_CHOSEN, Allow, Ask, Decision, Deny, SystemInfo, evaluate
from casemate.qrexec.files import PolicyFiles
from casemate.wire.errors import PolicyError

log = logging.getLogger(__name__)

API_SERVICES = ("admin.", "policy.")
"""Beginnings of the services that this host's daemon serves itself, whatever qube they are asked of."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a person is asked. All fields are validated names; nothing in them is free text of a qube."""

    source: str
    service: str
    argument: str
    targets: tuple[str, ...]
    default_target: str | None = None
    icons: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """As upstream's ``policy.Ask`` has it."""
        return {
            "source": self.source,
            "service": self.service,
            "argument": f"+{self.argument}",
            "targets": list(self.targets),
            "default_target": self.default_target or "",
            "icons": self.icons,
        }


Asker = Callable[[Question], Awaitable[str]]
"""Asks a person; gives the chosen target. CallRefusedError says why there is no answer that allows the call."""


def decide_now(files: PolicyFiles, info: SystemInfo, source: str, service: str, argument: str, target: str) -> Decision:
    """What the policy says, without asking anybody."""
    try:
        policy = files.current()
    except PolicyError as error:
        return Deny(str(error), cause=BROKEN_POLICY)
    return evaluate(policy, info, source, service, argument, target)


async def decide(
    files: PolicyFiles,
    info: Callable[[], SystemInfo],
    asker: Asker,
    source: str,
    service: str,
    argument: str,
    target: str,
) -> Allow | Deny:
    """What the policy says, and where it says ``ask``, a person.

    The answer counts only if it is in the list, and if the policy as it is then, with the system as it is then,
    would still ask and offer it, or allows just that.
    """
    first = decide_now(files, info(), source, service, argument, target)
    if not isinstance(first, Ask):
        return first
    if first.rule.default_target is not None and first.default_target is None:
        log.warning("%s: default_target=%s is not among the targets", first.rule.location, first.rule.default_target)
    question = Question(source, service, argument, first.targets, first.default_target, dict(first.icons))
    chosen = await asker(question)
    answer = first.chosen(chosen)
    if isinstance(answer, Deny):
        return Deny(answer.reason, first.rule, notify=False, cause=NOT_CHOSEN)
    now = decide_now(files, info(), source, service, argument, target)
    if isinstance(now, Ask):
        now = now.chosen(chosen)
    if isinstance(now, Deny):
        return Deny(
            f"while a person was asked the policy or a qube has changed: {now.reason}", now.rule, cause=now.cause
        )
    if now.target != answer.target:
        return Deny("while a person was asked the policy changed and allows another target", now.rule)
    return now


def is_api_call(service: str, decision: Allow) -> bool | None:
    """Whether the API serves an allowed call; None for other services.

    A rule that lets a qube use all services of another qube was not meant to make it that qube's master: only a rule
    that names the service, or whose target is the host, says that.
    """
    if not service.startswith(API_SERVICES) or decision.remote is not None:
        return None
    return decision.target in ("@adminvm", "dom0") or decision.rule.service is not None


class Permissions:
    """Answers for the Admin API whether the policy lets a qube make one of its calls; asks nobody."""

    def __init__(self, files: PolicyFiles, info: Callable[[], SystemInfo]) -> None:
        self._files = files
        self._info = info

    def allows(self, source: str, service: str, argument: str, target: str) -> bool:
        """True only where a rule allows the call. ``ask`` counts as no, a policy that cannot be read allows nothing."""
        found = decide_now(self._files, self._info(), source, service, argument, target)
        return isinstance(found, Allow) and is_api_call(service, found) is True
