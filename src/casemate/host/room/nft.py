"""Loads nft rules of the wire room and reads its counters, through libnftables' JSON (libnftables-json(5))."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nftables import Nftables

from casemate.wire.errors import CasemateError, printable

Command = Mapping[str, Any]
"""One command of libnftables-json, such as ``{"add": {"rule": {...}}}``."""


class NftError(CasemateError):
    """The kernel, or libnftables, refused a set of rules; nothing of it was loaded."""


class Nft:
    """The rules of the namespace that this process is in."""

    def __init__(self) -> None:
        self._nft = Nftables()
        self._nft.set_json_output(True)
        self._nft.set_handle_output(False)

    def load(self, commands: Sequence[Command]) -> None:
        """Carry out all commands as one transaction, or none of them."""
        if not commands:
            return
        status, _output, error = self._nft.json_cmd({"nftables": list(commands)})
        if status != 0:
            raise NftError(f"nft refused the rules: {printable(str(error), 1000)}")

    def counters(self, table: str) -> dict[str, tuple[int, int]]:
        """Packets and bytes of all named counters of a table of family netdev; empty where there is no table."""
        status, output, _error = self._nft.cmd(f"list counters table netdev {table}")
        if status != 0:
            return {}
        found = {}
        for item in json.loads(output)["nftables"]:
            counter = item.get("counter")
            if counter is not None:
                found[counter["name"]] = (counter["packets"], counter["bytes"])
        return found
