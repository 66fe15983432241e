"""The container of each member in version 4: that of the scrypt(1) program. Key derivation, encryption, authentication.

Numbers are big-endian. ::

    "scrypt" 0 logN(u8) r(u32) p(u32) salt(32) | checksum(16) | mac(32) | data, AES-256-CTR | mac(32)

The first mac is over the first 64 bytes: it tells a wrong passphrase before anything else is done. The last is over all
that comes before it. scrypt(passphrase, salt) gives 64 bytes: the AES key, then the key of both macs (HMAC-SHA256).
Source: the format file of the scrypt program, version 0.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass

from casemate.backup import primitives
from casemate.backup.errors import DamagedError, UntriedError

_HEAD = struct.Struct(">6sBBII32s")
_CHECKED, _AUTHENTIC, OVERHEAD_BEFORE, _MAC = 48, 64, 96, 32
OVERHEAD = OVERHEAD_BEFORE + _MAC
"""Bytes around the data."""
_PIECE = 1 << 20
_HASHLIB_MOST = (1 << 31) - 1
"""hashlib takes no higher limit of memory; beyond it another library does the derivation (primitives.py)."""

MAX_KDF_MEMORY = 4 << 30
"""Limit of a backup (bytes): memory that the derivation of one key may take.

The parameters come with the backup and are not authenticated: whoever alters them could stop a reader for hours before
any passphrase was tried."""
MAX_KDF_WORK = 1 << 26
"""Limit of a backup (N times r times p): work of the derivation of one key. The program's own choice is 2**23 on a
machine of 2020, about 4 seconds of it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters of scrypt. Its memory is 128 * N * r bytes, its time is proportional to N * r * p."""

    log_n: int
    r: int = 8
    p: int = 1

    @property
    def memory(self) -> int:
        """Bytes."""
        return 128 * self.r << self.log_n

    @property
    def work(self) -> int:
        """N times r times p."""
        return self.r * self.p << self.log_n


DEFAULT_COST = Cost(17)
"""128 MiB and half a second for each member. Upstream's tool takes what the writing machine happens to bear."""


class Keys:
    """The keys of one member."""

    __slots__ = ("_mac", "cipher")

    def __init__(self, passphrase: bytes, salt: bytes, cost: Cost) -> None:
        n = 1 << cost.log_n
        if cost.memory + (1 << 20) < _HASHLIB_MOST:
            # Room for the blocks of each lane too, of which OpenSSL counts p.
            most = min(_HASHLIB_MOST, cost.memory + 256 * cost.r * cost.p + (1 << 20))
            derived = hashlib.scrypt(passphrase, salt=salt, n=n, r=cost.r, p=cost.p, maxmem=most, dklen=64)
        else:
            derived = primitives.scrypt(passphrase, salt, n, cost.r, cost.p)
        self.cipher = derived[:32]
        self._mac = derived[32:]

    def mac(self, *pieces: bytes | bytearray | memoryview) -> bytes:
        """The code of authentication over these bytes."""
        made = hmac.new(self._mac, digestmod="sha256")
        for piece in pieces:
            made.update(piece)
        return made.digest()


def cost_of(data: bytes | bytearray | memoryview, what: str) -> tuple[Cost, bytes]:
    """(parameters, salt) of a container; DamagedError when it is none, UntriedError when it asks for more than
    the limits or is too short."""
    if len(data) < OVERHEAD:
        raise UntriedError(f"{what} is too short")
    magic, version, log_n, r, p, salt = _HEAD.unpack_from(data)
    if magic != b"scrypt" or version != 0:
        raise DamagedError(f"{what} is not encrypted as it should be")
    checksum = hashlib.sha256(bytes(data[:_CHECKED])).digest()[:16]
    if not hmac.compare_digest(checksum, bytes(data[_CHECKED:_AUTHENTIC])):
        raise DamagedError(f"{what} is damaged: the checksum of its first bytes is wrong")
    cost = Cost(log_n, r, p)
    if not 1 <= log_n < 63 or not r or not p or r * p >= 1 << 30:
        raise UntriedError(f"{what} asks for a key derivation that does not exist (logN {log_n}, r {r}, p {p})")
    if cost.memory > MAX_KDF_MEMORY:
        raise UntriedError(
            f"{what} asks for {cost.memory >> 20} MiB to derive a key; the limit is {MAX_KDF_MEMORY >> 20}"
        )
    if cost.work > MAX_KDF_WORK:
        raise UntriedError(
            f"{what} asks for {cost.work // (1 << 23)} times the usual work to derive a key; the limit is "
            f"{MAX_KDF_WORK // (1 << 23)} times"
        )
    return cost, salt


def decrypt(data: bytearray, passphrase: bytes, what: str) -> memoryview:
    """The data of a container, decrypted where it lies. DamagedError for a wrong passphrase or altered bytes.

    Nothing is decrypted before the code of authentication over all of it was checked.
    """
    cost, salt = cost_of(data, what)
    keys = Keys(passphrase, salt, cost)
    view = memoryview(data)
    if not hmac.compare_digest(keys.mac(view[:_AUTHENTIC]), view[_AUTHENTIC:OVERHEAD_BEFORE]):
        raise DamagedError(f"{what}: wrong passphrase, or it belongs to another place or backup")
    if not hmac.compare_digest(keys.mac(view[:-_MAC]), view[-_MAC:]):
        raise DamagedError(f"{what} is damaged: its code of authentication is wrong")
    body = view[OVERHEAD_BEFORE:-_MAC]
    update = primitives.aes_ctr(keys.cipher)
    for at in range(0, len(body), _PIECE):
        body[at : at + _PIECE] = update(body[at : at + _PIECE])
    return body


def encrypt(
    data: bytearray, passphrase: bytes, cost: Cost = DEFAULT_COST, keys: tuple[bytes, Keys] | None = None
) -> list[bytes | memoryview]:
    """Encrypt ``data`` where it lies; the pieces of its container. ``keys``: (salt, keys) that were derived before."""
    salt, derived = new_keys(passphrase, cost) if keys is None else keys
    head = _HEAD.pack(b"scrypt", 0, cost.log_n, cost.r, cost.p, salt)
    head += hashlib.sha256(head).digest()[:16]
    head += derived.mac(head)
    view = memoryview(data)
    update = primitives.aes_ctr(derived.cipher)
    for at in range(0, len(view), _PIECE):
        view[at : at + _PIECE] = update(view[at : at + _PIECE])
    return [head, view, derived.mac(head, view)]


def new_keys(passphrase: bytes, cost: Cost) -> tuple[bytes, Keys]:
    """A fresh salt, and the keys that go with it."""
    salt = os.urandom(32)
    return salt, Keys(passphrase, salt, cost)
