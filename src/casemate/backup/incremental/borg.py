"""Runs borg: its arguments, how it gets the passphrase, what its messages mean. Works with borg 1.2 to 1.4.

The passphrase travels through a pipe that only borg inherits (``BORG_PASSPHRASE_FD``), so it is in no argument, no
environment and no file. borg is killed with the thread that runs it (PR_SET_PDEATHSIG); its repository is a journal, in
which whatever was not committed never happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol

from casemate.backup.errors import BackupError, DamagedError, PassphraseError
from casemate.backup.incremental.warm_borg import WarmBorg
from casemate.wire.errors import printable

CHUNKER = "fixed,65536"
"""Chunks as large as the clusters of a layer: a changed cluster is a changed chunk, and no other."""
COMPRESSION = "auto,zstd,3"
"""zstd, for chunks that lz4 can compress; others are stored as they are."""
CHECKPOINT_SECONDS = 60
"""How much of a run's work a kill can cost: borg commits what it has so often."""
_LOCK_SECONDS = 20
"""How long borg waits for a lock that another borg has."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SETPRIV = "/usr/bin/setpriv"
_SAID = 256 << 10
_PIPE_BYTES = 1 << 20
_ITEM = "content"
"""The one file of each archive."""


class MissingBorgError(BackupError):
    """borg is not installed."""


class NoRepositoryError(BackupError):
    """There is no repository at that place, or none of ours."""


class LockedError(BackupError):
    """Somebody else works on the repository, or has left a lock that borg cannot see to be stale."""


class FullError(BackupError):
    """The repository's disk is full; what was begun has been taken back."""


class DamagedRepositoryError(DamagedError):
    """borg says that data of the repository is damaged."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive, as borg lists it. ``comment`` is what we said of it when it was made."""

    name: str
    comment: str


class Process(Protocol):
    """A borg that runs: of ``subprocess``, or forked from one that was loaded ahead."""

    @property
    def stdin(self) -> IO[bytes] | None: ...
    @property
    def stdout(self) -> IO[bytes] | None: ...
    @property
    def stderr(self) -> IO[bytes] | None: ...
    def wait(self) -> int: ...
    def kill(self) -> None: ...


