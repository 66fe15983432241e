"""The one validator: text from outside becomes a typed name here, or is refused; nothing is rewritten.

Limits follow the protocol pages: bytes are decoded strictly as ASCII, checked for length, then matched whole.
"""

from __future__ import annotations

import re
from typing import NewType, TypeVar

from casemate.wire.errors import ValueInvalidError, printable

QubeName = NewType("QubeName", str)
ServiceName = NewType("ServiceName", str)
Argument = NewType("Argument", str)
FeatureName = NewType("FeatureName", str)
TagName = NewType("TagName", str)
LabelName = NewType("LabelName", str)
PoolName = NewType("PoolName", str)
UserName = NewType("UserName", str)
DatabasePath = NewType("DatabasePath", str)

_T = TypeVar("_T")

_QUBE = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,30}", re.ASCII)
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_ARGUMENT = re.compile(r"[A-Za-z0-9._@+:-]{0,255}", re.ASCII)
_FEATURE = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)
_TAG = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,63}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_.-]{1,31}", re.ASCII)
_POOL = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,62}", re.ASCII)
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_COLOR = re.compile(r"0x[0-9a-fA-F]{6}", re.ASCII)
_PATH = re.compile(r"/[A-Za-z0-9_.:@-]+(/[A-Za-z0-9_.:@-]+)*", re.ASCII)
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,18})", re.ASCII)

RESERVED_QUBES = frozenset({"none", "default", "lost+found", "dom0", "domain-0", "null", "all"})
"""Names that a new qube may not take, in any case: they are keywords somewhere (lesson L30)."""


def text(raw: bytes | str, what: str = "text", limit: int = 65536) -> str:
    """Strict ASCII text of at most ``limit`` characters, else ValueInvalidError."""
    if isinstance(raw, bytes):
        try:
            raw = raw.decode("ascii", "strict")
        except UnicodeDecodeError:
            raise ValueInvalidError(f"{what} is not ASCII") from None
    if len(raw) > limit or not raw.isascii():
        raise ValueInvalidError(f"{what} is too long or not ASCII")
    return raw


def _checked(pattern: re.Pattern[str], raw: bytes | str, what: str, limit: int) -> str:
    value = text(raw, what, limit)
    if pattern.fullmatch(value) is None:
        raise ValueInvalidError(f"Invalid {what}: {printable(value, 80)!r}")
    return value


def qube_name(raw: bytes | str) -> QubeName:
    """Name of a qube: a letter, then letters, digits, ``_`` and ``-``, at most 31 characters."""
    return QubeName(_checked(_QUBE, raw, "qube name", 31))


def new_qube_name(raw: bytes | str) -> QubeName:
    """Name that a new qube may take: not reserved, not ending in the suffix of a helper domain."""
    name = qube_name(raw)
    if name.lower() in RESERVED_QUBES or name.endswith("-dm"):
        raise ValueInvalidError(f"The name {name!r} is reserved")
    return name


def service_name(raw: bytes | str) -> ServiceName:
    """Name of a qrexec service without its argument, at most 63 characters."""
    return ServiceName(_checked(_SERVICE, raw, "service name", 63))


def argument(raw: bytes | str) -> Argument:
    """Argument of a qrexec service, possibly empty, at most 255 characters, never a path step ``..``."""
    value = _checked(_ARGUMENT, raw, "service argument", 255)
    return Argument(value)


def feature_name(raw: bytes | str) -> FeatureName:
    """Name of a feature."""
    return FeatureName(_checked(_FEATURE, raw, "feature name", 128))


def tag_name(raw: bytes | str) -> TagName:
    """Name of a tag."""
    return TagName(_checked(_TAG, raw, "tag", 64))


def label_name(raw: bytes | str) -> LabelName:
    """Name of a label."""
    return LabelName(_checked(_LABEL, raw, "label name", 31))


def pool_name(raw: bytes | str) -> PoolName:
    """Name of a storage pool."""
    return PoolName(_checked(_POOL, raw, "pool name", 63))


def user_name(raw: bytes | str) -> UserName:
    """Name of a user inside a guest; never starts with ``-``."""
    return UserName(_checked(_USER, raw, "user name", 32))


def uuid_text(raw: bytes | str) -> str:
    """A UUID in its canonical 36-character lower-case form."""
    return _checked(_UUID, raw, "UUID", 36)


def color(raw: bytes | str) -> str:
    """A label's colour, ``0xRRGGBB``."""
    return _checked(_COLOR, raw, "colour", 8)


def number(raw: bytes | str, what: str = "number", low: int = 0, high: int = 2**63 - 1) -> int:
    """A canonical decimal number (no sign, no leading zero, no underscore) within ``low..high``."""
    value = int(_checked(_NUMBER, raw, what, 19))
    if not low <= value <= high:
        raise ValueInvalidError(f"{what} must be from {low} to {high}, not {value}")
    return value


def database_path(raw: bytes | str) -> DatabasePath:
    """A path that QubesDB can store: ``/a/b``, at most 63 characters, no empty, ``.`` or ``..`` segment."""
    value = _checked(_PATH, raw, "database path", 63)
    if any(part in (".", "..") or part.startswith("-") for part in value[1:].split("/")):
        raise ValueInvalidError(f"Invalid database path: {printable(value, 80)!r}")
    return DatabasePath(value)
