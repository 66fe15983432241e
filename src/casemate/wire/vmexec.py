"""The argument of qubes.VMExec: the words of a command in the characters that an argument may have."""

from __future__ import annotations

from casemate.wire import names
from casemate.wire.errors import ValueInvalidError
from casemate.wire.qrexec import MAX_COMMAND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._")
_HEX = b"0123456789ABCDEF"


def encode_vmexec(words: Sequence[str | bytes]) -> str:
    """The words of a command as one argument: ``+`` between words, ``--`` for ``-``, ``-HH`` for other bytes."""
    if not words:
        raise ValueInvalidError("No command")
    encoded = []
    for word in words:
        raw = word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape")
        encoded.append("".join(chr(b) if b in _PLAIN else "--" if b == 0x2D else f"-{b:02X}" for b in raw))
    return "+".join(encoded)


def decode_vmexec(argument: str) -> list[bytes]:
    """The words that ``encode_vmexec`` was given; ValueInvalidError for anything it cannot have made."""
    words = []
    for word in names.text(argument, "command", MAX_COMMAND).encode("ascii").split(b"+"):
        first, *parts = word.replace(b"--", b"-2D").split(b"-")
        out = bytearray(first)
        plain = first
        for part in parts:
            code = part[:2]
            if len(code) != 2 or code.translate(None, _HEX):
                raise ValueInvalidError("The command is not encoded as qubes.VMExec wants it")
            out.append(int(code, 16))
            out += part[2:]
            plain += part[2:]
        if not _PLAIN.issuperset(plain):
            raise ValueInvalidError("The command is not encoded as qubes.VMExec wants it")
        if 0 in out:
            raise ValueInvalidError("The command has a NUL in it")
        words.append(bytes(out))
    return words
