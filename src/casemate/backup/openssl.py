"""Encryption and authentication in versions 3 and 2: what ``openssl enc`` and ``openssl dgst -hmac`` made.

The passphrase itself is the key of the HMAC, and one round of MD5 makes the key of the cipher. That is weak, and names
of chunks are not authenticated, so such backups are read and never written.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator

from casemate.backup.errors import DamagedError, RefusedError
from casemate.backup.primitives import aes_cbc_decryptor

DIGESTS = ("SHA1", "SHA224", "SHA256", "SHA384", "SHA512")
"""Algorithms of the HMAC. All that were ever written are SHA1 and SHA512."""
CIPHER = "aes-256-cbc"
_MAC_TEXT = re.compile(rb"(?:[A-Z0-9-]{0,16}\(stdin\)= )?([0-9a-f]{40,128})\n?")
_MAGIC = b"Salted__"
_BLOCK = 16


def check_mac(data: bytes | bytearray | memoryview, text: bytes, digest: str, passphrase: bytes, what: str) -> None:
    """DamagedError unless ``text``, as ``openssl dgst -hmac`` prints it, is the HMAC of the data."""
    found = _MAC_TEXT.fullmatch(text)
    if found is None:
        raise DamagedError(f"{what}: its code of authentication is malformed")
    made = hmac.new(passphrase, digestmod=digest.lower())
    made.update(data)
    if not hmac.compare_digest(made.hexdigest().encode("ascii"), found[1]):
        raise DamagedError(f"{what}: wrong passphrase, or it is damaged")


def check_names(digest: str, cipher: str | None) -> None:
    """RefusedError unless the header names algorithms that are known here."""
    if digest.upper() not in DIGESTS:
        raise RefusedError(f"The header names the HMAC algorithm {digest}; possible are {', '.join(DIGESTS)}")
    if cipher is not None and cipher.lower() != CIPHER:
        raise RefusedError(f"The header names the cipher {cipher}; only {CIPHER} is possible")


def decrypted(pieces: Iterable[bytes | memoryview], passphrase: bytes, what: str) -> Iterator[bytes]:
    """The data of one ``openssl enc`` stream; DamagedError when it is none or has a malformed end."""
    context = None
    start = b""
    last = b""
    for piece in pieces:
        if context is None:
            start += bytes(piece)
            if len(start) < len(_MAGIC) + 8:
                continue
            context = _cipher(start, passphrase, what)
            piece = start[len(_MAGIC) + 8 :]
        out = last + context.update(bytes(piece))
        last = out[-_BLOCK:]  # the last block has the padding
        if len(out) > _BLOCK:
            yield out[:-_BLOCK]
    if context is None:
        raise DamagedError(f"{what} is too short")
    try:
        last += context.finalize()
    except ValueError:
        raise DamagedError(f"{what} is cut") from None
    count = last[-1] if last else 0
    if not 1 <= count <= _BLOCK or last[-count:] != bytes([count]) * count:
        raise DamagedError(f"{what} cannot be decrypted: wrong passphrase, or it is damaged")
    if last[:-count]:
        yield last[:-count]


def _cipher(start: bytes, passphrase: bytes, what: str):  # type: ignore[no-untyped-def]
    if not start.startswith(_MAGIC):
        raise DamagedError(f"{what} is not encrypted as it should be")
    salt = start[len(_MAGIC) : len(_MAGIC) + 8]
    made = digest = b""
    while len(made) < 48:  # EVP_BytesToKey with MD5 and one round
        digest = hashlib.md5(digest + passphrase + salt, usedforsecurity=False).digest()
        made += digest
    return aes_cbc_decryptor(made[:32], made[32:48])