class Borg:
    """Runs borg on one repository. Calls block; two instances may work side by side, as far as borg's locks let them.

    ``base`` is where borg keeps its cache and what it remembers of repositories. ``load_ahead`` begins what makes the
    next commands faster; then ``close`` ends that.
    """

    def __init__(self, place: Path, passphrase: bytes, base: Path) -> None:
        self._warm: WarmBorg | None = None
        self.place = place
        self._passphrase = passphrase
        self._base = base

    def load_ahead(self) -> None:
        """Load borg in the background for commands that will follow."""
        if self._warm is None:
            self._warm = WarmBorg(_PATH)

    def close(self) -> None:
        """End what was loaded ahead."""
        if self._warm is not None:
            self._warm.close()
            self._warm = None

    # -- commands

    def init(self) -> None:
        """Make the repository; its key is in it, encrypted by the passphrase. Parent directories must exist."""
        self._finished("init", "--encryption", "repokey", str(self.place))

    def archives(self) -> list[Archive]:
        """All archives, oldest first."""
        found = self._json("list", "--json", "--format", "{name}{comment}", str(self.place))
        return [Archive(str(one["name"]), str(one.get("comment", ""))) for one in found["archives"]]

    def create(self, name: str, comment: str, pieces: Iterable[bytes | bytearray]) -> None:
        """Make an archive of a stream. It is there whole or, when something fails, not at all."""
        process, said = self._start("create", *self._creation(comment), self._of(name), "-", stdin=subprocess.PIPE)
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it is only faster: we and borg wait less often for each other
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        broken = False
        try:
            try:
                for piece in pieces:
                    process.stdin.write(piece)
                process.stdin.close()
            except BrokenPipeError:
                broken = True  # it has ended; what it says tells why
        except BaseException:
            # Killed before its input ends: at the end of its input it would commit half an archive.
            process.kill()
            raise
        finally:
            status = _wait(process)
        self._judge(status or (2 if broken else 0), said())

    def create_small(self, name: str, comment: str, data: bytes) -> None:
        """The same for data in memory. borg gets it as a file, so that it has all of it even when we are killed."""
        with _in_memory(data) as file:
            process, said = self._start("create", *self._creation(comment), self._of(name), "-", stdin=file.fileno())
            status = _wait(process)
        self._judge(status, said())

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[Stream]:
        """The stream of an archive. An error of borg's is raised at the end of the stream, or of the block."""
        process, said = self._start("extract", "--stdout", self._of(name), stdout=subprocess.PIPE)
        stream = Stream(self, process, said)
        try:
            yield stream
        finally:
            stream.close()

    def delete(self, names: Sequence[str]) -> None:
        """Remove archives; their room comes back with ``compact``."""
        for at in range(0, len(names), 500):  # the length of a command line is bounded
            first, *rest = names[at : at + 500]
            self._finished("delete", self._of(first), *rest)

    def compact(self) -> None:
        """Give room back that nothing needs any more."""
        self._finished("compact", str(self.place))

    def check(self, repair: bool = False) -> str:
        """Have borg check the repository's structure and checksums; what is wrong, "" for nothing.

        ``repair``: take damaged data out, so that it can be stored anew.
        """
        words = ["check", *(["--repair"] if repair else []), str(self.place)]
        process, said = self._start(*words)
        status, told = _wait(process), said()
        errors = [one["message"] for one in told if one.get("levelname") in ("ERROR", "CRITICAL", "WARNING")]
        if status in (0, 1) and (repair or not errors):
            return "\n".join(errors)
        if status == 1 or any("integrity" in str(one).lower() or "missing" in str(one).lower() for one in errors):
            return "\n".join(errors) or "borg check failed"
        self._judge(status, told)
        return "\n".join(errors)

    # -- running it

    def _of(self, name: str) -> str:
        return f"{self.place}::{name}"

    def _creation(self, comment: str) -> list[str]:
        return [
            "--chunker-params", CHUNKER, "--compression", COMPRESSION, "--files-cache", "disabled",
            "--checkpoint-interval", str(CHECKPOINT_SECONDS), "--stdin-name", _ITEM, "--comment", comment,
        ]  # fmt: skip

    def _start(
        self, *words: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
    ) -> tuple[Process, _Messages]:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        process: Process | None = None
        env = {
            "PATH": _PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/"),
            "BORG_BASE_DIR": str(self._base), "BORG_PASSPHRASE_FD": str(reading),
            # A stick may be mounted elsewhere today. Whether it is the same repository is known by its key.
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "BORG_CHECK_I_KNOW_WHAT_I_AM_DOING": "YES", "BORG_DISPLAY_PASSPHRASE": "no",
        }  # fmt: skip
        all_words = ["--log-json", "--lock-wait", str(_LOCK_SECONDS), *words]
        try:
            with open(writing, "wb", buffering=0) as pipe:
                pipe.write(self._passphrase)  # shorter than a pipe holds, so that this never waits
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._warm is not None:
                process = self._warm.start(all_words, env, stdin, stdout, reading)
            if process is None:
                process = subprocess.Popen(
                    [_SETPRIV, "--pdeathsig", "KILL", "--", "borg", *all_words], env=env,
                    stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, pass_fds=[reading], start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise BackupError(f"borg cannot be run: {error.filename or ''}: {error.strerror}") from None
        finally:
            os.close(reading)
        return process, _Messages(process)

    def _finished(self, *words: str, stdout: int = subprocess.DEVNULL) -> bytes:
        process, said = self._start(*words, stdout=stdout)
        out = b""
        if process.stdout is not None:
            with process.stdout:
                out = process.stdout.read()
        self._judge(_wait(process), said())
        return out

    def _json(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._finished(*words, stdout=subprocess.PIPE))
        return found

    def _judge(self, status: int, said: list[dict[str, Any]]) -> None:
        """Raise what borg means. A status of 1 is a warning, after which the work is done; 127 comes from setpriv."""
        if status in (0, 1):
            return
        text = "\n".join(str(one.get("message", "")) for one in said)
        ids = {str(one.get("msgid", "")) for one in said}
        place = self.place
        if status in (126, 127) and not any(ids):
            raise MissingBorgError(
                "borg is not installed; it is in Debian's package borgbackup (apt install borgbackup)"
            )
        if "PassphraseWrong" in ids:
            raise PassphraseError(f"The passphrase is wrong: it does not open {place}")
        if ids & {"Repository.DoesNotExist", "Repository.InvalidRepository", "Repository.PathPermissionDenied"}:
            raise NoRepositoryError(f"There is no repository in {place}; `casemate backup init` makes one")
        if ids & {"Repository.AlreadyExists", "Repository.PathAlreadyExists", "Repository.ParentPathDoesNotExist"}:
            raise BackupError(printable(text, 400))
        if ids & {"LockTimeout", "LockErrorT", "LockError", "LockFailed"}:
            raise LockedError(
                f"Another borg works on {place}, or was killed on another computer. If none is running, "
                f"`borg break-lock {place}` takes its lock away"
            )
        if "No space left on device" in text or "Repository.InsufficientFreeSpaceError" in ids or "Errno 28" in text:
            raise FullError(f"No space left for {place}: nothing of this was stored")
        if "Archive.DoesNotExist" in ids:
            raise DamagedError(f"{place} lacks an archive: {printable(text, 200)}")
        if any("Integrity" in one for one in ids) or "integrity error" in text.lower():
            raise DamagedRepositoryError(f"{place} is damaged: {printable(_short(text), 300)}")
        if "Read-only file system" in text or "Permission denied" in text:
            raise BackupError(f"{place} cannot be written to: {printable(_short(text), 300)}")
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise BackupError(f"borg {how}: {printable(_short(text), 500) or 'it said nothing'}")


class Stream:
    """What an archive has, read as it comes."""

    def __init__(self, borg: Borg, process: Process, said: _Messages) -> None:
        self._borg = borg
        self._process = process
        self._said = said
        self._ended = False

    def read(self, most: int) -> bytes:
        """The next bytes; none at the end, after which borg has said that all was sound."""
        assert self._process.stdout is not None
        data = self._process.stdout.read(most)
        if not data and not self._ended:
            self._ended = True
            self._borg._judge(_wait(self._process), self._said())
        return data

    def close(self) -> None:
        """Stop reading."""
        if not self._ended:
            self._process.kill()
            _wait(self._process)
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Messages:
    """Collects what borg says, so that it never waits for a reader."""

    def __init__(self, process: Process) -> None:
        self._data = bytearray()
        self._process = process
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while data := stream.read1(65536):  # type: ignore[attr-defined]
                self._data += data[: max(0, _SAID - len(self._data))]

    def __call__(self) -> list[dict[str, Any]]:
        """The messages; the program has ended."""
        self._thread.join()
        found: list[dict[str, Any]] = []
        for line in bytes(self._data).decode("utf-8", "replace").splitlines():
            try:
                one = json.loads(line)
            except ValueError:
                one = {"message": line}
            if isinstance(one, dict):
                found.append(one)
        return found


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[BinaryIO]:
    with open(os.memfd_create("snapshot", os.MFD_CLOEXEC), "w+b") as file:
        file.write(data)
        file.seek(0)
        yield file


def _wait(process: Process) -> int:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    return process.wait()


def _short(text: str) -> str:
    """The end of it: the last line of a traceback says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    plain = [
        line for line in lines if not line.startswith(("File ", "Platform:", "Linux:", "Borg:", "PID:", "sys.argv"))
    ]
    return " ".join(plain[-3:])
