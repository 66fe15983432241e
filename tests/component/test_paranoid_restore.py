"""Backups read apart: the program of the disposable as a process with nothing but Python's standard library.

The process is what runs in a disposable, started as it is there; only the channel is a pair of pipes. What a hostile
one may say is sent by processes that were written to be hostile.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from casemate.backup.errors import BackupError, RefusedError
from casemate.backup.paranoid import frames
from casemate.backup.paranoid.package import WORDS, code
from casemate.backup.reader import Nothing, Report
from casemate.client import paranoid
from casemate.client.new_qubes import NewQubes, NotOursError
from casemate.client.paranoid import RemoteBackup
from casemate.client.qubes import Qubes
from casemate.qrexec.decide import decide_now
from casemate.qrexec.evaluate import Deny, QubeInfo, SystemInfo
from casemate.qrexec.files import PolicyFiles, delivered_policies
from casemate.wire.admin import BACKUP_READER
from casemate.wire.errors import CasemateError, DisconnectedError, ProtocolError
from tests import backup_samples as samples
from tests.component.test_backup_samples import NAMES, OUTCOMES, Kept, outcome
from tests.component.test_backup_samples import read as read_here

ROOT = Path(__file__).parents[2]


class Pipes:
    """The channel: as ``ServiceStream``, to a process of this host."""

    def __init__(self, argv: list[str]) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def exactly(self, count: int) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(count)
        if len(data) < count:
            raise DisconnectedError("it ended")
        return data


@contextmanager
def reader(argv: list[str], start: bytes = b"") -> Iterator[Pipes]:
    """A process that reads, or pretends to."""
    pipes = Pipes(argv)
    with pipes.process:
        try:
            pipes.write(start)
            yield pipes
        finally:
            pipes.process.kill()
            assert pipes.process.stdin is not None
            with suppress(BrokenPipeError):
                pipes.process.stdin.close()


def read_apart(name: str, target: Nothing, only: list[str] | None = None) -> Report:
    source = io.BytesIO(samples.files()[name])
    order = {"form": "tar", "filter": "", "passphrase": _secret(samples.manifest()[name]["passphrase"])}
    with reader([sys.executable, *WORDS[1:]], code()) as pipes:
        return RemoteBackup(pipes, source.read, order).run(target, only)  # type: ignore[arg-type]


def _secret(passphrase: str) -> str:
    return base64.b64encode(passphrase.encode()).decode()


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_has_the_same_outcome_as_on_the_host(name: str) -> None:
    here, apart = Kept(), Kept()
    try:
        found = outcome(read_apart(name, apart))
    except BackupError as error:
        assert str(error)
        found = "refused"
    wanted = OUTCOMES[samples.manifest()[name]["expect"]]
    assert found in wanted or (found == "noted" and "whole" in wanted)
    if found in ("whole", "noted"):
        read_here(name, here)
        images = {file.partition("/")[2]: data for file, data in here.files.items() if file.endswith(".img")}
        assert {file.partition("/")[2]: data for file, data in apart.files.items() if file.endswith(".img")} == images


def test_only_what_is_asked_for_is_sent() -> None:
    target = Kept()
    report = read_apart("v4-zstd.qbk", target, ["work"])
    assert list(report.verdicts) == ["work"] and report.whole
    assert {file.partition("/")[0] for file in target.files} == {"work"}


def test_a_wrong_passphrase_is_told() -> None:
    source = io.BytesIO(samples.files()["v4-none.qbk"])
    order = {"form": "tar", "filter": "", "passphrase": _secret("something else")}
    with (
        reader([sys.executable, *WORDS[1:]], code()) as pipes,
        pytest.raises(RefusedError, match="passphrase is wrong"),
    ):
        RemoteBackup(pipes, source.read, order)  # type: ignore[arg-type]


def test_what_is_sent_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    # Whatever is installed on this host: the packages that read here are not found by the program there.
    with reader([sys.executable, "-I", "-S", "-c", "import sys; sys.exit('cryptography' in sys.modules)"]) as pipes:
        assert pipes.process.wait(30) == 0
    names = {word for line in _imports() for word in line.split(".")[:1]}
    assert not names & {"cryptography", "zstandard", "lxml", "yaml"}, names


def _imports() -> list[str]:
    """Modules that are loaded when a compressed sample was read there."""
    boot = WORDS[-1].replace("sys.exit(main())", "main(); os.write(2, '\\n'.join(sys.modules).encode())")
    source = io.BytesIO(samples.files()["v4-zstd.qbk"])
    order = {"form": "tar", "filter": "", "passphrase": _secret(samples.manifest()["v4-zstd.qbk"]["passphrase"])}
    with reader([sys.executable, *WORDS[1:-1], boot], code()) as pipes:
        assert RemoteBackup(pipes, source.read, order).run(Nothing()).whole  # type: ignore[arg-type]
        assert pipes.process.stderr is not None
        return pipes.process.stderr.read().decode().splitlines()


# ------------------------------------------------------------------------------------------------ hostile ones

QUBE = {
    "name": "work", "class": "AppVM", "size": 10, "properties": {"label": "red"}, "features": {}, "tags": [],
    "devices": 0, "volumes": [["private", 1 << 20, True]],
}  # fmt: skip


def frame(kind: bytes, value: object) -> bytes:
    return frames.build(kind, frames.text(value))


def contents(*qubes: dict[str, object]) -> bytes:
    return frame(frames.CONTENTS, {"home": False, "qubes": list(qubes)})


def saying(tmp_path: Path, *said: bytes) -> list[str]:
    """A program that says this, whatever it is told."""
    script = tmp_path / "said"
    script.write_bytes(b"".join(said))
    return ["sh", "-c", f"cat {script}; exec cat >/dev/null"]


def whole(**states: str) -> bytes:
    verdicts = {name: [state, ""] for name, state in states.items()}
    return frame(frames.REPORT, {"verdicts": verdicts, "home": None, "error": "", "notes": []})


def hear(argv: list[str], target: Nothing) -> Report:
    with reader(argv) as pipes:
        return RemoteBackup(pipes, io.BytesIO(b"").read, {}).run(target, ["work"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "qubes",
    [
        [{**QUBE, "name": "../work"}], [{**QUBE, "name": "dom0 x"}], [{**QUBE, "name": 3}], [QUBE, QUBE],
        [{**QUBE, "class": "AdminVM"}], [{**QUBE, "size": -1}], [{**QUBE, "size": 2**80}], [{**QUBE, "size": True}],
        [{**QUBE, "volumes": [["a/b", 1, True]]}], [{**QUBE, "volumes": [["private", 2**60, True]]}],
        [{**QUBE, "volumes": [["private", 1]]}], [{**QUBE, "tags": ["a b"]}], [{**QUBE, "tags": "ab"}],
        [{**QUBE, "properties": {"label": "\ud800"}}], [{**QUBE, "features": {"a": None}}], [None], ["x"],
    ],
)  # fmt: skip
def test_impossible_contents_are_refused(tmp_path: Path, qubes: list[dict[str, object]]) -> None:
    with reader(saying(tmp_path, contents(*qubes))) as pipes, pytest.raises(ProtocolError):
        RemoteBackup(pipes, io.BytesIO(b"").read, {})  # type: ignore[arg-type]


BEGUN = frame(frames.VOLUME, ["work", "private", 4096])


@pytest.mark.parametrize(
    "said",
    [
        frame(frames.VOLUME, ["vault", "private", 4096]), frame(frames.VOLUME, ["work", "root", 4096]),
        frame(frames.VOLUME, ["work", "../private", 4096]), frame(frames.VOLUME, ["work", "private", (1 << 20) + 1]),
        frame(frames.VOLUME, ["work", "private", -1]), frame(frames.VOLUME, ["work"]),
        frame(frames.VOLUME, [[], {}, 1]),
        frames.build(frames.WRITE, frames.PLACE.pack(0), b"x"), frames.build(frames.FINISH),
        BEGUN + frames.build(frames.WRITE, frames.PLACE.pack(4096), b"x"),
        BEGUN + frames.build(frames.WRITE, frames.PLACE.pack(2**64 - 1), b"x"),
        BEGUN + frames.build(frames.WRITE, frames.PLACE.pack(9), b"xy")
        + frames.build(frames.WRITE, frames.PLACE.pack(8), b""),
        BEGUN + frames.build(frames.WRITE, b"x"),
        BEGUN + frames.build(frames.FINISH) + BEGUN,
        frames.build(frames.FILE, frames.text(["vault", "notes.txt"]), b"\nx"),
        frames.build(frames.FILE, frames.text(["work", "firewall.xml"]), b"\n<x/>"),
        frames.build(frames.FILE, b"\n"), contents(QUBE), frame(frames.RUN, {}), frames.HEADER.pack(b"z", 0),
        frames.HEADER.pack(frames.WRITE, 2**32 - 1), frames.build(frames.REPORT, b"[" * 100_000), whole(work="fine"),
        frames.build(frames.REPORT, b"[]"), frames.build(frames.VOLUME, b"\xff"),
    ],
)  # fmt: skip
def test_what_does_not_belong_there_ends_the_reading(tmp_path: Path, said: bytes) -> None:
    with pytest.raises(ProtocolError):
        hear(saying(tmp_path, contents(QUBE), said, whole(work="whole")), Kept())


def test_a_qube_is_not_whole_because_the_disposable_says_so(tmp_path: Path) -> None:
    report = hear(saying(tmp_path, contents(QUBE), whole(work="whole", vault="whole")), Nothing())
    assert list(report.verdicts) == ["work"]
    assert (report.verdicts["work"].state, report.whole) == ("damaged", False)
    assert "private.img did not arrive" in report.verdicts["work"].why
    good = saying(tmp_path, contents(QUBE), BEGUN, frames.build(frames.FINISH), whole(work="whole"))
    assert hear(good, Kept()).whole


def test_its_words_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    said = {
        "verdicts": {"work": ["damaged", "\x1b]0;x\x07" * 100]},
        "home": None,
        "error": "\x1b[2J",
        "notes": ["\x9b"] * 200,
    }
    report = hear(saying(tmp_path, contents(QUBE), frame(frames.REPORT, said)), Nothing())
    shown = "".join([report.verdicts["work"].why, report.error, *report.notes])
    assert shown.isascii() and shown.isprintable() and len(report.notes) == 100 and len(shown) < 2000
    with pytest.raises(RefusedError) as failed:
        hear(saying(tmp_path, frames.build(frames.FAILED, b"\x1b[31mbad")), Nothing())
    assert str(failed.value) == "\\x1b[31mbad"


def test_what_the_target_cannot_take_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    class Full(Nothing):
        def write(self, offset: int, data: memoryview) -> None:
            raise CasemateError("no room")

    report = read_apart("v4-none.qbk", Full())
    states = {name: (one.state, one.why) for name, one in report.verdicts.items()}
    assert states["work"] == ("damaged", "no room")
    assert states["dvm-base"] == ("whole", "")  # there is nothing on its volume, so nothing was to be written


def test_one_that_ends_is_an_error_and_nothing_waits() -> None:
    with pytest.raises(DisconnectedError):
        hear(["true"], Nothing())


def test_a_length_is_judged_before_it_is_read() -> None:
    asked: list[int] = []

    def exactly(count: int) -> bytes:
        asked.append(count)
        return frames.HEADER.pack(frames.WRITE, 2**32 - 1)[:count]

    with pytest.raises(ProtocolError):
        frames.read(exactly, frames.WRITE)
    assert asked == [frames.HEADER.size]


# ------------------------------------------------------------------------------------------------ what a restore may


class Recorder:
    """A transport that counts what reaches it."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def call(self, method: str, arg: str = "", dest: str = "dom0", payload: bytes = b"") -> bytes:
        self.calls.append((method, dest))
        return b""


