"""An installation of its own for tests on real machines, driven by the tools as a user would."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from pathlib import Path

from casemate.cli.clean import clean_state, machines_of
from casemate.cli.template import default_suite
from casemate.settings import Settings, load
from casemate.streams.ready import readable
from casemate.wire.recipe import Recipe

BIN = Path(__file__).resolve().parents[2] / "bin"


TEMPLATE = Recipe(default_suite()).default_name
"""The template that ``casemate template build`` makes on this host: of its own Debian release."""


class World:
    """Tools, daemon and files of one state directory."""

    def __init__(self, directory: Path) -> None:
        self.settings = Settings(
            state=directory,
            run=directory / "run",
            cache=load().cache,
            hypervisor=os.environ.get("CASEMATE_HYPERVISOR") or "embed",
            prefix=f"casemate-test-{secrets.token_hex(3)}-",
        )
        self.environment = {**os.environ, **self.settings.environment(), "PATH": f"{BIN}:{os.environ['PATH']}"}

    def without_images(self) -> None:
        """Have all qubes boot: no machine and no file comes in the background while a test counts them."""
        self.run("qvm-features", "dom0", "casemate-warm", "")

    def run(
        self, *argv: str, status: int | None = 0, data: bytes = b"", timeout: float = 180
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a tool; its status must be ``status`` (None: any)."""
        done = subprocess.run(argv, env=self.environment, input=data, capture_output=True, timeout=timeout)
        assert status is None or done.returncode == status, (
            argv,
            done.returncode,
            done.stdout[-500:],
            done.stderr,
            self.log(),
        )
        return done

    def start(self, *argv: str, stdin: int = subprocess.DEVNULL, **options: object) -> subprocess.Popen[bytes]:
        """Start a tool and leave it running."""
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            argv,
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A shell in the background makes its programs ignore interrupts; a person's tools do not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            **options,
        )

    def inside(self, qube: str, command: str, user: str = "user", status: int | None = 0) -> str:
        """Output of a shell command in a qube."""
        return self.run("qvm-run", "--pass-io", "-u", user, qube, command, status=status).stdout.decode().strip()

    def state(self, qube: str) -> str:
        """The power state that qvm-ls shows."""
        out = self.run("qvm-ls", "--raw-data", "--fields", "name,state", qube).stdout.decode()
        return out.strip().split("|")[1]

    def qubes(self) -> list[str]:
        """Names of all qubes."""
        return self.run("qvm-ls", "--raw-list").stdout.decode().split()

    def machines(self) -> list[str]:
        """Names of the qubes whose QEMU runs."""
        return sorted(machines_of(self.settings).values())

    def daemon_pid(self) -> int:
        """The daemon's process."""
        return int((self.settings.run / "casemated.pid").read_text())

    def kill_daemon(self) -> None:
        """End the daemon as a crash would, and see it gone."""
        pidfd = os.pidfd_open(self.daemon_pid())
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            # Readable when its last thread has gone: until then its sockets may still be open.
            assert readable([pidfd], 30)
        finally:
            os.close(pidfd)

    def room_pid(self) -> int:
        """The process in the wire room: the child of this world's daemon that is called so; 0 when there is none."""
        for path in Path(f"/proc/{self.daemon_pid()}/task").glob("*/children"):
            for pid in path.read_text().split():
                if b"casemate.host.room" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return 0

    def link_pid(self, qube: str) -> int:
        """The qube's link process."""
        return int((self.settings.run / "qubes" / f"{qube}.link").read_text().split()[0])

    def has_link_but(self, qube: str, pid: int) -> bool:
        """Whether the qube has a link, and it is another process than that."""
        try:
            return self.link_pid(qube) != pid
        except (FileNotFoundError, IndexError):
            return False  # between two links

    def log(self) -> str:
        """The end of the daemon's log."""
        path = self.settings.run / "log" / "casemated.log"
        return path.read_text()[-3000:] if path.exists() else ""

    def clean(self) -> None:
        """End and remove everything."""
        clean_state(self.settings)
