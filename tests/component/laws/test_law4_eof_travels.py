"""Law 4: EOF travels. Whoever fails or dies in a copy, both sides end within a second and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.wire import qfile
from tests.component.laws.processes import scaled
from tests.component.rig import SOURCE, Rig

SOON = 1.0
MIB = 1 << 20


class Place:
    """A qube named ``target`` (real link, real agent, real unpacker), and the host's real sender."""

    def __init__(self, path: Path) -> None:
        directory = path / "run/qubes/target"
        directory.mkdir(parents=True)
        self.home = path / "home"
        self.home.mkdir()
        self.path = path
        self.rig = Rig(directory)
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(SOURCE),
            "CASEMATE_STATE": str(path / "state"),
            "CASEMATE_RUN": str(path / "run"),
            "HOME": str(path),
        }
        self.receive()
        self.link = self.rig.start_link()
        self.agent = self.rig.start_agent()
        assert self.rig.call("test.True+")[0] == 127
        self.quiet = self.settled()

    def receive(self, before: str = "") -> None:
        """The service that takes files; ``before`` is done first, in its shell."""
        self.rig.service(
            "qubes.Filecopy",
            f'export HOME={self.home} PYTHONPATH={SOURCE}\n{before}\n'
            f'exec {sys.executable} -m casemate.agent.entry qfile-unpacker "$@"\n',
        )  # fmt: skip

    def file(self, size: int, name: str = "file") -> Path:
        path = self.path / name
        with path.open("wb") as out:
            out.truncate(size)
        return path

    def send(self, *files: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "casemate.cli", "qvm-copy-to-vm", "--without-progress", "target", *map(str, files)],
            env=self.environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def arrived(self) -> list[str]:
        incoming = self.home / "QubesIncoming/dom0"
        return os.listdir(incoming) if incoming.exists() else []

    def left(self) -> tuple[int, int, int]:
        """Processes below the agent, descriptors of agent and link."""
        children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children").read_text().split()
        return (
            len(children),
            len(os.listdir(f"/proc/{self.agent.pid}/fd")),
            len(os.listdir(f"/proc/{self.link.pid}/fd")),
        )

    def settled(self) -> tuple[int, int, int]:
        """What is there while nothing happens: the same for a while."""
        found, since = self.left(), time.monotonic()
        while time.monotonic() - since < 0.3:
            time.sleep(0.02)
            if self.left() != found:
                found, since = self.left(), time.monotonic()
        return found

    def receiver(self) -> int:
        """The unpacker at work; it has begun to write."""
        end = time.monotonic() + 20
        while True:
            children = Path(f"/proc/{self.agent.pid}/task/{self.agent.pid}/children").read_text().split()
            if children and self.arrived():
                return int(children[0])
            assert time.monotonic() < end
            time.sleep(0.01)

    def is_quiet(self, within: float = 5) -> None:
        """Nothing is left: no process, no descriptor, no half file."""
        end = time.monotonic() + within
        while (self.left(), self.arrived()) != (self.quiet, []):
            assert time.monotonic() < end, (self.left(), self.quiet, self.arrived())
            time.sleep(0.01)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.rig.close()


def ends(process: subprocess.Popen[bytes], within: float = 20) -> bytes:
    """The words of a sender that must fail."""
    _, err = process.communicate(timeout=within)
    assert process.returncode not in (0, None) and process.returncode > 0, "its status does not tell the truth"
    return err


RECEIVERS = {
    "at the first byte": ("exit 3", 1 << 40, b""),
    "before it is there": ("kill -9 $$", 1 << 40, b""),
    "in the middle, no room": ("ulimit -f 8192", 64 * MIB, b""),
    "at its first write, no room": ("ulimit -f 0", 4096, b""),
}


@pytest.mark.parametrize("case", RECEIVERS)
def test_the_receiver_fails(place: Place, case: str) -> None:
    before, size, _words = RECEIVERS[case]
    place.receive(before)
    for _ in range(scaled(2, 20)):
        err = ends(place.send(place.file(size)))
        assert err, "the sender does not say why"
        place.is_quiet()


