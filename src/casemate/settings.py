"""The few settings of an installation, read from the environment; one directory holds all state.

::

    CASEMATE_STATE   what must be kept             qubes.xml, pools/, kernels/, policy.d/
    CASEMATE_RUN     what ends with the uptime     sockets, pid files, logs, qubes/NAME/ of each running qube
    CASEMATE_CACHE   what can be made again        built templates and packages, shared by all states

The daemon, the tools and the links read the same variables, so a whole installation moves with one of them. Several
states can run side by side; ``prefix`` keeps their machines apart in libvirt.

Which state a program means is one rule, the first that holds (`casemate status` says which it was):

1. ``--state DIR``, or ``CASEMATE_STATE`` (or ``CASEMATE_RUN``);
2. root: that of the whole host;
3. who is in the group ``qubes`` of a host where ``casemate interop install`` was run, or that has a state of the whole
   host (root's directory WHOLE_HOST, made when Casemate is installed as a package or root first uses it): that state,
   through the sockets that are open to the group. Its daemon is root's, so it is never started for them;
4. anybody else: one of his own, in his home.
"""

from __future__ import annotations

import os

from casemate.wire.errors import ValueInvalidError
from casemate.wire.upstream_paths import GROUP, MARK, RELEASE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import NoReturn

WHOLE_HOST = ("/var/lib/casemate", "/run/casemate", "/var/cache/casemate")
"""State, run-time directory and cache of the whole host's daemon."""
_SHARED_SOCKETS = "/var/run"
"""Where that daemon has its sockets for members of the group, as upstream's has."""
ROOT, OWN = "this host's, as you are root", "your own"
"""The origins of a state that nobody has named: ``Settings.origin``."""
BY_GROUP = f"this host's, as you are in the group {GROUP}"

HYPERVISORS = ("embed", "session", "system")
"""libvirt's driver inside the daemon, the user's libvirtd, or the system's."""


