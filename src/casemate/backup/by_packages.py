"""AES, large scrypt and zstd by installed Python packages: what this host uses. ``primitives.py`` chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

ZstdError = zstandard.ZstdError


def aes_ctr(key: bytes) -> Callable[[memoryview], bytes]:
    """A function that encrypts, or decrypts, the next bytes; the counter begins at 0."""
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update


def aes_cbc_decryptor(key: bytes, iv: bytes) -> Any:
    """``update(data)`` gives decrypted bytes; ``finalize()`` the rest, ValueError for half a block. Padding stays."""
    return Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()


def scrypt(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    """64 bytes, with whatever memory that takes."""
    return Scrypt(salt=salt, length=64, n=n, r=r, p=p).derive(passphrase)


def zstd_decompressor(window: int) -> Any:
    """``decompress(data)`` gives what can be said of a frame so far; ``ZstdError``. ``window`` in bytes is the most."""
    return zstandard.ZstdDecompressor(max_window_size=window).decompressobj()


def zstd_compressor() -> Any:
    """``compress(data)`` and ``flush()``."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
