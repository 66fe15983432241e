"""The report of ``admin.casemate.net.Show`` as a tree: each qube below the one that gives it its network."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

HOST = "this host's network"
"""What serves the qubes that have an uplink, in words."""


def tree(qubes: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """All qubes of a report that have to do with the network, with the depth of each: 0 where nothing serves it."""
    served: dict[str | None, list[dict[str, Any]]] = {}
    for one in qubes:
        if one["netvm"] is not None or one["provides_network"]:
            served.setdefault(one["netvm"], []).append(one)
    # The daemon refuses loops, so this ends.
    waiting = [(0, one) for one in reversed(served.get(None, []))]
    while waiting:
        depth, one = waiting.pop()
        yield depth, one
        waiting += [(depth + 1, below) for below in reversed(served.get(one["name"], []))]


def upward_traffic(one: dict[str, Any]) -> dict[str, int]:
    """Traffic of a qube's interface towards what serves it, which is the one with a name in ``u``; empty for none."""
    return next((found for tap, found in one["traffic"].items() if tap.startswith("u")), {})


def way_out(one: dict[str, Any]) -> str:
    """How a qube with an uplink leaves, in words: ``uplink``, ``card eth1``, ``shared eth1``; or that it is missing."""
    by = (one.get("uplink_by") or "").partition(":")
    return (f"{by[0]} {by[2]}" if by[1] else "uplink") + (", which is missing" if one.get("uplink_missing") else "")
