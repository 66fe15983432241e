"""Decides about a call: the policy, the system as it is, who calls what where. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.qrexec import tokens
from casemate.qrexec.rules import Action, Policy, Rule
from casemate.qrexec.tokens import ADMIN, DEFAULT, DISPOSABLE, Kind, Token
from casemate.wire.errors import CasemateError

if TYPE_CHECKING:
    from casemate.model.system import System

_CLASS_ADMIN = "AdminVM"


@dataclass(frozen=True, slots=True)
class QubeInfo:
    """What the policy may know of a qube."""

    name: str
    klass: str
    uuid: str
    tags: Collection[str] = ()
    default_dispvm: str | None = None
    template_for_dispvms: bool = False
    power_state: str = "Halted"
    internal: bool = False


class SystemInfo:
    """Finds qubes by ``NAME`` or ``uuid:UUID``; looks only at those it is asked for."""

    def __init__(self, find: Callable[[str], QubeInfo | None]) -> None:
        self.find = find

    @classmethod
    def fixed(cls, qubes: Iterable[QubeInfo]) -> SystemInfo:
        """A system that is just these qubes."""
        table: dict[str, QubeInfo] = {}
        for qube in qubes:
            table[qube.name] = table[f"uuid:{qube.uuid}"] = qube
        return cls(table.get)

    @classmethod
    def of(cls, system: System, state: Callable[[str], str]) -> SystemInfo:
        """The system of the store; ``state`` gives a qube's power state."""

        def find(text: str) -> QubeInfo | None:
            try:
                domain = system.domains.find(text)
            except CasemateError:
                return None
            dispvm = domain.default_dispvm if domain.has("default_dispvm") else None
            return QubeInfo(
                name=domain.name,
                klass=domain.klass,
                uuid=str(domain.uuid),
                tags=frozenset(domain.tags),
                default_dispvm=dispvm.name if dispvm is not None else None,
                template_for_dispvms=domain.has("template_for_dispvms") and bool(domain.template_for_dispvms),
                power_state=state(domain.name),
                internal=bool(domain.features.get("internal")),
            )

        return cls(find)


@dataclass(frozen=True, slots=True)
class Allow:
    """The call goes to ``target``: a name, ``@adminvm``, or ``@dispvm:NAME`` for a disposable to be made."""

    target: str
    user: str | None
    autostart: bool
    notify: bool
    rule: Rule


@dataclass(frozen=True, slots=True)
class Deny:
    """The call is refused. The reason is for the log and the user of the host, never for the caller."""

    reason: str
    rule: Rule | None = None
    notify: bool = True


class _Request:
    """A call with everything that tokens are compared with."""

    def __init__(self, info: SystemInfo, source: QubeInfo, target: str) -> None:
        self.info = info
        self.source = source
        self.target = target
        self.qube: QubeInfo | None = None
        """The qube that is asked for, or the template of the disposable."""
        if target == DISPOSABLE or target.startswith(DISPOSABLE + ":"):
            name = source.default_dispvm if target == DISPOSABLE else target[len(DISPOSABLE) + 1 :]
            self.qube = info.find(name) if name else None
        elif target == ADMIN:
            self.qube = info.find("dom0")
        elif target != DEFAULT:
            self.qube = info.find(target)

    def sources(self) -> list[str]:
        """All literals that mean the source."""
        return [ADMIN] if self.source.klass == _CLASS_ADMIN else [self.source.name, f"uuid:{self.source.uuid}"]

    def targets(self) -> list[str]:
        """All literals that mean the target."""
        prefix = DISPOSABLE + ":" if self.is_disposable else ""
        out = [self.target]
        if self.qube is not None and self.target != ADMIN:
            out += [prefix + self.qube.name, f"{prefix}uuid:{self.qube.uuid}"]
        return list(dict.fromkeys(out))

    @property
    def is_disposable(self) -> bool:
        return self.target.startswith(DISPOSABLE)

    def fits(self, rule: Rule) -> bool:
        """Compare the groups of a rule whose literals fit already."""
        return self._source_fits(rule.source) and self._target_fits(rule.target)

    def _source_fits(self, token: Token) -> bool:
        if token.kind is Kind.ANY:
            return self.source.klass != _CLASS_ADMIN
        return token.kind in (Kind.EXACT, Kind.ALL) or _group_fits(token, self.source)

    def _target_fits(self, token: Token) -> bool:
        if token.kind in (Kind.EXACT, Kind.ALL):
            return True
        if token.kind is Kind.ANY:
            return self.target != ADMIN
        if token.kind is Kind.DISPOSABLE_TAG:
            return self.is_disposable and self.qube is not None and token.value in self.qube.tags
        return not self.is_disposable and self.qube is not None and _group_fits(token, self.qube)


