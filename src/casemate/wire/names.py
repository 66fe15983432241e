"""The only validator of names: text from outside becomes a typed name here, or is refused. Nothing is rewritten.

Limits follow the protocol pages: bytes are decoded strictly as ASCII, checked for length, then matched whole.
"""

from __future__ import annotations

from casemate.wire.errors import ValueInvalidError, printable

# No `re` and no `typing` at run time: this module also starts with every tool inside a guest, where imports are slow.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NewType

    QubeName = NewType("QubeName", str)
    ServiceName = NewType("ServiceName", str)
    Argument = NewType("Argument", str)
    FeatureName = NewType("FeatureName", str)
    TagName = NewType("TagName", str)
    LabelName = NewType("LabelName", str)
    PoolName = NewType("PoolName", str)
    KernelName = NewType("KernelName", str)
    UserName = NewType("UserName", str)
    DatabasePath = NewType("DatabasePath", str)
else:
    QubeName = ServiceName = Argument = FeatureName = TagName = LabelName = PoolName = KernelName = UserName = str
    DatabasePath = str

_LOWER = b"abcdefghijklmnopqrstuvwxyz"
_LETTERS = _LOWER + _LOWER.upper()
_DIGITS = b"0123456789"
_WORD = _LETTERS + _DIGITS


class _Grammar:
    """The grammar of one kind of name: bytes it may start with, bytes that may follow, least and greatest length."""

    __slots__ = ("first", "high", "low", "rest", "what")

    def __init__(self, what: str, first: bytes, rest: bytes, high: int, low: int = 1) -> None:
        self.what = what
        self.first = frozenset(first)
        self.rest = rest
        self.high = high
        self.low = low

    def matches(self, raw: bytes) -> bool:
        """True when all of ``raw`` is such a name."""
        if not self.low <= len(raw) <= self.high:
            return False
        return not raw or (raw[0] in self.first and not raw.translate(None, self.rest))

    def rule(self) -> str:
        """The grammar in words, for who has broken it."""
        first, rest = _in_words(bytes(self.first)), _in_words(self.rest)
        begin = rest if first == rest else f"{rest}; the first is one of {first}"
        length = f"{self.low} to {self.high}" if self.low < self.high else f"{self.high}"
        return f"it has {length} characters: {begin}"


def _in_words(allowed: bytes) -> str:
    left, words = set(allowed), []
    for group, word in ((_LETTERS, "letters"), (_LOWER, "small letters"), (_DIGITS, "digits")):
        if left.issuperset(group):
            words.append(word)
            left.difference_update(group)
    return ", ".join([*words, *(chr(code) for code in sorted(left))])


_QUBE = _Grammar("qube name", _LETTERS, _WORD + b"_-", 31)
"""Limit of names (characters): qube."""
_SERVICE = _Grammar("service name", _WORD, _WORD + b"._-", 63)
"""Limit of names (characters): service."""
_ARGUMENT = _Grammar("service argument", _WORD + b"._@+:-", _WORD + b"._@+:-", 255, low=0)
"""Limit of names (characters): argument of a service."""
_FEATURE = _Grammar("feature name", _WORD + b"_.-", _WORD + b"_.-", 128)
"""Limit of names (characters): feature."""
_TAG = _Grammar("tag", _LETTERS, _WORD + b"_-", 64)
"""Limit of names (characters): tag."""
_LABEL = _Grammar("label name", _LOWER + _DIGITS + b"_.-", _LOWER + _DIGITS + b"_.-", 31)
"""Limit of names (characters): label."""
_POOL = _Grammar("pool name", _LETTERS, _WORD + b"_.-", 63)
"""Limit of names (characters): pool."""
# Debian's kernel releases have a "+" since trixie: 6.12.48+deb13-cloud-amd64.
_KERNEL = _Grammar("kernel name", _WORD, _WORD + b"._+-", 63)
_USER = _Grammar("user name", _LOWER + b"_", _LOWER + _DIGITS + b"_-", 32)
"""Limit of names (characters): user in a qube."""
_UUID = _Grammar("UUID", b"0123456789abcdef", b"0123456789abcdef-", 36, low=36)
_COLOR = _Grammar("colour", b"0", b"0123456789abcdefABCDEFx", 8, low=8)
_NUMBER = _Grammar("number", _DIGITS, _DIGITS, 19)
_PATH = _Grammar("database path", b"/", _WORD + b"_.:@-/", 63, low=2)

KEPT_FEATURES = frozenset(
    {
        "deferred-netvm-original",
        "preload-dispvm",
        "preload-dispvm-completed",
        "preload-dispvm-in-progress",
        "casemate-warm-image",
    }
)
"""Features that the daemon keeps for itself: nobody else sets them, and a copy of a qube does not have them."""

RESERVED_QUBES = frozenset({"none", "default", "lost+found", "dom0", "domain-0", "null", "all"})
"""Names that a new qube may not take, in upper or lower case: each is a keyword of some tool or file system."""


