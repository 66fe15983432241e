"""Where the boxes and lines of the picture of the network stand. Pure: the template draws them.

::

    this host's network ─┬─ sys-net ─┬─ sys-firewall ─┬─ work
                         │           │                └─ mail        a column for each step, a row for each qube
                         └─ other-net
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from casemate.client.network_tree import HOST, tree, upward_traffic, way_out

ROW, COLUMN = 62, 360
"""Distance between two boxes, in the picture's units."""
WIDTH, HEIGHT = 180, 44
"""Of a box."""
MARGIN = 12
MOST_BOXES = 150
"""Limit of the manager page (qubes): drawn in the picture of the network. Halted ones that serve nobody are left out
first."""


@dataclass(frozen=True, slots=True)
class Box:
    """A qube, or this host's network (with ``host``)."""

    x: int
    y: int
    name: str
    address: str
    color: str
    """``#rrggbb``"""
    state: str
    host: bool = False

    @property
    def runs(self) -> bool:
        """Whether traffic may come from it now."""
        return self.state == "Running"


@dataclass(frozen=True, slots=True)
class Line:
    """From a box to the one that serves it."""

    path: str
    """The ``d`` of an SVG path."""
    x: int
    y: int
    """Where its text ends, at the served box."""
    text: str
    joined: bool
    weight: float
    """Width of the line: more for more bytes a second."""
    explained: str
    """For who points at it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is drawn, and what is not."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    left_out: int
    """Halted qubes beyond MOST_BOXES."""
    apart: tuple[str, ...]
    """Qubes without any network."""


Rates = Mapping[str, tuple[float, float]]
"""Bytes a second that a qube sends and receives."""


def picture(qubes: list[dict[str, Any]], rates: Rates) -> Picture:
    """The picture of a report's qubes."""
    shown, left_out = _fitting(list(tree(qubes)))
    boxes = [Box(MARGIN, MARGIN, HOST, "", "#888888", "Running", host=True)]
    places = {HOST: (MARGIN, MARGIN)}
    for row, (depth, one) in enumerate(shown):
        x, y = MARGIN + (depth + 1) * COLUMN, MARGIN + row * ROW
        places[one["name"]] = (x, y)
        boxes.append(Box(x, y, one["name"], one["ip"] or "", f"#{one['label'][2:]}", one["state"]))
    lines = [
        _line(one, places[one["name"]], places[one["netvm"] or HOST], rates.get(one["name"], (0.0, 0.0)))
        for _depth, one in shown
        if (one["netvm"] or one["uplink"]) and (one["netvm"] or HOST) in places
    ]
    apart = tuple(one["name"] for one in qubes if one["netvm"] is None and not one["provides_network"])
    width = max(box.x for box in boxes) + WIDTH + MARGIN
    height = max(box.y for box in boxes) + HEIGHT + MARGIN
    return Picture(width, height, tuple(boxes), tuple(lines), left_out, apart)


def _fitting(found: list[tuple[int, dict[str, Any]]]) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """What is drawn of a tree, and how many are not."""
    if len(found) <= MOST_BOXES:
        return found, 0
    kept = [(depth, one) for depth, one in found if one["state"] != "Halted" or one["provides_network"]][:MOST_BOXES]
    return kept, len(found) - len(kept)


def _line(one: dict[str, Any], child: tuple[int, int], parent: tuple[int, int], rate: tuple[float, float]) -> Line:
    (x, y), (px, py) = child, parent
    start, end, middle = y + HEIGHT // 2, py + HEIGHT // 2, px + WIDTH + 24
    if start == end:
        path = f"M{x} {start}H{px + WIDTH}"
    else:
        turn = 10 if start > end else -10
        path = f"M{x} {start}H{middle + 10}Q{middle} {start} {middle} {start - turn}V{end}H{px + WIDTH}"
    sent, received = rate
    text = f"↑ {_bytes(sent)}/s  ↓ {_bytes(received)}/s" if sent or received else ""
    traffic = upward_traffic(one)
    rules = "its rules cannot be read" if one["rules"] is None else f"{one['rules']} rules"
    explained = [f"{one['name']} to {one['netvm'] or f'{HOST} ({way_out(one)})'}: {rules}"]
    if traffic:
        explained.append(f"{_bytes(traffic['sent_bytes'])} sent, {_bytes(traffic['received_bytes'])} received")
    if lost := dropped(one):
        explained.append("dropped: " + ", ".join(f"{packets} packets ({cause})" for cause, packets in lost.items()))
    weight = 1.5 + min(4.0, ((sent + received) / 65536) ** 0.5)
    return Line(path, x - 8, start - 6, text, bool(one["joined"]), round(weight, 1), "; ".join(explained))


def dropped(one: dict[str, Any]) -> dict[str, int]:
    """Packets of a qube that the host did not let pass, by cause."""
    found: dict[str, int] = {}
    for causes in one["dropped"].values():
        for cause, packets in causes.items():
            found[cause] = found.get(cause, 0) + packets
    return found


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class Meter:
    """Bytes a second of each qube, from one report to the next."""

    def __init__(self) -> None:
        self._at = 0.0
        self._counts: dict[str, tuple[int, int]] = {}
        self.rates: dict[str, tuple[float, float]] = {}

    def take(self, qubes: Iterable[dict[str, Any]], now: float) -> None:
        """Take the counters of a report that was made at ``now`` (seconds of any clock)."""
        counts = {}
        for one in qubes:
            if traffic := upward_traffic(one):
                counts[one["name"]] = (traffic["sent_bytes"], traffic["received_bytes"])
        took = now - self._at
        self.rates = {}
        for name, (sent, received) in counts.items():
            # A counter begins anew when its qube does: what it then shows is less than before, and no rate.
            if name in self._counts and took > 0:
                before = self._counts[name]
                self.rates[name] = (max(0, sent - before[0]) / took, max(0, received - before[1]) / took)
        self._at, self._counts = now, counts
