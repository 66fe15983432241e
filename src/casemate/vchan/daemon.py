"""casemate-qrexecd: qrexec for many domains over vchan in one process; what upstream has a daemon per domain for.

    casemate-qrexecd [OPTIONS] [DOMID:NAME[:UUID[:DEFAULT-USER]] ...]

Options: --socket-dir=DIR  --control=PATH  --policy-socket=PATH  --policy-program=PATH (-p)  --admin-socket=PATH
Domains come and go at the control socket (DIR/casemate-qrexecd.sock): ``add DOMID NAME [UUID [USER]]``, ``remove
DOMID``, ``list``.
"""

from __future__ import annotations

import os
import sys

from casemate.calls.children import Children
from casemate.calls.vchan_sockets import Connector, SocketDirectory
from casemate.streams.loop import Loop
from casemate.vchan.admin_api import SOCKET as ADMIN_SOCKET
from casemate.vchan.admin_api import AdminApi, created
from casemate.vchan.agent import Accounts
from casemate.vchan.call import Served, service_of
from casemate.vchan.decision import SOCKET as POLICY_SOCKET
from casemate.vchan.decision import Decision, Policy
from casemate.vchan.domain import Domain, Request, call_text
from casemate.vchan.program import Log, many_files, serve
from casemate.vchan.registry import Registry
from casemate.wire.errors import CasemateError, ProtocolError, ValueInvalidError, printable
from casemate.wire.names import number
from casemate.wire.qrexec import EXEC_CMDLINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SOCKET_DIR = "/var/run/qubes"
HOST = 0
HOST_NAMES = ("dom0", "@adminvm")
DISPOSABLE = "@dispvm:"
START_SECONDS = 300.0
"""How long a call waits for the agent of a domain that was started for it."""
SERVICE_SECONDS = 5.0
"""How long a service of this host waits for its caller, as in upstream."""


class Daemon:
    """All domains, and what joins calls between them."""

    def __init__(
        self,
        loop: Loop,
        vchans: SocketDirectory,
        socket_dir: str,
        policy_socket: str = POLICY_SOCKET,
        policy_program: str = "",
        admin_socket: str = ADMIN_SOCKET,
    ) -> None:
        self._loop = loop
        self._vchans = vchans
        self._socket_dir = socket_dir
        children = Children(loop)
        self._policy = Policy(loop, children, policy_socket, policy_program)
        self._admin = AdminApi(loop, admin_socket)
        self._accounts = Accounts()
        self._connector = Connector(loop, vchans.directory, None)
        # What a service of this host says on stderr is for our log, never for a qube.
        self._served = Served(loop, children, vchans.directory, say, True, SERVICE_SECONDS, account_of=self._accounts)
        self.domains: dict[int, Domain] = {}
        self._by_name: dict[str, Domain] = {}
        self._waiting: dict[str, list[_Start]] = {}
        self._asking: dict[int, list[Callable[[str], None]]] = {}

    # -- domains

    def add(self, domid: int, name: str, uuid: str = "", default_user: str = "") -> Domain:
        """Serve a domain; one that is served already stays."""
        known = self.domains.get(domid)
        if known is not None and known.name == name:
            return known
        if known is not None or name in self._by_name or domid == self._vchans.domain:
            raise ValueInvalidError(f"The domain {domid} or the name {printable(name, 40)!r} is taken")
        domain = Domain(
            self._loop,
            self._vchans,
            self._connector,
            self._socket_dir,
            domid,
            name,
            uuid,
            default_user,
            self._decide,
            self._is_up,
            say,
        )
        self.domains[domid] = domain
        self._by_name[name] = domain
        if domain.uuid:
            self._by_name["uuid:" + domain.uuid] = domain
        return domain

    def remove(self, domid: int) -> None:
        """Serve the domain no more; its calls under way are the agent's."""
        domain = self.domains.pop(domid, None)
        if domain is None:
            raise ValueInvalidError(f"No domain {domid}")
        for name in [name for name, found in self._by_name.items() if found is domain]:
            del self._by_name[name]
        domain.remove()
        for tell in self._asking.pop(domid, []):
            tell("removed")

    def when_up(self, domid: int, tell: Callable[[str], None]) -> None:
        """``tell("up")`` when the domain's agent is there, perhaps at once; ``tell("removed")`` when it cannot come."""
        domain = self.domains.get(domid)
        if domain is None:
            tell("removed")
        elif domain.up:
            tell("up")
        else:
            self._asking.setdefault(domid, []).append(tell)

    def close(self) -> None:
        """Take all names away."""
        for domid in list(self.domains):
            self.remove(domid)

    def _is_up(self, domain: Domain) -> None:
        for tell in self._asking.pop(domain.number, []):
            tell("up")
        for key in (domain.name, "uuid:" + domain.uuid):
            for start in self._waiting.pop(key, []):
                start.up(domain)

    # -- calls of domains

    def _decide(self, request: Request) -> None:
        asked = request.asked
        self._policy.decide(
            request.domain.name,
            asked.source,
            asked.target,
            asked.call,
            lambda decision: self._decided(request, decision),
        )

    def _decided(self, request: Request, decision: Decision) -> None:
        if request.over:
            return
        if not decision.allow:
            request.refuse(decision.reason)
        elif decision.target in HOST_NAMES:
            self._to_host(request, decision)
        elif decision.target.startswith(DISPOSABLE):
            self._to_disposable(request, decision, decision.target[len(DISPOSABLE) :])
        else:
            key = "uuid:" + decision.target_uuid if decision.target_uuid else decision.target
            target = self._by_name.get(key) or self._by_name.get(decision.target)
            if target is not None and target.up:
                self._to_domain(request, decision, target)
            elif decision.autostart:
                self._started(request, decision, decision.target)
            else:
                request.refuse(f"{printable(decision.target, 40)} does not run, and the policy says autostart=no")

    def _to_domain(self, request: Request, decision: Decision, target: Domain, dispose: str = "") -> None:
        source = request.domain

        def granted(port: int | None) -> None:
            if port is None or request.over or source.number not in self.domains:
                if port is not None:
                    target.ports.release(source.number, port)
                self._dispose(dispose)
                request.refuse("no free port")
                return
            service = decision.service or request.asked.full
            text = call_text(decision.user or "DEFAULT", service, decision.policy_source or source.name)
            # The target is told first, so that a target that takes no call can still be refused to the caller.
            if not target.execute(EXEC_CMDLINE, source.number, port, text):
                target.ports.release(source.number, port)
                self._dispose(dispose)
                request.refuse(f"the agent of {target.name} does not read")
                return
            source.ports.outgoing.add((target.number, port))
            if dispose:
                target.when_ended(source.number, port, lambda: self._dispose(dispose))
            request.connect(target.number, port)

        target.with_port(source.number, granted)

    def _to_host(self, request: Request, decision: Decision) -> None:
        source = request.domain
        user = self._accounts.own if decision.user in ("", "DEFAULT") else decision.user
        requested = decision.requested_target or request.asked.target or "@default"

        def granted(port: int | None) -> None:
            if port is None or request.over:
                if port is not None:
                    source.ports.release(HOST, port)
                request.refuse("no free port")
                return
            request.connect(HOST, port)
            call = decision.service or request.asked.full
            text = call_text(user, call, decision.policy_source or source.name, requested)
            service = service_of(text, user, self._accounts)
            self._served.serve(self._vchans.path(source.number, HOST, port), service, _nothing)

        source.with_port(HOST, granted)

    # -- domains that do not run

    def _started(self, request: Request, decision: Decision, name: str, dispose: str = "") -> None:
        start = _Start(self, request, decision, dispose)
        self._waiting.setdefault(name, []).append(start)

        def answered(why: str) -> None:
            if why:
                self._unstarted(name, start, f"{printable(name, 40)} cannot be started: {why}")

        self._loop.later(START_SECONDS, lambda: self._unstarted(name, start, f"the agent of {name} did not come"))
        self._admin.start(name, answered)

    def _unstarted(self, name: str, start: _Start, why: str) -> None:
        waiting = self._waiting.get(name, [])
        if start in waiting:
            waiting.remove(start)
            if not waiting:
                del self._waiting[name]
            self._dispose(start.dispose)
            start.request.refuse(why)

    def _to_disposable(self, request: Request, decision: Decision, template: str) -> None:
        def answered(data: bytes) -> None:
            name = created(data)
            if not name:
                request.refuse(f"no disposable of {printable(template, 40)} can be made")
            else:
                self._started(request, decision, name, dispose=name)

        self._admin.call("admin.vm.CreateDisposable", template, b"", answered)

    def _dispose(self, name: str) -> None:
        if name:
            self._admin.call("admin.vm.Kill", name, b"", lambda _answer: None)

    def go_on(self, start: _Start, domain: Domain) -> None:
        """The domain that a call waited for is there."""
        if start.request.over:
            self._dispose(start.dispose)
        else:
            self._to_domain(start.request, start.decision, domain, start.dispose)