class Settings:
    """Where things live and which hypervisor runs the qubes. Immutable; equal when all of it is equal.

    ``state`` holds what must be kept (store, volumes, policy, kernels), ``run`` what dies with the host's uptime
    (sockets, pid files), ``cache`` what can be made again (built templates, probes), shared by all states.
    ``prefix`` starts the name of every libvirt domain of this state, so that two states never meet. ``origin`` says in
    words why it is this state.

    Paths are kept as text and become ``Path`` when asked for: importing dataclasses and pathlib would take a tool that
    only wants a socket's address longer than all the rest of its work.
    """

    __slots__ = ("_cache", "_run", "_state", "hypervisor", "origin", "prefix")

    _state: str
    _run: str
    _cache: str
    hypervisor: str
    prefix: str
    origin: str

    def __init__(
        self,
        state: Path | str,
        run: Path | str,
        cache: Path | str,
        hypervisor: str = "embed",
        prefix: str = "casemate-",
        origin: str = "given",
    ) -> None:
        for name, value in (
            ("_state", _plain(os.fspath(state))),
            ("_run", _plain(os.fspath(run))),
            ("_cache", _plain(os.fspath(cache))),
            ("hypervisor", hypervisor),
            ("prefix", prefix),
            ("origin", origin),
        ):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"settings do not change: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"settings do not change: {name}")

    def __reduce__(self) -> tuple[type[Settings], tuple[str, ...]]:
        return Settings, (*self._where(), self.origin)

    def _where(self) -> tuple[str, ...]:
        return (self._state, self._run, self._cache, self.hypervisor, self.prefix)

    def _key(self) -> tuple[str | bool, ...]:
        return (*self._where(), self.shared)  # the words of origin make no difference

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Settings) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        words = (*self._where(), self.origin)
        form = "Settings(state={!r}, run={!r}, cache={!r}, hypervisor={!r}, prefix={!r}, origin={!r})"
        return form.format(*words)

    @property
    def state(self) -> Path:
        """Directory of what must be kept."""
        from pathlib import Path

        return Path(self._state)

    @property
    def run(self) -> Path:
        """Directory of what dies with the host's uptime."""
        from pathlib import Path

        return Path(self._run)

    @property
    def cache(self) -> Path:
        """Directory of what can be made again."""
        from pathlib import Path

        return Path(self._cache)

    @property
    def store_file(self) -> Path:
        """The collection of qubes."""
        return self.state / "qubes.xml"

    @property
    def shared(self) -> bool:
        """Whether the daemon is another user's, whose sockets for a group we use. Only what the Admin API does is
        possible then: the sockets of qubes are closed to us."""
        return self.origin == BY_GROUP

    @property
    def api_address(self) -> str:
        """The path of the Admin API's socket, as text."""
        return f"{_SHARED_SOCKETS if self.shared else self._run}/qubesd.sock"

    @property
    def api_socket(self) -> Path:
        """The Admin API's socket, as ``Path``."""
        return self.run / "qubesd.sock"

    @property
    def internal_socket(self) -> Path:
        """The socket of ``internal.*``: calls of programs of this host that are not open to qubes."""
        return self.run / "qubesd.internal.sock"

    @property
    def misc_address(self) -> str:
        """The path, as text, of the socket on which programs hand on what a qube says of itself (``qubes.*``)."""
        return f"{_SHARED_SOCKETS if self.shared else self._run}/qubesd.misc.sock"

    @property
    def misc_socket(self) -> Path:
        """The socket on which programs of this host hand on what a qube says of itself (``qubes.*``)."""
        return self.run / "qubesd.misc.sock"

    @property
    def lease_socket(self) -> Path:
        """The socket on which a tool keeps the disposables that it asked for: they end with its connection."""
        return self.run / "leases.sock"

    @property
    def policy_dir(self) -> Path:
        """Directory of the policy's ``*.policy`` files."""
        return self.state / "policy.d"

    @property
    def policy_run_dir(self) -> Path:
        """Directory of policy files that replace those of the same name until the next boot."""
        return self.run / "policy.d"

    @property
    def policy_alarm(self) -> Path:
        """Says what is wrong with the policy, in one line; exists while the policy cannot be used."""
        return self.run / "policy.broken"

    @property
    def prompt_socket(self) -> Path:
        """The socket of programs that ask the user about calls."""
        return self.run / "prompt.sock"

    @property
    def trace_socket(self) -> Path:
        """The socket of programs that watch calls as they happen."""
        return self.run / "trace.sock"

    @property
    def policy_socket(self) -> Path:
        """The socket on which foreign qrexec daemons ask for decisions of the policy."""
        return self.run / "policy.sock"

    def qube_run(self, name: str) -> Path:
        """Run-time directory of one running qube: its channel, link, database and console sockets."""
        return self.run / "qubes" / name

    def qube_log(self, process: str, name: str) -> Path:
        """What a process of a qube has said: its ``link``, or its ``uplink``."""
        return self.run / "log" / f"{process}-{name}.log"

    def link_address(self, name: str) -> str:
        """The path of a qube's link's socket, as text."""
        return f"{self._run}/qubes/{name}/link.sock"

    def link_socket(self, name: str) -> Path:
        """Socket of a qube's link: one qrexec call per connection."""
        return self.qube_run(name) / "link.sock"

    def database_socket(self, name: str) -> Path:
        """Socket of a qube's database on the host."""
        return self.qube_run(name) / "qubesdb.sock"

    def environment(self) -> dict[str, str]:
        """The environment variables that make another process use these settings."""
        return {
            "CASEMATE_STATE": self._state,
            "CASEMATE_RUN": self._run,
            "CASEMATE_CACHE": self._cache,
            "CASEMATE_HYPERVISOR": self.hypervisor,
            "CASEMATE_PREFIX": self.prefix,
        }


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment: ``CASEMATE_STATE`` moves everything, the others move one thing each.

    For the whole host the defaults are WHOLE_HOST; for a user's own state the XDG directories of data and cache. Whose
    it is: the rule at the head of this module. Run time lies in ``STATE/run``, but for root's default state: every
    session of a user must find the same daemon. ``XDG_RUNTIME_DIR`` will not do, because ssh, cron and su come without
    it, and it is removed at the last logout, when qubes still run.
    """
    env = os.environ if environ is None else environ
    home = env.get("HOME") or "/"
    said, run = env.get("CASEMATE_STATE"), env.get("CASEMATE_RUN")
    if said or run:
        origin = "CASEMATE_STATE (or --state)" if said else "CASEMATE_RUN"
    elif os.geteuid() == 0:
        origin = ROOT
    else:
        origin = BY_GROUP if _host_is_meant() else OWN
    whole = os.geteuid() == 0 or origin == BY_GROUP
    state = said or (WHOLE_HOST[0] if whole else f"{env.get('XDG_DATA_HOME') or f'{home}/.local/share'}/casemate")
    if not run and not said and whole:
        run = WHOLE_HOST[1]
    cache = env.get("CASEMATE_CACHE") or (
        WHOLE_HOST[2] if whole else f"{env.get('XDG_CACHE_HOME') or f'{home}/.cache'}/casemate"
    )
    hypervisor = env.get("CASEMATE_HYPERVISOR") or "embed"
    if hypervisor not in HYPERVISORS:
        raise ValueInvalidError(f"CASEMATE_HYPERVISOR must be one of {', '.join(HYPERVISORS)}, not {hypervisor!r}")
    return Settings(
        state=_absolute(state),
        run=_absolute(run or f"{state}/run"),
        cache=_absolute(cache),
        hypervisor=hypervisor,
        prefix=env.get("CASEMATE_PREFIX") or "casemate-",
        origin=origin,
    )


def _host_is_meant() -> bool:
    """Whether this host is laid out for upstream's programs and this user is in their group.

    Also one who was put into the group after he logged in: his session does not have it yet, so that he is told to log
    in again, and gets no daemon of his own meanwhile.
    """
    try:
        with open(RELEASE, encoding="utf-8", errors="replace") as file:
            if MARK not in file.read(4096):
                return False
    except OSError:
        # Nobody but root can make the directory, so nobody can lead members to a daemon that is not root's.
        try:
            if os.stat(WHOLE_HOST[0]).st_uid != 0:  # noqa: PTH116
                return False
        except OSError:
            return False
    import grp
    import pwd

    try:
        group = grp.getgrnam(GROUP)
        return group.gr_gid in os.getgroups() or pwd.getpwuid(os.getuid()).pw_name in group.gr_mem
    except KeyError:
        return False


def _plain(path: str) -> str:
    """As ``Path`` writes it: no double slashes, no dots; nothing is resolved."""
    start = "/" if path.startswith("/") else ""
    return start + "/".join(part for part in path.split("/") if part not in ("", ".")) or "."


def _absolute(path: str) -> str:
    """As ``Path.absolute``: nothing is resolved, a symbolic link stays one."""
    return path if path.startswith("/") else f"{os.getcwd()}/{path}"  # noqa: PTH109
