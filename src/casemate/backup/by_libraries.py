"""AES, large scrypt and zstd by the system's own libraries, for reading where no Python package is installed.

That is so in the disposable that reads a backup in paranoid mode. A template has Python's standard library, and with it
libcrypto (hashlib needs it) and libzstd (dpkg needs it). They are called through ctypes; sources: evp.h of OpenSSL 3,
and zstd.h. Memory that a C function fills is always allocated here, with the size that the function is told.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from casemate.backup.errors import RefusedError

_BLOCK = 16
_PIECE = 1 << 20
_ZSTD_OUT = 1 << 17
"""Bytes of output at once: the largest block of zstd (RFC 8878)."""
_WINDOW_LOG_MAX = 100
"""ZSTD_d_windowLogMax of ZSTD_dParameter."""


class ZstdError(Exception):
    """The data is not what zstd made."""


@cache
def _library(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise RefusedError(f"The backup cannot be read here without {name}: {error}") from None


@cache
def _crypto() -> Any:
    found = _library("libcrypto.so.3")
    for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_ctr", "EVP_aes_256_cbc"):
        getattr(found, name).restype = ctypes.c_void_p
    return found


class _Cipher:
    """A context of EVP_CipherUpdate; freed with the object."""

    def __init__(self, cipher: str, key: bytes, iv: bytes, encrypt: bool) -> None:
        library = _crypto()
        if len(key) != 32 or len(iv) != _BLOCK:
            raise ValueError("key or initialization vector of a wrong length")
        self._library = library
        self._context = ctypes.c_void_p(library.EVP_CIPHER_CTX_new())
        self._pending = 0
        kind = ctypes.c_void_p(getattr(library, cipher)())
        done = library.EVP_CipherInit_ex(self._context, kind, None, key, iv, ctypes.c_int(encrypt))
        if done != 1 or library.EVP_CIPHER_CTX_set_padding(self._context, 0) != 1:
            raise RefusedError("The system's libcrypto has no AES")

    def __del__(self) -> None:
        if context := getattr(self, "_context", None):
            self._library.EVP_CIPHER_CTX_free(context)

    def update(self, data: bytes | memoryview) -> bytes:
        """The next bytes."""
        parts = []
        for at in range(0, len(data), _PIECE):
            piece = bytes(data[at : at + _PIECE])
            out, count = ctypes.create_string_buffer(len(piece) + _BLOCK), ctypes.c_int(0)
            done = self._library.EVP_CipherUpdate(self._context, out, ctypes.byref(count), piece, len(piece))
            if done != 1:
                raise ValueError("AES failed")
            parts.append(out.raw[: count.value])
            self._pending += len(piece) - count.value
        return b"".join(parts)

    def finalize(self) -> bytes:
        """Nothing more: without padding there is none. ValueError for half a block."""
        out, count = ctypes.create_string_buffer(2 * _BLOCK), ctypes.c_int(0)
        if self._library.EVP_CipherFinal_ex(self._context, out, ctypes.byref(count)) != 1:
            raise ValueError("half a block")
        return out.raw[: count.value]


def aes_ctr(key: bytes) -> Callable[[memoryview], bytes]:
    """As in ``by_packages.py``."""
    return _Cipher("EVP_aes_256_ctr", key, bytes(_BLOCK), True).update


def aes_cbc_decryptor(key: bytes, iv: bytes) -> _Cipher:
    """As in ``by_packages.py``."""
    return _Cipher("EVP_aes_256_cbc", key, iv, False)


def scrypt(passphrase: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    """As in ``by_packages.py``. RefusedError where there is not enough memory."""
    number, most = ctypes.c_uint64, 128 * r * n + 256 * r * p + (1 << 20)
    out = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t
    done = _crypto().EVP_PBE_scrypt(
        passphrase, size(len(passphrase)), salt, size(len(salt)), number(n), number(r), number(p), number(most), out,
        size(64),
    )  # fmt: skip
    if done != 1:
        raise RefusedError(f"There is not enough memory here to derive a key: {most >> 20} MiB are needed")
    return out.raw


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""

    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t), ("at", ctypes.c_size_t))


class _Decompressor:
    """A context of ZSTD_decompressStream; freed with the object."""

    def __init__(self, window: int) -> None:
        library = _library("libzstd.so.1")
        library.ZSTD_createDCtx.restype = ctypes.c_void_p
        library.ZSTD_getErrorName.restype = ctypes.c_char_p
        for name in ("ZSTD_decompressStream", "ZSTD_DCtx_setParameter"):
            getattr(library, name).restype = ctypes.c_size_t
        self._library = library
        self._context = ctypes.c_void_p(library.ZSTD_createDCtx())
        self._checked(library.ZSTD_DCtx_setParameter(self._context, _WINDOW_LOG_MAX, window.bit_length() - 1))

    def __del__(self) -> None:
        if context := getattr(self, "_context", None):
            self._library.ZSTD_freeDCtx(context)

    def _checked(self, code: int) -> None:
        if self._library.ZSTD_isError(ctypes.c_size_t(code)):
            raise ZstdError(self._library.ZSTD_getErrorName(ctypes.c_size_t(code)).decode("ascii", "replace"))

    def decompress(self, data: bytes) -> bytes:
        """What can be said so far."""
        given = ctypes.create_string_buffer(data, len(data))
        source = _Buffer(ctypes.addressof(given), len(data), 0)
        space = ctypes.create_string_buffer(_ZSTD_OUT)
        parts = []
        while True:
            target = _Buffer(ctypes.addressof(space), _ZSTD_OUT, 0)
            before = source.at
            code = self._library.ZSTD_decompressStream(self._context, ctypes.byref(target), ctypes.byref(source))
            self._checked(code)
            parts.append(space.raw[: target.at])
            if target.at < _ZSTD_OUT and (source.at == len(data) or source.at == before):
                return b"".join(parts)


def zstd_decompressor(window: int) -> _Decompressor:
    """As in ``by_packages.py``."""
    return _Decompressor(window)


def zstd_compressor() -> Any:
    """RefusedError: here backups are only read."""
    raise RefusedError("Backups cannot be written here with the filter zstd: the package zstandard is not installed")