class _Start:
    """A call that waits for its target to start."""

    __slots__ = ("_daemon", "decision", "dispose", "request")

    def __init__(self, daemon: Daemon, request: Request, decision: Decision, dispose: str) -> None:
        self._daemon = daemon
        self.request = request
        self.decision = decision
        self.dispose = dispose

    def up(self, domain: Domain) -> None:
        self._daemon.go_on(self, domain)


def _nothing() -> None:
    pass


say = Log("casemate-qrexecd")
"""The daemon's log."""


def parse_domain(text: str) -> tuple[int, str, str, str]:
    """``DOMID:NAME[:UUID[:USER]]``; ValueInvalidError."""
    words = text.split(":")
    if not 2 <= len(words) <= 4:
        raise ValueInvalidError(f"{printable(text, 80)!r} is not DOMID:NAME[:UUID[:USER]]")
    words += [""] * (4 - len(words))
    return number(words[0], "domain", 1, 0x7FEF), words[1], words[2], words[3]


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal ends it."""
    options = {"--socket-dir": SOCKET_DIR, "--policy-socket": POLICY_SOCKET, "--admin-socket": ADMIN_SOCKET}
    domains = []
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        while words:
            word = words.pop(0)
            option, equals, value = word.partition("=")
            if word == "-p" and words:
                options["--policy-program"] = words.pop(0)
            elif not word.startswith("-"):
                domains.append(parse_domain(word))
            elif equals and option in (*options, "--policy-program", "--control"):
                options[option] = value
            else:
                sys.stderr.write(__doc__ or "")
                return 2
        return _serve(options, domains)
    except (CasemateError, ProtocolError, OSError) as error:
        say(str(error))
        return 1


def _serve(options: dict[str, str], domains: list[tuple[int, str, str, str]]) -> int:
    many_files()
    vchans = SocketDirectory.of(os.environ)
    directory = options["--socket-dir"]
    for path in (vchans.directory, directory):
        os.makedirs(path, mode=0o750, exist_ok=True)
    loop = Loop()
    daemon = Daemon(
        loop,
        vchans,
        directory,
        options["--policy-socket"],
        options.get("--policy-program", ""),
        options["--admin-socket"],
    )
    registry = Registry(loop, options.get("--control") or f"{directory}/casemate-qrexecd.sock", daemon)
    try:
        for domain in domains:
            daemon.add(*domain)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        serve(loop, say)
    finally:
        daemon.close()
        registry.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
