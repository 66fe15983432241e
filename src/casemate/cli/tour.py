"""``casemate tour``: the main job on real virtual machines, each step observed, each shown."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from casemate.cli.clean import clean_state, machines_of
from casemate.cli.template import default_suite
from casemate.settings import Settings, load
from casemate.tools_directory import tools_directory
from casemate.wire.recipe import Recipe

BIN = tools_directory()
POLICY_LINE = "qubes.Filecopy  *  work  vault  allow"
MEBIBYTE = 1 << 20
STREAM_MEBIBYTES = 100


class TourError(Exception):
    """A step that was not observed."""


def tour_settings() -> Settings:
    """A state of the tour's own beside the user's: never the user's qubes."""
    base = load()
    state = Path(os.environ.get("CASEMATE_TOUR_STATE") or f"{base.state}-tour")
    return Settings(
        state=state, run=state / "run", cache=base.cache, hypervisor=base.hypervisor, prefix="casemate-tour-"
    )


class Tour:
    """Runs the tools as a person would and checks what they print, return and leave."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._environment = {**os.environ, **settings.environment(), "PATH": f"{BIN}:{os.environ.get('PATH', '')}"}
        self._times: list[tuple[str, float]] = []
        self._proved: list[str] = []

    # -- tools

    def run(
        self, *argv: str, status: int = 0, data: bytes | None = None, timeout: float = 900, show: bool = True
    ) -> bytes:
        """Run a tool; TourError unless it ends with ``status``. Returns its standard output."""
        if show:
            self.say("$ " + " ".join(argv))
        done = subprocess.run(
            argv, env=self._environment, input=b"" if data is None else data, capture_output=True, timeout=timeout
        )
        if done.returncode != status:
            raise TourError(
                f"{' '.join(argv)}: exit status {done.returncode}, expected {status}\n"
                f"stdout: {done.stdout[-2000:].decode('ascii', 'replace')}\n"
                f"stderr: {done.stderr[-2000:].decode('ascii', 'replace')}"
            )
        return done.stdout

    def inside(self, qube: str, command: str, **options: object) -> str:
        """Output of a shell command in a qube."""
        return self.run("qvm-run", "--pass-io", qube, command, **options).decode().strip()  # type: ignore[arg-type]

    @staticmethod
    def say(text: str) -> None:
        """One or more indented lines."""
        for line in text.rstrip("\n").split("\n"):
            print(f"      {line}", flush=True)

    def table(self) -> str:
        """Show and return the list of qubes."""
        text = self.run("qvm-ls").decode()
        self.say(text)
        return text

    def check(self, true: bool, what: str, seen: object = "") -> None:
        """TourError unless ``true``; else remember that ``what`` was proved."""
        if not true:
            raise TourError(f"not so: {what}" + (f"\nseen: {seen!r}" if seen != "" else ""))
        self.say(f"ok: {what}")
        self._proved.append(what)

    def in_hypervisor(self) -> list[str]:
        """Names of our machines that run."""
        return sorted(machines_of(self._settings).values())

    # -- steps

    def acceleration(self) -> None:
        """Template, kernel and acceleration: what runs the guests"""
        self.run("casemate", "template", "build", timeout=1800)
        status = self.run("casemate", "status").decode()
        self.say(status)
        match = re.search(r"^acceleration +(\S+) +(.+)$", status, re.M)
        self.check(match is not None and match[1] in ("kvm", "tcg"), "acceleration was probed by booting a kernel")
        names = self.run("qvm-ls", "--raw-list", show=False).decode().split()
        name = Recipe(default_suite()).default_name
        self.check(name in names, f"template {name} is there")

    def create(self) -> None:
        """Create work, vault and dvm"""
        # The tour counts machines, and a warm image that is made in the background is one more for a while.
        self.run("qvm-features", "dom0", "casemate-warm", "")
        self.run("qvm-create", "--label", "blue", "work")
        self.run("qvm-create", "--label", "black", "--prop", "netvm=", "vault")
        self.run("qvm-create", "--label", "gray", "--prop", "template_for_dispvms=True", "dvm")
        table = self.table()
        self.check(all(name in table for name in ("work", "vault", "dvm")), "three qubes are in the table")
        self.check(self.in_hypervisor() == [], "defined, but nothing runs", self.in_hypervisor())

    def start(self) -> None:
        """Start work and vault"""
        for name in ("work", "vault"):
            begin = time.monotonic()
            self.run("qvm-start", name)
            self.say(f"{name}: wish to answer {time.monotonic() - begin:.1f} s")
        self.table()
        self.check(self.in_hypervisor() == ["vault", "work"], "two machines run", self.in_hypervisor())
        owners = self._owners()
        self.check(0 not in owners.values(), "no machine runs as root", owners)
        if os.geteuid() == 0:
            self.check(len(set(owners.values())) == 2, "each machine has a user of its own", owners)

    def _owners(self) -> dict[str, int]:
        """Who runs each machine."""
        return {name: Path(f"/proc/{pid}").stat().st_uid for pid, name in machines_of(self._settings).items()}

    def commands(self) -> None:
        """Commands in work: streams and exit status pass through"""
        self.check(self.inside("work", "hostname") == "work", "the guest knows its name")
        out = self.run("qvm-run", "--pass-io", "work", "cat; echo err >&2; exit 3", status=3, data=b"in\n")
        self.check(out == b"in\n", "stdin, stdout and exit status 3 pass through")
        data = os.urandom(MEBIBYTE) * STREAM_MEBIBYTES
        begin = time.monotonic()
        back = self.run("qvm-run", "--pass-io", "work", "cat", data=data)
        seconds = time.monotonic() - begin
        same = hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
        self.check(same, f"{STREAM_MEBIBYTES} MiB in and out keep their sha256")
        self.say(f"{STREAM_MEBIBYTES / seconds:.0f} MiB/s each way at once")

    def copy(self) -> None:
        """Copy files from work to vault: refused by default, then allowed by one line of policy"""
        self.inside(
            "work",
            "mkdir -p d/sub && head -c 300000 /dev/urandom > d/data && echo hi > d/sub/text && chmod 4755 d/data",
        )
        want = self.inside("work", "cd d && sha256sum data sub/text")
        self.run("qvm-run", "--pass-io", "work", "qvm-copy-to-vm vault d", status=126)
        left = self.inside("vault", "ls QubesIncoming 2>/dev/null | wc -l")
        self.check(left == "0", "refused by default with status 126, nothing written in vault", left)
        policy = self._settings.policy_dir / "30-tour.policy"
        policy.write_text(POLICY_LINE + "\n")
        self.say(f"policy: {POLICY_LINE}")
        self.inside("work", "qvm-copy-to-vm vault d")
        got = self.inside("vault", "cd QubesIncoming/work/d && sha256sum data sub/text")
        self.check(got == want, "arrived under QubesIncoming/work with the same sha256", got)
        mode = self.inside("vault", "stat -c %a QubesIncoming/work/d/data")
        self.check(mode == "755", "modes are masked: 4755 became 755", mode)

    def database(self) -> None:
        """QubesDB: what the host says inside, and watches both ways"""
        self.check(self.inside("work", "qubesdb-read /name") == "work", "/name is there inside")
        self.check(self.inside("work", "qubesdb-read /qubes-vm-type") == "AppVM", "/qubes-vm-type is there inside")
        self.check(
            self.inside("work", "qubesdb-read /qubes-vm-persistence") == "rw-only", "/qubes-vm-persistence is there"
        )
        self.run("casemate", "qubesdb", "work", "write", "/tour/host", "from-host")
        self.check(
            self.inside("work", "qubesdb-read /tour/host") == "from-host", "a key written by the host is read inside"
        )
        seen = self._watch_inside("/tour/again")
        self.check(seen == "/tour/again", "a watch inside fires when the host writes", seen)
        watcher = self._start("casemate", "qubesdb", "work", "watch", "/status/tour")
        time.sleep(0.5)
        self.inside("work", "qubesdb-write /status/tour from-guest")
        out, _err = watcher.communicate(timeout=30)
        self.check(out.decode().strip() == "/status/tour", "a watch on the host fires when the guest writes", out)
        value = self.run("casemate", "qubesdb", "work", "read", "/status/tour").decode().strip()
        self.check(value == "from-guest", "and the host reads what the guest wrote", value)

    def _start(self, *argv: str) -> subprocess.Popen[bytes]:
        self.say("$ " + " ".join(argv) + " &")
        return subprocess.Popen(argv, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _watch_inside(self, key: str) -> str:
        command = f"echo ready; exec qubesdb-watch -n 1 {key}"
        watcher = self._start("qvm-run", "--pass-io", "work", command)
        assert watcher.stdout is not None
        watcher.stdout.readline()
        for _attempt in range(60):
            self.run("casemate", "qubesdb", "work", "write", key, str(time.monotonic()), show=False)
            try:
                return watcher.communicate(timeout=0.5)[0].decode().strip()
            except subprocess.TimeoutExpired:
                continue
        watcher.kill()
        return "nothing within 30 s"

    def disposable(self) -> None:
        """A disposable: made, used, gone without trace"""
        before = set(self.run("qvm-ls", "--raw-list", show=False).split())
        # The first one boots, to compare, and to look at what is left of it.
        name, cold = self._in_disposable()
        # The tool does not wait until all is removed.
        self._until(lambda: set(self.run("qvm-ls", "--raw-list", show=False).split()) == before)
        after = set(self.run("qvm-ls", "--raw-list", show=False).split())
        self.check(after == before, "the store has forgotten it", after ^ before)
        self.check(self.in_hypervisor() == ["vault", "work"], "the hypervisor has forgotten it", self.in_hypervisor())
        left = [str(p) for p in self._settings.state.rglob(f"*{name}*")]
        left = [p for p in left if not p.endswith((".log",))]
        self.check(left == [], "no file is left of it", left)
        processes = self._processes(name)
        self.check(processes == [], "no process is left of it", processes)
        # Usually this happens by itself. One was used just now, so another goes on from the image and waits.
        self.run("qvm-features", "dvm", "casemate-warm", "1")
        self.run("casemate", "warm", "build", "dvm")
        waiting = ("qvm-ls", "--raw-data", "--fields", "name", "--internal", "y", "--paused")
        self._until(lambda: self.run(*waiting, show=False).strip())
        ready = self.run(*waiting, show=False).decode().strip()
        self.check(ready != "", f"{ready} went on from a warm image before it is asked for, and stands still", ready)
        self.run("casemate", "warm", "list")
        name, warm = self._in_disposable()
        self.check(name == ready, f"the next call got it: {warm:.2f} s instead of {cold:.2f} s", name)
        self.run("qvm-features", "dvm", "casemate-warm", "")  # the next chapters look at what they themselves have made
        self.run("qvm-features", "dvm", "preload-dispvm-max", "0")
        self._until(lambda: set(self.run("qvm-ls", "--raw-list", show=False).split()) == before)

    def _in_disposable(self) -> tuple[str, float]:
        """Run a command in a disposable: its name, and the seconds until the tool has ended."""
        begin = time.monotonic()
        out = self.run("qvm-run", "--pass-io", "--dispvm=dvm", "qubesdb-read /name; echo 1 > ~/x; cat ~/x").decode()
        seconds = time.monotonic() - begin
        self.say(f"{seconds:.2f} s")
        name = out.split()[0]
        self.check(re.fullmatch(r"disp[0-9]+\n1\n", out) is not None, f"{name} ran the command", out)
        return name, seconds

    @staticmethod
    def _until(condition: Callable[[], object], seconds: float = 120.0) -> None:
        """Return when something holds, or after a while; the check that follows says what is the case."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.1)

    @staticmethod
    def _processes(name: str) -> list[str]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes().replace(b"\0", b" ").decode("ascii", "replace")
            except OSError:
                continue
            if re.search(rf"\b{re.escape(name)}\b", text):
                found.append(text)
        return found

    def persistence(self) -> None:
        """What a restart keeps"""
        self.run(
            "qvm-run",
            "--pass-io",
            "-u",
            "root",
            "work",
            "echo 1 > /root-file; echo 2 > /home/user/kept; echo 3 > /rw/kept",
        )
        self.run("qvm-shutdown", "--wait", "work")
        self.table()
        self.run("qvm-start", "work")
        self.check(self.inside("work", "ls /root-file 2>/dev/null | wc -l") == "0", "a file in the root is gone")
        kept = self.inside("work", "cat /home/user/kept /rw/kept").split()
        self.check(kept == ["2", "3"], "files in /home/user and /rw are there", kept)

    def backup(self) -> None:
        """Back work up, remove it, restore it, compare"""
        before = self.inside("work", "sha256sum /home/user/kept /rw/kept")
        self.run("qvm-shutdown", "--wait", "work")
        place = self._settings.state / "tour-backup"
        passphrase = self._settings.state / "tour-passphrase"
        passphrase.write_text(f"{secrets.token_hex(16)}\n")
        try:
            words = ["-p", str(passphrase), str(place)]
            self.run("qvm-backup", "--yes", *words, "work")
            self.run("qvm-remove", "--force", "work")
            self.run("qvm-backup-restore", "--verify-only", *words)
            self.run("qvm-backup-restore", "--yes", *words)
            self.run("qvm-start", "work")
            self.check(self.inside("work", "sha256sum /home/user/kept /rw/kept") == before, "its files are the same")
        finally:
            place.unlink(missing_ok=True)
            passphrase.unlink(missing_ok=True)

    def network(self) -> None:
        """Network: one qube reaches a server, its neighbour does not, neither reaches this host"""
        from casemate.cli.tour_network import show

        show(self)

    def remove(self) -> None:
        """Shut down and remove"""
        self.run("qvm-shutdown", "--wait", "work", "vault")
        self.check(self.in_hypervisor() == [], "no machine runs", self.in_hypervisor())
        self.run("qvm-remove", "--force", "work", "vault", "dvm")
        table = self.table()
        self.check(not re.search(r"^(work|vault|dvm)\b", table, re.M), "the table has forgotten them")
        left = [
            str(p)
            for p in self._settings.state.rglob("*")
            if re.search(r"(work|vault|dvm)", p.name) and not p.name.endswith(".log")
        ]
        self.check(left == [], "nothing of them is left on disk", left)

    # -- the whole

    def whole(self) -> int:
        """All steps in order; 0 when every one was observed."""
        steps: list[Callable[[], None]] = [
            self.acceleration,
            self.create,
            self.start,
            self.commands,
            self.copy,
            self.database,
            self.disposable,
            self.persistence,
            self.backup,
            self.network,
            self.remove,
        ]
        begin = time.monotonic()
        for number, step in enumerate(steps, 1):
            title = (step.__doc__ or "").strip()
            print(f"\n[{number}/{len(steps)}] {title}", flush=True)
            start = time.monotonic()
            try:
                step()
            except (TourError, subprocess.TimeoutExpired) as error:
                print(f"\nThe tour failed at step {number}: {error}", file=sys.stderr)
                log = self._settings.run / "log" / "casemated.log"
                if log.exists():
                    print(f"The daemon's log ends:\n{log.read_text()[-2000:]}", file=sys.stderr)
                return 1
            self._times.append((title, time.monotonic() - start))
        print(f"\nThe tour is over: {len(self._proved)} facts observed in {time.monotonic() - begin:.0f} s.")
        for title, seconds in self._times:
            print(f"  {seconds:6.1f} s  {title}")
        print("\nYour own qubes live apart from the tour's. Try next:")
        print("  bin/casemate template build")
        print("  bin/qvm-create --label green mine && bin/qvm-start mine")
        print("  bin/qvm-run --pass-io mine 'uname -a; id'")
        return 0


def main() -> int:
    """Run the tour in a state of its own, cleaned before and after."""
    settings = tour_settings()
    clean_state(settings)
    try:
        return Tour(settings).whole()
    finally:
        clean_state(settings)
        shutil.rmtree(settings.state, ignore_errors=True)