def test_a_restore_changes_only_what_it_has_made() -> None:
    transport = Recorder()
    qubes = NewQubes(transport)  # type: ignore[arg-type]
    for method, dest in (
        ("admin.vm.property.Set", "work"), ("admin.vm.Remove", "work"), ("admin.vm.feature.Set", "dom0"),
        ("admin.property.Set", "dom0"), ("admin.vm.volume.Import", "work"), ("admin.vm.Create.AppVM", "work"),
        ("admin.vm.tag.Set", "work"), ("admin.vm.firewall.Set", "work"), ("admin.vm.property.GetAll", "work"),
    ):  # fmt: skip
        with pytest.raises(NotOursError):
            qubes.call(method, "x", dest, "y")
    assert not transport.calls
    qubes.create("AppVM", "new", "red", "deb")
    qubes.set("new", "memory", "400")
    qubes.remove("new")
    with pytest.raises(NotOursError):
        qubes.set("new", "memory", "400")  # by now it may be another one
    assert [one[0] for one in transport.calls] == ["admin.vm.Create.AppVM", "admin.vm.property.Set", "admin.vm.Remove"]


def test_the_disposable_is_shut_in_before_it_starts() -> None:
    class Halted(Recorder):
        def call(self, method: str, arg: str = "", dest: str = "dom0", payload: bytes = b"") -> bytes:
            super().call(f"{method}+{arg}", payload.decode(), dest)
            self.calls[-1] = (f"{method}+{arg}", payload.decode())
            return b"default=True type=int 400" if method.endswith("Get") else b""

    transport = Halted()
    paranoid._shut_in(Qubes(transport), "disp1")  # type: ignore[arg-type]
    *before, last = transport.calls
    assert last == ("admin.vm.Start+", "")
    assert set(before) >= {
        (f"admin.vm.tag.Set+{BACKUP_READER}", ""), ("admin.vm.property.Set+netvm", ""),
        ("admin.vm.property.Set+default_dispvm", ""), ("admin.vm.property.Set+memory", "1024"),
    }  # fmt: skip


