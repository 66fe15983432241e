"""This host's end of a backup that is read in a disposable: makes that, feeds it, and believes what is possible.

``casemate.backup.paranoid`` has the picture. ``opened`` owns the disposable: it is removed when the block ends, or with
this process. `RemoteBackup` is used as ``reader.Backup`` is.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Collection, Iterator

from casemate.backup.contents import MAX_VOLUME, Contents, StoredQube
from casemate.backup.errors import RefusedError
from casemate.backup.paranoid import facts, frames
from casemate.backup.paranoid.package import WORDS, code
from casemate.backup.reader import Report, Target, Verdict
from casemate.backup.restored_firewall import RULES
from casemate.backup.tar_reader import Sink
from casemate.client.calling import Disposable, open_stream
from casemate.client.qubes import Qubes
from casemate.client.service_stream import ServiceStream
from casemate.wire import names, vmexec
from casemate.wire.admin import ADMIN, BACKUP_READER
from casemate.wire.errors import CasemateError, NotHaltedError, ProtocolError, printable
from casemate.wire.qrexec import Command, exec_message

STALL_SECONDS = 600.0
"""How long the disposable may say nothing. The derivation of one key may take it a minute."""
MEMORY = 1024
"""MiB that the disposable gets at least. Two chunks of 100 MiB and two derivations of 128 MiB are under way at once."""
_FILES = (RULES, "notes.txt")

Bytes = Callable[[int], bytes]
"""Reads at most so many bytes of a backup; nothing at its end."""


class DisposableError(CasemateError):
    """There is no disposable that could read a backup."""


@contextlib.contextmanager
def opened(
    qubes: Qubes, source: Bytes, form: str, passphrase: bytes, forced_filter: str = ""
) -> Iterator[RemoteBackup]:
    """A backup, read in a new disposable of ``management_dispvm``. ``form``: ``tar``, or ``qfile`` as a qube sends it.

    DisposableError; PassphraseError and RefusedError as for one that is read here.
    """
    template = qubes.get(None, "management_dispvm").text
    if not template:
        raise DisposableError(
            "There is no template for the disposable. Make one that nothing else uses, and say so:\n"
            "  qvm-create --label black --prop template_for_dispvms=True --prop netvm= default-mgmt-dvm\n"
            "  qubes-prefs management_dispvm default-mgmt-dvm"
        )
    with Disposable(qubes, template) as name:
        _shut_in(qubes, name)
        command = Command("DEFAULT", "qubes.VMExec", vmexec.encode_vmexec(WORDS), ADMIN)
        sock = open_stream(qubes, name, exec_message(command.cmdline()), autostart=False)
        with contextlib.closing(ServiceStream(sock, name, STALL_SECONDS)) as stream:
            stream.write(code())
            order = {"form": form, "filter": forced_filter, "passphrase": base64.b64encode(passphrase).decode("ascii")}
            yield RemoteBackup(stream, source, order)


def _shut_in(qubes: Qubes, name: str) -> None:
    """Start the disposable, without a network, and with a tag for which the policy refuses all calls."""
    qubes.call("admin.vm.tag.Set", BACKUP_READER, name)
    for key in ("netvm", "default_dispvm"):
        qubes.set(name, key, "")
    memory = names.number(qubes.get(name, "memory").text, "memory")
    if memory < MEMORY:
        qubes.set(name, "memory", str(MEMORY))
    with contextlib.suppress(NotHaltedError):  # one that was preloaded runs already
        qubes.call("admin.vm.Start", "", name)


class RemoteBackup:
    """A backup being read in a disposable. First ``contents``, then ``run`` once.

    Nothing of what the disposable says is believed before it was checked: names and sizes are those of ``contents``,
    what is written lies inside its volume, and a qube is whole only if all of its volumes have come.
    """

    def __init__(self, stream: ServiceStream, source: Bytes, order: dict[str, str]) -> None:
        self._stream = stream
        self._source = source
        self._say(frames.ORDER, frames.text(order))
        _kind, body = self._hear(frames.CONTENTS)
        self.contents: Contents = facts.contents_of(frames.value(body))

    def _say(self, kind: bytes, body: bytes = b"") -> None:
        self._stream.write(frames.build(kind, body))

    def _hear(self, allowed: bytes) -> tuple[bytes, bytes]:
        """The next frame that is not about the backup's bytes, which it gets when it asks."""
        while True:
            kind, body = frames.read(self._stream.exactly, allowed + frames.NEED + frames.FAILED)
            if kind == frames.FAILED:
                raise RefusedError(facts.why_of(body))
            if kind != frames.NEED:
                return kind, body
            self._say(frames.DATA, self._source(frames.PIECE))

    def run(self, target: Target, only: Collection[str] | None = None, home: bool = True) -> Report:
        """See ``reader.Backup``."""
        asked = [name for name in self.contents.qubes if only is None or name in only]
        home = home and bool(self.contents.home)
        self._say(frames.RUN, frames.text({"only": None if only is None else asked, "home": home}))
        arrivals = _Arrivals(target, {name: self.contents.qubes[name] for name in asked})
        while True:
            kind, body = self._hear(
                frames.VOLUME + frames.WRITE + frames.FINISH + frames.FILE + frames.PROGRESS + frames.REPORT
            )
            if kind == frames.REPORT:
                return self._judged(facts.report_of(frames.value(body), self.contents, asked, home), arrivals)
            if kind == frames.WRITE:
                arrivals.write(body)
            elif kind == frames.PROGRESS:
                target.progress(min(frames.PLACE.unpack(body)[0], MAX_VOLUME) if len(body) == 8 else 0)
            else:
                self._answer(arrivals, kind, body)

    def _answer(self, arrivals: _Arrivals, kind: bytes, body: bytes) -> None:
        try:
            arrivals.take(kind, body)
        except ProtocolError:
            raise
        except CasemateError as error:
            self._say(frames.REFUSED, printable(str(error), 400).encode("ascii"))
        else:
            self._say(frames.DONE)

    def _judged(self, report: Report, arrivals: _Arrivals) -> Report:
        for verdict in report.verdicts.values():
            missing = sorted(set(self.contents.qubes[verdict.name].images) - arrivals.images[verdict.name])
            if verdict.state == "whole" and missing:
                why = f"{', '.join(missing)} did not arrive, though the disposable says so"
                report.verdicts[verdict.name] = Verdict(verdict.name, "damaged", why)
        return report


