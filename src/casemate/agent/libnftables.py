"""Loads nft rules in a guest, by the libnftables that comes with the nft program. No binding package is needed."""

from __future__ import annotations

import ctypes
import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_JSON = 1 << 4  # nftables/libnftables.h: NFT_CTX_OUTPUT_JSON; then commands are JSON as well


class NftError(Exception):
    """The kernel, or libnftables, refused; nothing was changed."""


class Nft:
    """The rules of this guest."""

    def __init__(self) -> None:
        library = ctypes.CDLL("libnftables.so.1")
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._run = library.nft_run_cmd_from_buffer
        self._error = library.nft_ctx_get_error_buffer
        self._context = ctypes.c_void_p(library.nft_ctx_new(0))
        library.nft_ctx_output_set_flags(self._context, _JSON)
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def load(self, commands: Sequence[dict[str, Any]]) -> None:
        """Carry out all commands as one transaction, or none of them."""
        text = json.dumps({"nftables": list(commands)}).encode()
        if self._run(self._context, text) != 0:
            raise NftError((self._error(self._context) or b"").decode("utf-8", "replace")[:500])