def test_the_policy_refuses_every_call_of_the_disposable(tmp_path: Path) -> None:
    for name, text in delivered_policies().items():
        (tmp_path / name).write_text(text)
    (tmp_path / "30-user.policy").write_text("* * @anyvm @anyvm allow\n* * @anyvm @adminvm allow\n* * * * allow\n")
    uuid = "00000000-0000-0000-0000-00000000000"
    info = SystemInfo.fixed(
        [
            QubeInfo("dom0", "AdminVM", f"{uuid}0"), QubeInfo("work", "AppVM", f"{uuid}1", template_for_dispvms=True),
            QubeInfo("disp1", "DispVM", f"{uuid}2", tags=(BACKUP_READER,), default_dispvm="work"),
            QubeInfo("disp2", "DispVM", f"{uuid}3", default_dispvm="work"),
        ]
    )  # fmt: skip
    files = PolicyFiles(tmp_path)
    for service in ("qubes.Filecopy", "admin.vm.List", "qubes.OpenURL", "qubes.GetDate", "policy.Ask"):
        for target in ("work", "dom0", "@adminvm", "@default", "@dispvm", "@dispvm:work", f"uuid:{uuid}1"):
            assert isinstance(decide_now(files, info, "disp1", service, "", target), Deny), (service, target)
    assert not isinstance(decide_now(files, info, "disp2", "qubes.Filecopy", "", "work"), Deny)
