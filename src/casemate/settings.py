"""The few settings of an installation, read from the environment; one directory holds all state."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from casemate.wire.errors import ValueInvalidError

HYPERVISORS = ("embed", "session", "system")


@dataclass(frozen=True)
class Settings:
    """Where things live and which hypervisor runs the qubes.

    ``state`` holds what must be kept (store, volumes, policy, kernels), ``run`` what dies with the host's uptime
    (sockets, pid files), ``cache`` what can be made again (built templates, probes), shared by all states.
    ``prefix`` starts the name of every libvirt domain of this state, so that two states never meet.
    """

    state: Path
    run: Path
    cache: Path
    hypervisor: str = "embed"
    prefix: str = "casemate-"

    @property
    def store_file(self) -> Path:
        """The collection of qubes."""
        return self.state / "qubes.xml"

    @property
    def api_socket(self) -> Path:
        """The Admin API's socket."""
        return self.run / "qubesd.sock"

    @property
    def policy_dir(self) -> Path:
        """Directory of the policy's ``*.policy`` files."""
        return self.state / "policy.d"

    def qube_run(self, name: str) -> Path:
        """Run-time directory of one running qube: its channel, link, database and console sockets."""
        return self.run / "qubes" / name

    def link_socket(self, name: str) -> Path:
        """Socket of a qube's link: one qrexec call per connection."""
        return self.qube_run(name) / "link.sock"

    def database_socket(self, name: str) -> Path:
        """Socket of a qube's database on the host."""
        return self.qube_run(name) / "qubesdb.sock"

    def environment(self) -> dict[str, str]:
        """The environment variables that make another process use these settings."""
        return {
            "CASEMATE_STATE": str(self.state),
            "CASEMATE_RUN": str(self.run),
            "CASEMATE_CACHE": str(self.cache),
            "CASEMATE_HYPERVISOR": self.hypervisor,
            "CASEMATE_PREFIX": self.prefix,
        }


def load(environ: dict[str, str] | None = None) -> Settings:
    """Settings from the environment: ``CASEMATE_STATE`` moves everything, the others move one thing each.

    As root the defaults are ``/var/lib/casemate``, ``/run/casemate`` and ``/var/cache/casemate``; as another user
    the XDG directories. Where only the state is named, run time lies in ``STATE/run``.
    """
    env = dict(os.environ) if environ is None else environ
    home = Path(env.get("HOME", "/"))
    root = os.geteuid() == 0
    default_state = (
        Path("/var/lib/casemate") if root else Path(env.get("XDG_DATA_HOME") or home / ".local/share") / "casemate"
    )
    state = Path(env.get("CASEMATE_STATE") or default_state)
    if env.get("CASEMATE_RUN"):
        run = Path(env["CASEMATE_RUN"])
    elif env.get("CASEMATE_STATE"):
        run = state / "run"
    elif root:
        run = Path("/run/casemate")
    else:
        run = Path(env["XDG_RUNTIME_DIR"]) / "casemate" if env.get("XDG_RUNTIME_DIR") else state / "run"
    default_cache = (
        Path("/var/cache/casemate") if root else Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "casemate"
    )
    hypervisor = env.get("CASEMATE_HYPERVISOR") or "embed"
    if hypervisor not in HYPERVISORS:
        raise ValueInvalidError(f"CASEMATE_HYPERVISOR must be one of {', '.join(HYPERVISORS)}, not {hypervisor!r}")
    return Settings(
        state=state.absolute(),
        run=run.absolute(),
        cache=Path(env.get("CASEMATE_CACHE") or default_cache).absolute(),
        hypervisor=hypervisor,
        prefix=env.get("CASEMATE_PREFIX") or "casemate-",
    )
