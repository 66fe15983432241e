"""qfile: the stream that carries files between qubes; records, result, and which names and links are safe. Sans-I/O."""

from __future__ import annotations

import stat
import struct

from casemate.wire.errors import ProtocolError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = struct.Struct("<IIQIIII")
RESULT = struct.Struct("<IIQ")
EXTENSION = struct.Struct("<I")
MAX_NAME = 16383
"""Limit of file copy (bytes): whole name with its NUL, and target of a symbolic link."""
MAX_COMPONENT = 255
"""Limit of file copy (bytes): name of a file in its directory."""
END = bytes(HEADER.size)
"""Header that ends the stream."""

OK = 0
EEXIST = 17
EINVAL = 22
ENOSPC = 28
ENAMETOOLONG = 36
ENOLINK = 67
EILSEQ = 84
EREMOTEIO = 121
EDQUOT = 122
SENDER_GONE = 31415926
"""Result code for a stream that the sender ended early on purpose: it has told its user why."""


class FileError(ProtocolError):
    """An object that the receiver refuses; ``code`` goes back to the sender."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class FileHeader:
    """What is said of an object: ``name_length`` counts the NUL, ``size`` is of the content or the link's target."""

    __slots__ = ("atime", "atime_ns", "mode", "mtime", "mtime_ns", "name_length", "size")

    def __init__(
        self, name_length: int, mode: int, size: int, atime: int, atime_ns: int, mtime: int, mtime_ns: int
    ) -> None:
        self.name_length = name_length
        self.mode = mode
        self.size = size
        self.atime = atime
        self.atime_ns = atime_ns
        self.mtime = mtime
        self.mtime_ns = mtime_ns

    @property
    def is_dir(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """A symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def permissions(self) -> int:
        """The mode that the object gets: never setuid, setgid or sticky."""
        return self.mode & 0o777


def build_header(name: bytes, mode: int, size: int, atime_ns: int, mtime_ns: int) -> bytes:
    """Header and name of one object; times are clamped to what the format can say."""
    if not name or b"\0" in name or len(name) >= MAX_NAME:
        raise FileError(ENAMETOOLONG, f"name too long: {shown(name)}")
    return HEADER.pack(len(name) + 1, mode, size, *_time(atime_ns), *_time(mtime_ns)) + name + b"\0"


def _time(nanoseconds: int) -> tuple[int, int]:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return min(max(seconds, 0), 2**32 - 1), rest


def parse_header(raw: bytes | memoryview) -> FileHeader | None:
    """A header; None is the end of the stream. FileError for one that no receiver takes."""
    if bytes(raw) == END:
        return None
    header = FileHeader(*HEADER.unpack(raw))
    if not 2 <= header.name_length <= MAX_NAME:
        raise FileError(ENAMETOOLONG, f"name of {header.name_length} bytes")
    if not (header.is_dir or header.is_link or header.is_file):
        raise FileError(EINVAL, f"type {stat.S_IFMT(header.mode):#o} is not taken")
    if header.atime_ns > 999_999_999 or header.mtime_ns > 999_999_999:
        raise FileError(EINVAL, "time with more than a second of nanoseconds")
    if header.is_dir and header.size:
        raise FileError(EINVAL, "directory with content")
    if header.is_link and not 1 <= header.size <= MAX_NAME:
        raise FileError(ENAMETOOLONG, f"link target of {header.size} bytes")
    if header.size >= 2**63:
        raise FileError(EINVAL, f"file of {header.size} bytes")
    return header


# -- names


def shown(name: bytes) -> str:
    """A name as it may be shown to a user: printable ASCII without quotes."""
    return printable(name.decode("utf-8", "backslashreplace").replace('"', "_"), 200)


_ASCII = bytes(range(0x20, 0x7F))
_SCRIPTS = ("LATIN ", "GREEK ", "CYRILLIC ", "CJK ", "HANGUL ", "HIRAGANA ", "KATAKANA")
_LETTERS = frozenset({"Lu", "Ll", "Lt", "Lo", "Lm", "Nd"})
_PUNCTUATION = frozenset(
    "\u00a1\u00ab\u00b7\u00bb\u00bf\u2013\u2014\u2018\u2019\u201c\u201d\u201e\u2026\u3001\u3002\u300c\u300d\u300e\u300f\u3010\u3011\u30fb"
)


def is_plain(raw: bytes) -> bool:
    """Whether a receiver takes a name, or the target of a link, without being asked for all names."""
    try:
        _check_characters(raw, "name")
    except FileError:
        return False
    return True


def _check_characters(raw: bytes, what: str) -> None:
    """Printable ASCII, or text in scripts that cannot be mistaken for something else on a screen."""
    if not raw.translate(None, _ASCII):
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise FileError(EILSEQ, f"{what} is not UTF-8") from None
    import unicodedata

    letters = "".join(char for char in text if char not in _PUNCTUATION)
    if unicodedata.normalize("NFKC", letters) != letters:
        raise FileError(EILSEQ, f"{what} is not in its plain composed form")
    for char in text:
        if " " <= char <= "~" or char in _PUNCTUATION:
            continue
        if unicodedata.category(char) not in _LETTERS or not unicodedata.name(char, "").startswith(_SCRIPTS):
            raise FileError(EILSEQ, f"{what} has a character that is not taken: U+{ord(char):04X}")


def parse_name(raw: bytes | memoryview, all_names: bool = False) -> list[bytes]:
    """The components of a name as received (with its NUL); FileError (EILSEQ) unless relative and canonical.

    With ``all_names`` its characters may be any, as for upstream's receiver: who shows it must make it harmless.
    """
    name = bytes(raw)
    if name.find(b"\0") != len(name) - 1:
        raise FileError(EILSEQ, "name does not end with its NUL")
    name = name[:-1]
    if not all_names:
        _check_characters(name, "name")
    parts = name.split(b"/")
    if any(part in (b"", b".", b"..") or len(part) > MAX_COMPONENT for part in parts):
        raise FileError(EILSEQ, "name is not a plain relative path")
    return parts


def check_link(parts: Sequence[bytes], target: bytes, all_names: bool = False) -> None:
    """FileError (ENOLINK) unless the link stays within the top directory it is sent in.

    The link itself lies at least two deep; its target is relative and has ``..`` only at its start, at most as often
    as it may climb without leaving the top directory.
    """
    if not all_names:
        _check_characters(target, "link target")
    elif b"\0" in target:
        raise FileError(EILSEQ, "link target with a NUL")
    if len(parts) < 2:
        raise FileError(ENOLINK, "a link must lie in a directory that is sent with it")
    if not target or target.startswith(b"/"):
        raise FileError(ENOLINK, "link target is not relative")
    steps = [step for step in target.split(b"/") if step not in (b"", b".")]
    up = 0
    while up < len(steps) and steps[up] == b"..":
        up += 1
    if up > len(parts) - 2 or b".." in steps[up:]:
        raise FileError(ENOLINK, "link target leaves the directory that is sent")


# -- result


def build_result(code: int, crc: int, last_name: bytes = b"") -> bytes:
    """The receiver's answer, always in its extended form."""
    last_name = last_name[: MAX_NAME - 1]
    return RESULT.pack(code, 0, crc) + EXTENSION.pack(len(last_name)) + last_name


class Result:
    """The receiver's answer; ``last_name`` is untrusted: compare it with what was sent, show it with ``shown``."""

    __slots__ = ("code", "crc", "last_name")

    def __init__(self, code: int, crc: int, last_name: bytes) -> None:
        self.code = code
        self.crc = crc
        self.last_name = last_name


class ResultReader:
    """Collects a receiver's answer; bounded."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes; ProtocolError for more than a result can be."""
        self._data += bytes(data)
        if len(self._data) > RESULT.size + EXTENSION.size + MAX_NAME:
            raise ProtocolError("The receiver's answer is too long")

    def get(self, ended: bool) -> Result | None:
        """The result when it is complete, or when the stream has ended after the short form; else None."""
        data = self._data
        fixed = RESULT.size + EXTENSION.size
        if len(data) < RESULT.size or (len(data) < fixed and not ended):
            return None
        code, _pad, crc = RESULT.unpack_from(data)
        if len(data) < fixed:
            return Result(code, crc & 0xFFFFFFFF, b"")
        (length,) = EXTENSION.unpack_from(data, RESULT.size)
        if length > MAX_NAME:
            raise ProtocolError("The receiver's answer has a name that is too long")
        if len(data) < fixed + length and not ended:
            return None
        return Result(code, crc & 0xFFFFFFFF, data[fixed : fixed + length])