def _group_fits(token: Token, qube: QubeInfo) -> bool:
    if token.kind is Kind.TYPE:
        return qube.klass == token.value
    return token.kind is Kind.TAG and token.value in qube.tags


def evaluate(policy: Policy, info: SystemInfo, source: str, service: str, argument: str, target: str) -> Allow | Deny:
    """Decide. ``source`` is the qube of the channel, ``target`` what ``wire.qrexec.requested_target`` made of it."""
    caller = info.find("dom0" if source == ADMIN else source)
    if caller is None:
        return Deny("the source is not known")
    request = _Request(info, caller, _requested(info, target))
    if _same(request.qube, caller) and not request.is_disposable:
        return Deny("a qube cannot call itself")
    if request.target.startswith(DISPOSABLE + ":") and not _usable(request.qube):
        return Deny("not a template of disposables")
    for rule in policy.candidates(service, argument, request.sources(), request.targets()):
        if request.fits(rule):
            return _act(rule, request)
    return Deny("no rule fits")


def _requested(info: SystemInfo, target: str) -> str:
    """The target in one spelling; a qube that does not exist is as good as none."""
    if target.startswith("@"):
        return target
    found = info.find(target)
    if found is None:
        return DEFAULT
    return ADMIN if found.klass == _CLASS_ADMIN else found.name


def _same(qube: QubeInfo | None, other: QubeInfo) -> bool:
    return qube is not None and qube.name == other.name


def _usable(template: QubeInfo | None) -> bool:
    return template is not None and template.template_for_dispvms


def _act(rule: Rule, request: _Request) -> Allow | Deny:
    if rule.action is Action.DENY:
        return Deny(f"denied by {rule.place}", rule, rule.notify)
    if rule.action is Action.ASK:
        return Deny(f"ask is not supported yet ({rule.place})", rule)
    final = request
    if rule.redirect is not None:
        final = _Request(request.info, request.source, rule.redirect)
    if final.target == DEFAULT:
        return Deny(f"{rule.place} allows the call and names no target for it", rule)
    if final.is_disposable:
        if not _usable(final.qube) or final.qube is None:
            return Deny(f"{rule.place}: there is no template for the disposable", rule)
        if not rule.autostart:
            return Deny(f"{rule.place}: autostart=no, and a disposable does not run yet", rule)
        return Allow(f"{tokens.DISPOSABLE}:{final.qube.name}", rule.user, rule.autostart, rule.notify, rule)
    if final.qube is None:
        return Deny(f"{rule.place}: the target does not exist", rule)
    if _same(final.qube, request.source):
        return Deny("a qube cannot call itself", rule)
    if final.qube.klass == _CLASS_ADMIN:
        return Allow(ADMIN, rule.user, rule.autostart, rule.notify, rule)
    if not rule.autostart and final.qube.power_state != "Running":
        return Deny(f"{rule.place}: autostart=no, and the target does not run", rule)
    return Allow(final.qube.name, rule.user, rule.autostart, rule.notify, rule)
