"""A layer: those clusters of a volume that have data, or were changed, as one stream for an archive of borg's.

::

    header    8 bytes "CMLAYER1"; size of the volume in bytes (8); number of runs (8)
    runs      each: first cluster * 2, plus 1 for a run of zeros (8); number of clusters (8)
    padding   zeros, up to a multiple of 64 KiB
    clusters  those of the runs that are not zeros, 64 KiB each; a shorter one at the end of the volume is padded

Numbers are big-endian. A cluster has 64 KiB as in the qcow2 files that qubes use and as borg's chunks have it here. So
one changed cluster is one new chunk, wherever it lies in the stream. Holes are in no run and take no room. In a
*difference*, a run of zeros says that data of the full layer was discarded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from casemate.backup.errors import DamagedError
from casemate.backup.incremental.nbd import Extent
from casemate.backup.outer import Readable, exactly

CLUSTER = 64 << 10
MOST_RUNS = 1 << 18
"""Limit of an incremental backup (runs of clusters): a layer. With more, small gaps are stored as data."""
MAX_SIZE = 1 << 44
"""Limit of an incremental backup (bytes): a volume. Two bytes of memory are needed for each cluster of it."""
PIECE = 64
"""Clusters that are read, written and held in memory at once: 4 MiB."""
_MAGIC = b"CMLAYER1"
_HEADER = struct.Struct(">8sQQ")
_RUN = struct.Struct(">QQ")


@dataclass(frozen=True, slots=True)
class Run:
    """Clusters in a row: ``count`` of them from ``first``. ``zero``: all of them read as zeros."""

    first: int
    count: int
    zero: bool = False

    @property
    def end(self) -> int:
        """The first cluster after them."""
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class Piece:
    """Some clusters that were read; ``data`` None: zeros."""

    first: int
    count: int
    data: memoryview | None

    @property
    def end(self) -> int:
        """The first cluster after them."""
        return self.first + self.count

    def part(self, first: int, end: int) -> Piece:
        """Those between two clusters."""
        at = (first - self.first) * CLUSTER
        data = None if self.data is None else self.data[at : at + (end - first) * CLUSTER]
        return Piece(first, end - first, data)


def clusters(size: int) -> int:
    """How many clusters a volume of so many bytes has."""
    return -(-size // CLUSTER)


def data_clusters(runs: Iterable[Run]) -> int:
    """How many clusters of the runs have data."""
    return sum(run.count for run in runs if not run.zero)


# -- which clusters


def full_runs(extents: Iterable[Extent], size: int) -> list[Run]:
    """All clusters of a volume of ``size`` bytes that are not zeros."""
    zero = bytearray(b"\1") * clusters(size)
    for extent in extents:
        if not extent.zero:
            _mark(zero, extent, 0)
    return _coarser([Run(first, end - first) for first, end in _stretches(zero, 0, 0, len(zero))])


def changed_runs(extents: Iterable[Extent], size: int, layers: int, before: Iterable[Run]) -> list[Run]:
    """All that differs from the full layer: what the ``layers`` uppermost layers have now, and what was in ``before``.

    ``before`` has the runs of the last difference. Whether they are data or zeros is looked at anew.
    """
    zero, wanted = bytearray(b"\1") * clusters(size), bytearray(clusters(size))
    for extent in extents:
        if not extent.zero:
            _mark(zero, extent, 0)
        if 0 < extent.depth <= layers:
            _mark(wanted, extent, 1)
    for run in before:
        wanted[run.first : run.end] = b"\1" * run.count
    return _coarser([
        Run(first, end - first, bool(value))
        for start, stop in _stretches(wanted, 1, 0, len(wanted))
        for first, end, value in _halves(zero, start, stop)
    ])  # fmt: skip


def _mark(table: bytearray, extent: Extent, value: int) -> None:
    """Note something of every cluster that an extent touches; it may begin and end within one."""
    first, end = extent.offset // CLUSTER, clusters(extent.offset + extent.length)
    table[first:end] = bytes([value]) * (end - first)


def _stretches(table: bytearray, value: int, at: int, stop: int) -> Iterator[tuple[int, int]]:
    """The stretches of a value in a table, as (first, end)."""
    while (first := table.find(value, at, stop)) >= 0:
        end = table.find(1 - value, first, stop)
        at = stop if end < 0 else end
        yield first, at


def _halves(table: bytearray, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """A part of a table as stretches of one value each: (first, end, value)."""
    while at < stop:
        value = table[at]
        end = table.find(1 - value, at, stop)
        end = stop if end < 0 else end
        yield at, end, value
        at = end


def _coarser(runs: list[Run]) -> list[Run]:
    """The same or more clusters in no more than ``MOST_RUNS`` runs: neighbours are joined over ever larger gaps.

    A joined run is data: what is zero in it is stored as zeros.
    """
    gap = 1
    while len(runs) > MOST_RUNS:
        joined: list[Run] = []
        for run in runs:
            if joined and run.first - joined[-1].end <= gap:
                joined[-1] = Run(joined[-1].first, run.end - joined[-1].first)
            else:
                joined.append(run)
        runs, gap = joined, gap * 2
    return runs


# -- the stream


def stream(size: int, runs: list[Run], read: Callable[[int, int], bytes | bytearray]) -> Iterator[bytes | bytearray]:
    """The layer. ``read`` gives bytes of the volume: offset, length (at most ``PIECE`` clusters)."""
    head = _HEADER.pack(_MAGIC, size, len(runs))
    head += b"".join(_RUN.pack(run.first << 1 | run.zero, run.count) for run in runs)
    yield head + bytes(-len(head) % CLUSTER)
    for run in runs:
        if run.zero:
            continue
        for first in range(run.first, run.end, PIECE):
            offset, wanted = first * CLUSTER, min(PIECE, run.end - first) * CLUSTER
            data = read(offset, min(wanted, size - offset))
            yield data + bytes(wanted - len(data))


class LayerReader:
    """Reads one layer from the stream of its archive."""

    def __init__(self, stream: Readable, what: str) -> None:
        """Reads its header; DamagedError."""
        self._stream = stream
        self._what = what
        magic, self.size, count = _HEADER.unpack(self._exactly(_HEADER.size))
        if magic != _MAGIC or not 0 < self.size <= MAX_SIZE or count > MOST_RUNS:
            raise DamagedError(f"{what} is no layer of a volume")
        raw = self._exactly(count * _RUN.size)
        self.runs = [Run(first >> 1, length, bool(first & 1)) for first, length in _RUN.iter_unpack(raw)]
        at = 0
        for run in self.runs:
            if run.first < at or run.count < 1:
                raise DamagedError(f"{what} has runs that overlap")
            at = run.end
        if at > clusters(self.size):
            raise DamagedError(f"{what} goes beyond the end of its volume")
        self._exactly(-(_HEADER.size + len(raw)) % CLUSTER)

    def pieces(self) -> Iterator[Piece]:
        """Its content in ascending order."""
        for run in self.runs:
            if run.zero:
                yield Piece(run.first, run.count, None)
                continue
            for first in range(run.first, run.end, PIECE):
                count = min(PIECE, run.end - first)
                yield Piece(first, count, memoryview(self._exactly(count * CLUSTER)))
        if self._stream.read(1):
            raise DamagedError(f"{self._what} is longer than it says")

    def _exactly(self, count: int) -> bytes:
        return exactly(self._stream, count, f"{self._what} ends too early", DamagedError)


def overlaid(full: Iterable[Piece], difference: Iterable[Piece]) -> Iterator[Piece]:
    """What a volume shows: the difference where it has something, else the full layer. In ascending order."""
    over = iter(difference)
    upper = next(over, None)
    covered = 0
    for lower in full:
        at = lower.first
        while at < lower.end:
            while upper is not None and upper.first <= at:
                yield upper
                covered = upper.end
                upper = next(over, None)
            if covered > at:
                at = min(lower.end, covered)
                continue
            end = lower.end if upper is None else min(lower.end, upper.first)
            yield lower.part(at, end)
            at = end
    while upper is not None:
        yield upper
        upper = next(over, None)
