"""Tokens for ``admin.vm.volume.CloneFrom`` and ``CloneTo``: each stands for one volume that may be copied."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from casemate.wire.admin import ADMIN
from casemate.wire.errors import CasemateError


class CloneTokenNotFoundError(CasemateError):
    """No such token of a volume to clone, or it was used."""

    wire_name = "QubesVolumeCopyTokenNotFoundError"


class CloneTokens:
    """Tokens that stand for a volume to be copied: used once, bounded in number, kept in memory only."""

    LIMIT = 256
    """Limit of the Admin API: tokens of volumes to clone."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, tuple[str, str, str]] = OrderedDict()

    def issue(self, qube: str, volume: str, owner: str = ADMIN) -> str:
        """A fresh token for a volume; when there are too many, the oldest becomes invalid."""
        token = secrets.token_hex(16)
        self._tokens[token] = (qube, volume, owner)
        while len(self._tokens) > self.LIMIT:
            self._tokens.popitem(last=False)
        return token

    def redeem(self, token: str, owner: str = ADMIN) -> tuple[str, str]:
        """The qube and volume of a token, which is then invalid. Only the caller that asked for a token may use it."""
        found = self._tokens.get(token)
        if found is None or found[2] != owner:
            raise CloneTokenNotFoundError("No such token of a volume to clone")
        del self._tokens[token]
        return found[:2]