def text(raw: bytes | str, what: str = "text", limit: int = 65536) -> str:
    """Strict ASCII text of at most ``limit`` characters, else ValueInvalidError."""
    if isinstance(raw, bytes):
        try:
            raw = raw.decode("ascii", "strict")
        except UnicodeDecodeError:
            raise ValueInvalidError(f"The {what} may have ASCII characters only") from None
    if not raw.isascii():
        raise ValueInvalidError(f"The {what} may have ASCII characters only, not {foreign(raw)}")
    if len(raw) > limit:
        raise ValueInvalidError(f"The {what} has {len(raw)} characters, {limit} are allowed")
    return raw


def foreign(raw: str) -> str:
    """The characters of a text that are not ASCII, each once, safe to show: letters as they are."""
    found = dict.fromkeys(c for c in raw if not c.isascii())
    shown = [c if c.isalpha() else f"U+{ord(c):04X}" for c in list(found)[:8]]
    return ", ".join(shown) + (" …" if len(found) > 8 else "")


def _checked(grammar: _Grammar, raw: bytes | str, what: str = "") -> str:
    value = text(raw, what or grammar.what, 65536)
    if not grammar.matches(value.encode("ascii")):
        raise ValueInvalidError(f"Invalid {what or grammar.what}: {printable(value, 80)!r}; {grammar.rule()}")
    return value


def _invalid(what: str, value: str) -> ValueInvalidError:
    return ValueInvalidError(f"Invalid {what}: {printable(value, 80)!r}")


def qube_name(raw: bytes | str) -> QubeName:
    """Name of a qube: a letter, then letters, digits, ``_`` and ``-``, at most 31 characters."""
    return QubeName(_checked(_QUBE, raw))


def new_qube_name(raw: bytes | str) -> QubeName:
    """Name that a new qube may take: not reserved, and without the suffix ``-dm`` of Xen's stub domains."""
    name = qube_name(raw)
    if name.lower() in RESERVED_QUBES or name.endswith("-dm"):
        raise ValueInvalidError(f"The name {name!r} is reserved")
    return name


def service_name(raw: bytes | str) -> ServiceName:
    """Name of a qrexec service without its argument, at most 63 characters."""
    return ServiceName(_checked(_SERVICE, raw))


def argument(raw: bytes | str) -> Argument:
    """Argument of a qrexec service, possibly empty, at most 255 characters, never a path step ``..``."""
    return Argument(_checked(_ARGUMENT, raw))


def feature_name(raw: bytes | str) -> FeatureName:
    """Name of a feature."""
    return FeatureName(_checked(_FEATURE, raw))


def tag_name(raw: bytes | str) -> TagName:
    """Name of a tag."""
    return TagName(_checked(_TAG, raw))


def label_name(raw: bytes | str) -> LabelName:
    """Name of a label."""
    return LabelName(_checked(_LABEL, raw))


def pool_name(raw: bytes | str) -> PoolName:
    """Name of a storage pool."""
    return PoolName(_checked(_POOL, raw))


def kernel_name(raw: bytes | str) -> KernelName:
    """Name of a kernel: a directory below ``STATE/kernels``, so never ``.`` or ``..``, never with a ``/``."""
    return KernelName(_checked(_KERNEL, raw))


def user_name(raw: bytes | str) -> UserName:
    """Name of a user inside a guest; never starts with ``-``."""
    return UserName(_checked(_USER, raw))


def uuid_text(raw: bytes | str) -> str:
    """A UUID in its canonical 36-character lower-case form."""
    value = _checked(_UUID, raw)
    if [len(part) for part in value.split("-")] != [8, 4, 4, 4, 12]:
        raise _invalid("UUID", value)
    return value


def color(raw: bytes | str) -> str:
    """A label's colour, ``0xRRGGBB``."""
    value = _checked(_COLOR, raw)
    if not value.startswith("0x") or "x" in value[2:]:
        raise _invalid("colour", value)
    return value


def number(raw: bytes | str, what: str = "number", low: int = 0, high: int = 2**63 - 1) -> int:
    """A canonical decimal number (no sign, no leading zero, no underscore) within ``low..high``."""
    digits = _checked(_NUMBER, raw, what)
    if digits != "0" and digits.startswith("0"):
        raise _invalid(what, digits)
    value = int(digits)
    if not low <= value <= high:
        raise ValueInvalidError(f"{what} must be from {low} to {high}, not {value}")
    return value


def database_path(raw: bytes | str) -> DatabasePath:
    """A path that QubesDB can store: ``/a/b``, at most 63 characters, no empty, ``.`` or ``..`` segment."""
    value = _checked(_PATH, raw)
    if any(part in ("", ".", "..") or part.startswith("-") for part in value[1:].split("/")):
        raise _invalid("database path", value)
    return DatabasePath(value)
