"""Decides about a call from the policy and the system: Allow, Deny, or Ask a person. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from casemate.qrexec import tokens
from casemate.qrexec.rules import Action, Policy, Rule
from casemate.qrexec.tokens import ADMIN, DEFAULT, DISPOSABLE, Kind, Token
from casemate.wire import names
from casemate.wire.errors import CasemateError

POLICY, BROKEN_POLICY, NOT_CHOSEN = "policy", "broken policy", "ask denied"
"""Causes of a denial, for the log and the trace."""
_CLASS_ADMIN = "AdminVM"
_CLASS_REMOTE = "RemoteVM"


@dataclass(frozen=True)
class QubeInfo:
    """What the policy may know of a qube. The words that mean it in a rule are worked out once."""

    name: str
    klass: str
    uuid: str
    tags: Collection[str] = ()
    default_dispvm: str | None = None
    template_for_dispvms: bool = False
    power_state: str = "Halted"
    internal: bool = False
    icon: str = ""
    relayvm: str | None = None
    transport_rpc: str | None = None
    remote_name: str | None = None

    @cached_property
    def _groups(self) -> tuple[str, ...]:
        return (f"{Kind.TYPE.value}:{self.klass}", *(f"{Kind.TAG.value}:{tag}" for tag in self.tags))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return (ADMIN,) if self.is_admin else (self.name, f"uuid:{self.uuid}")

    @cached_property
    def is_admin(self) -> bool:
        """Whether this is the host."""
        return self.klass == _CLASS_ADMIN

    @cached_property
    def source_words(self) -> tuple[str, ...]:
        """All sources of rules that fit a call of this qube."""
        any_qube = () if self.is_admin else (Kind.ANY.value,)
        return (*self._names, Kind.ALL.value, *any_qube, *self._groups)

    @cached_property
    def target_words(self) -> tuple[str, ...]:
        """All targets of rules that fit a call to this qube by its name or UUID."""
        return self.source_words

    @cached_property
    def keyword_words(self) -> tuple[str, ...]:
        """All targets of rules that fit a call to ``@adminvm``: as for upstream, rules for a class or a tag do not,
        though they fit a call to ``dom0``."""
        return (*self._names, Kind.ALL.value)

    @cached_property
    def disposable_words(self) -> tuple[str, ...]:
        """All targets of rules that fit a call to a disposable of this qube, by its name."""
        own = (f"{DISPOSABLE}:{name}" for name in self._names)
        tags = (f"{Kind.DISPOSABLE_TAG.value}:{tag}" for tag in self.tags if self.template_for_dispvms)
        return (*own, Kind.ALL.value, Kind.ANY.value, *tags)


def _halted(name: str) -> str:
    return "Halted"


class SystemInfo:
    """Finds qubes by ``NAME`` or ``uuid:UUID``; looks only at those it is asked for."""

    def __init__(
        self,
        find: Callable[[str], QubeInfo | None],
        everyone: Callable[[], Iterable[QubeInfo]] = tuple,
        state: Callable[[str], str] | None = None,
    ) -> None:
        self.find = find
        self.everyone = everyone
        """All qubes; only asked for where a list of targets is to be shown."""
        self._state = state

    def is_running(self, qube: QubeInfo) -> bool:
        """Whether a qube runs now."""
        return (qube.power_state if self._state is None else self._state(qube.name)) == "Running"

    @classmethod
    def fixed(cls, qubes: Iterable[QubeInfo]) -> SystemInfo:
        """A system that is just these qubes."""
        found = tuple(qubes)
        table: dict[str, QubeInfo] = {}
        for qube in found:
            table[qube.name] = table[f"uuid:{qube.uuid}"] = qube
        return cls(table.get, lambda: found)


@dataclass(frozen=True, slots=True)
class Allow:
    """The call goes to ``target``: a name, ``@adminvm``, or ``@dispvm:NAME`` for a disposable to be made.

    ``remote`` is the qube on another machine that is meant; ``target`` is then its relay, and ``call`` is what the
    relay is asked for, service and argument, instead of what the caller asked for.
    """

    target: str
    user: str | None
    autostart: bool
    notify: bool
    rule: Rule
    remote: str | None = None
    call: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Deny:
    """The call is refused. The reason is for the log and the user of the host, never for the caller."""

    reason: str
    rule: Rule | None = None
    notify: bool = True
    cause: str = POLICY


@dataclass(frozen=True, slots=True)
class Ask:
    """A person decides. ``targets`` are what may be chosen, sorted: names, ``dom0``, ``@dispvm:NAME``."""

    rule: Rule
    targets: tuple[str, ...]
    default_target: str | None
    icons: Mapping[str, str]
    """The name of the icon of each target and of the source."""
    final: Mapping[str, Allow]
    """What the decision will be for each target."""

    def chosen(self, target: str) -> Allow | Deny:
        """The decision once a person has chosen; only what is in the list can be."""
        found = self.final.get(target)
        return (
            found if found is not None else Deny(f"{self.rule.location}: what was chosen is not in the list", self.rule)
        )


Decision = Allow | Deny | Ask


class _Request:
    """A call with everything that is looked up for it."""

    def __init__(self, info: SystemInfo, source: QubeInfo, target: str) -> None:
        self.info = info
        self.source = source
        self.target = target
        self.qube: QubeInfo | None = None
        """The qube that is asked for, or the template of the disposable."""
        self.by_keyword = False
        """Whether the host was asked for as ``@adminvm``, not by its name."""
        self.is_disposable = target.startswith(DISPOSABLE)
        if self.is_disposable:
            name = source.default_dispvm if target == DISPOSABLE else target[len(DISPOSABLE) + 1 :]
            self.qube = info.find(name) if name else None
        elif target == ADMIN:
            self.qube = info.find("dom0")
        elif target != DEFAULT:
            self.qube = info.find(target)

    def words(self) -> tuple[str, ...]:
        """All targets of rules that fit."""
        if self.qube is None:
            return (self.target, Kind.ALL.value, *(() if self.target == ADMIN else (Kind.ANY.value,)))
        if not self.is_disposable:
            return self.qube.keyword_words if self.by_keyword else self.qube.target_words
        words = self.qube.disposable_words
        return (DISPOSABLE, *words) if self.target == DISPOSABLE else words


def evaluate(policy: Policy, info: SystemInfo, source: str, service: str, argument: str, target: str) -> Decision:
    """Decide. ``source`` is the qube of the channel, ``target`` what ``wire.qrexec.requested_target`` made of it."""
    caller = info.find("dom0" if source == ADMIN else source)
    if caller is None:
        return Deny("the source is not known")
    request = _Request(info, caller, _requested(info, target))
    request.by_keyword = target == ADMIN
    if request.target.startswith(DISPOSABLE + ":") and not _usable(request.qube):
        return Deny("not a template of disposables")
    rule = policy.first(service, argument, caller.source_words, request.words())
    if rule is None:
        return Deny("no rule fits")
    if rule.action is Action.DENY:
        return Deny(f"denied by {rule.location}", rule, rule.notify)
    if rule.action is Action.ALLOW:
        return _final(rule, request, rule.redirect or request.target, service, argument)
    return _ask(policy, rule, request, service, argument)


def _requested(info: SystemInfo, target: str) -> str:
    """The target in one spelling. A qube that does not exist counts as no target: nobody can probe for names."""
    if target.startswith("@"):
        return target
    found = info.find(target)
    if found is None:
        return DEFAULT
    return ADMIN if found.is_admin else found.name


def _same(qube: QubeInfo | None, other: QubeInfo) -> bool:
    return qube is not None and qube.name == other.name


def _usable(template: QubeInfo | None) -> bool:
    return template is not None and template.template_for_dispvms


def _final(rule: Rule, request: _Request, target: str, service: str, argument: str) -> Allow | Deny:
    """What comes of a call that may go to ``target``."""
    final = request if target == request.target else _Request(request.info, request.source, target)
    if final.target == DEFAULT:
        return Deny(f"{rule.location} allows the call and names no target for it", rule)
    if final.is_disposable:
        if not _usable(final.qube) or final.qube is None:
            return Deny(f"{rule.location}: there is no template for the disposable", rule)
        if not rule.autostart:
            return Deny(f"{rule.location}: autostart=no, and a disposable does not run yet", rule)
        return Allow(f"{DISPOSABLE}:{final.qube.name}", rule.user, rule.autostart, rule.notify, rule)
    if final.qube is None:
        return Deny(f"{rule.location}: the target does not exist", rule)
    if _same(final.qube, request.source):
        return Deny("a qube cannot call itself", rule)
    if final.qube.is_admin:
        return Allow(ADMIN, rule.user, rule.autostart, rule.notify, rule)
    runs = final.qube
    allow = Allow(runs.name, rule.user, rule.autostart, rule.notify, rule)
    if final.qube.klass == _CLASS_REMOTE:
        relayed = _relayed(rule, request, final.qube, service, argument)
        if isinstance(relayed, Deny):
            return relayed
        runs, allow = relayed
    if not rule.autostart and not request.info.is_running(runs):
        return Deny(f"{rule.location}: autostart=no, and the target does not run", rule)
    return allow


def _relayed(
    rule: Rule, request: _Request, remote: QubeInfo, service: str, argument: str
) -> Deny | tuple[QubeInfo, Allow]:
    """A call to a qube on another machine goes to its relay, as a call of the service that carries it there."""
    # The user of the rule is the remote qube's, which the relay knows nothing of; the relay's own is not changed.
    relay = request.info.find(remote.relayvm) if remote.relayvm else None
    if relay is None or relay.klass in (_CLASS_ADMIN, _CLASS_REMOTE) or not remote.transport_rpc:
        return Deny(
            f"{rule.location}: {remote.name} has no relay (relayvm, transport_rpc) that could carry calls", rule
        )
    if _same(relay, request.source):
        return Deny(f"{rule.location}: the relay of {remote.name} would call itself", rule)
    transport, _, prefix = remote.transport_rpc.partition("+")
    words = [*([prefix] if prefix else []), remote.remote_name or remote.name, service, argument]
    try:
        call = str(names.service_name(transport)), str(names.argument("+".join(words)))
    except CasemateError as error:
        return Deny(f"{rule.location}: the call cannot be carried to {remote.name}: {error}", rule)
    return relay, Allow(relay.name, None, rule.autostart, rule.notify, rule, remote.name, call)


def _ask(policy: Policy, rule: Rule, request: _Request, service: str, argument: str) -> Ask | Deny:
    if rule.redirect is not None:
        wanted = [rule.redirect]
    else:
        wanted = _targets(policy, request, service, argument)
    final: dict[str, Allow] = {}
    icons = {request.source.name: request.source.icon}
    for target in wanted:
        shown = _shown(request, target)
        if shown is None:
            continue
        decision = _final(rule, request, ADMIN if shown == tokens.HOST else shown, service, argument)
        if isinstance(decision, Allow):
            final[shown] = decision
            found = request.info.find(shown.removeprefix(DISPOSABLE + ":"))
            icons[shown] = found.icon if found is not None else ""
    if not final:
        return Deny(f"{rule.location}: there is nothing that could be chosen as a target", rule)
    default = _shown(request, rule.default_target) if rule.default_target is not None else None
    return Ask(rule, tuple(sorted(final)), default if default in final else None, icons, final)


def _shown(request: _Request, target: str) -> str | None:
    """A target as a person sees it: ``dom0``, a name or ``@dispvm:NAME``; None for what does not exist."""
    found = _Request(request.info, request.source, target).qube
    if found is None:
        return None
    return f"{DISPOSABLE}:{found.name}" if target.startswith(DISPOSABLE) else found.name


def _targets(policy: Policy, request: _Request, service: str, argument: str) -> list[str]:
    """All targets that the rules let this caller reach with this service.

    Rules are applied from the last to the first, each adding or removing the targets it names, so that an earlier rule
    overrides a later one, as it does in a decision.
    """
    found: set[str] = set()
    for rule in reversed(policy.of_source(service, argument, request.source.source_words)):
        if rule.action is Action.DENY:
            found -= set(_meant(request, rule.target))
        elif rule.redirect is not None:
            found |= set(_meant(request, Token(Kind.EXACT, rule.redirect)))
        else:
            found |= set(_meant(request, rule.target))
    if DISPOSABLE in found:
        # The default disposable, if the caller may ask for that.
        found.remove(DISPOSABLE)
        default = _Request(request.info, request.source, DISPOSABLE)
        first = policy.first(service, argument, request.source.source_words, default.words())
        if default.qube is not None and (first is None or first.action is not Action.DENY):
            found.add(f"{DISPOSABLE}:{default.qube.name}")
    return sorted(found)


def _meant(request: _Request, token: Token) -> Iterable[str]:
    """The targets that a token stands for, without the caller itself and without qubes that are not shown.

    ``@dispvm`` stays as it is: to forbid the default disposable is not to forbid the one of a template by name.
    """
    if token.kind in (Kind.ALL, Kind.ANY) or token.value == DISPOSABLE:
        yield DISPOSABLE
    if token.kind is Kind.EXACT:
        if token.value == DISPOSABLE:
            return
        shown = _shown(request, token.value) if token.value != DEFAULT else None
        found = request.info.find(shown.removeprefix(DISPOSABLE + ":")) if shown is not None else None
        if shown is None or found is None or found.internal or shown == request.source.name:
            return
        yield shown
        return
    for qube in request.info.everyone():
        if qube.internal:
            continue
        if qube.name != request.source.name and str(token) in qube.target_words:
            yield qube.name
        if qube.template_for_dispvms and str(token) in qube.disposable_words:
            yield f"{DISPOSABLE}:{qube.name}"