def stream(*records: tuple[bytes, bytes], end: bool = True) -> bytes:
    """A stream of files as a sender writes it."""
    parts = [qfile.build_header(name, 0o100644, len(data), 0, 0) + name + b"\0" + data for name, data in records]
    return b"".join(parts) + (qfile.END if end else b"")


STREAMS = {
    "a forbidden name": stream((b"../evil", b"x" * MIB)),
    "an absolute name": stream((b"/etc/passwd", b"x")),
    "a name that is taken": stream((b"twice", b"x"), (b"twice", b"y")),
    "too long a name": qfile.HEADER.pack(99999, 0o100644, 1, 0, 0, 0, 0),
    "garbage": b"\xff" * 100000,
    "an end in the middle of a header": stream((b"a", b"x"), end=False) + b"\x01\x02",
    "an end in the middle of a file": qfile.build_header(b"a", 0o100644, MIB, 0, 0) + b"a\0" + b"x" * 1000,
}


@pytest.mark.parametrize("case", STREAMS)
def test_a_bad_stream_is_reported_and_ends(place: Place, case: str) -> None:
    for _ in range(scaled(2, 20)):
        begin = time.monotonic()
        status, out, _err = place.rig.call("qubes.Filecopy+", STREAMS[case])
        assert status not in (0, 255), "the exit status of the receiver arrives"
        result = qfile.RESULT.unpack_from(out)
        assert result[0] != qfile.OK, "the error report arrives"
        assert time.monotonic() - begin < SOON + 2
        place.is_quiet()


def test_a_wrong_checksum_at_the_end(place: Place) -> None:
    """The receiver confirms what was not sent: nothing is believed, the sender's status says so."""
    place.rig.service("qubes.Filecopy", f"cat >/dev/null; cat {place.path}/answer")
    (place.path / "answer").write_bytes(qfile.build_result(qfile.OK, 12345, b"file"))
    assert b"checksum" in ends(place.send(place.file(4 * MIB)))
    place.is_quiet()


@pytest.mark.parametrize("victim", ["receiver", "agent", "link"])
def test_each_helper_is_killed_in_turn(place: Place, victim: str) -> None:
    sender = place.send(place.file(3000 * MIB))
    receiver = place.receiver()
    pid = {"receiver": receiver, "agent": place.agent.pid, "link": place.link.pid}[victim]
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    ends(sender, 10)
    assert time.monotonic() - begin < SOON, "the sender heard of it too late"
    end = time.monotonic() + 5
    while Path(f"/proc/{receiver}").exists() and state_of(receiver) != "Z":
        assert time.monotonic() < end, "the receiver waits for the dead"
        time.sleep(0.01)
    if victim == "receiver":
        place.agent.poll()
        end = time.monotonic() + 5
        while place.left() != place.quiet:
            assert time.monotonic() < end
            time.sleep(0.01)


def state_of(pid: int) -> str:
    """A process's state; Z where there is none any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_sender_dies(place: Place) -> None:
    for _ in range(scaled(3, 20)):
        sender = place.send(place.file(3000 * MIB))
        place.receiver()
        begin = time.monotonic()
        sender.kill()
        sender.communicate()
        place.is_quiet(within=SOON + 2)
        assert time.monotonic() - begin < SOON + 2


def test_after_all_that_a_copy_arrives(place: Place) -> None:
    place.receive("exit 3")
    ends(place.send(place.file(MIB)))
    place.receive()
    file = place.path / "good"
    file.write_bytes(os.urandom(3 * MIB))
    sender = place.send(file)
    assert sender.communicate(timeout=20)[1] == b"" and sender.returncode == 0
    assert (place.home / "QubesIncoming/dom0/good").read_bytes() == file.read_bytes()
    end = time.monotonic() + 5
    while place.left() != place.quiet:
        assert time.monotonic() < end
        time.sleep(0.01)
