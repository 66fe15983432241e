"""AES, scrypt beyond hashlib's limit, and zstd: by installed packages, else by the system's libraries.

Both give the same functions. Every sample of a backup is read with both (``tests/component/test_backup_samples.py``).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.backup.by_packages import (
        ZstdError,
        aes_cbc_decryptor,
        aes_ctr,
        scrypt,
        zstd_compressor,
        zstd_decompressor,
    )
else:
    try:
        from casemate.backup import by_packages as _chosen
    except ModuleNotFoundError:
        from casemate.backup import by_libraries as _chosen
    ZstdError, aes_cbc_decryptor, aes_ctr = _chosen.ZstdError, _chosen.aes_cbc_decryptor, _chosen.aes_ctr
    scrypt, zstd_compressor = _chosen.scrypt, _chosen.zstd_compressor
    zstd_decompressor = _chosen.zstd_decompressor

__all__ = ["ZstdError", "aes_cbc_decryptor", "aes_ctr", "scrypt", "zstd_compressor", "zstd_decompressor"]