class _Arrivals:
    """What comes from the disposable, on its way to the target."""

    def __init__(self, target: Target, qubes: dict[str, StoredQube]) -> None:
        self._target = target
        self._qubes = qubes
        self._now: tuple[StoredQube, str] | None = None
        self._sink: Sink | None = None
        self._at = 0
        self._size = 0
        self._failed: CasemateError | None = None
        self.images: dict[str, set[str]] = {name: set() for name in qubes}
        """Files of volumes that are in place, by qube."""

    def take(self, kind: bytes, body: bytes) -> None:
        """A frame that is answered. ProtocolError ends the reading, another CasemateError is told the disposable."""
        if kind == frames.VOLUME:
            self._begin(*_three(frames.value(body)))
        elif kind == frames.FILE:
            self._file(body)
        else:
            self._finish()

    def _qube(self, name: object) -> StoredQube:
        qube = self._qubes.get(name) if isinstance(name, str) else None
        if qube is None:
            raise ProtocolError(f"It sends something for {printable(str(name), 40)}, which is not asked for")
        return qube

    def _begin(self, name: object, volume: object, size: object) -> None:
        qube = self._qube(name)
        image = qube.images.get(f"{volume}.img")
        if image is None or f"{volume}.img" in self.images[qube.name]:
            raise ProtocolError(f"It sends a volume {printable(str(volume), 40)} of {qube.name}, which is not expected")
        most = MAX_VOLUME if image.size is None else image.size
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= most:
            raise ProtocolError(f"It sends a volume of {printable(str(size), 40)} bytes; at most {most} are possible")
        self._now, self._at, self._size, self._failed, self._sink = None, 0, size, None, None
        sink = self._target.volume(qube, image.name)
        sink.begin(size)
        self._now, self._sink = (qube, image.name), sink

    def write(self, body: bytes) -> None:
        """Some bytes of the volume that has begun. What the target cannot take is told at its end."""
        (place,) = frames.PLACE.unpack_from(body) if len(body) >= frames.PLACE.size else (-1,)
        data = memoryview(body)[frames.PLACE.size :]
        if self._sink is None or place < self._at or place + len(data) > self._size:
            raise ProtocolError("It sends bytes that are in no volume")
        self._at = place + len(data)
        if self._failed is None:
            try:
                self._sink.write(place, data)
            except CasemateError as error:
                self._failed = error

    def _finish(self) -> None:
        if self._now is None:
            raise ProtocolError("It ends a volume that has not begun")
        (qube, name), self._now, self._sink = self._now, None, None
        if self._failed is not None:
            raise self._failed
        self._target.finish_volume(qube, name)
        self.images[qube.name].add(f"{name}.img")

    def _file(self, body: bytes) -> None:
        head, _line, data = body.partition(b"\n")
        said = frames.value(head)
        if not isinstance(said, list) or len(said) != 2 or said[1] not in _FILES:
            raise ProtocolError("It sends a file that no restore uses")
        self._target.file(self._qube(said[0]), said[1], data)


def _three(said: object) -> tuple[object, object, object]:
    if not isinstance(said, list) or len(said) != 3:
        raise ProtocolError("It begins a volume and does not say which")
    return said[0], said[1], said[2]
