"""Layers of incremental backups: which clusters they have, the stream, what two layers show together; retention."""

from __future__ import annotations

import io
import random
import time
from calendar import timegm

import pytest

from casemate.backup.errors import DamagedError
from casemate.backup.incremental import layer as layers
from casemate.backup.incremental.layer import CLUSTER, LayerReader, Run, changed_runs, full_runs, overlaid, stream
from casemate.backup.incremental.nbd import Extent
from casemate.backup.incremental.retention import Keep, kept

KIB = 1024


def image(data: dict[int, int], size: int) -> bytearray:
    """Clusters filled with a byte, by number."""
    out = bytearray(-(-size // CLUSTER) * CLUSTER)
    for cluster, byte in data.items():
        out[cluster * CLUSTER : (cluster + 1) * CLUSTER] = bytes([byte]) * CLUSTER
    return out[:size]


def packed(content: bytearray, runs: list[Run]) -> bytes:
    return b"".join(stream(len(content), runs, lambda at, length: content[at : at + length]))


class Halting(io.BytesIO):
    """Gives its data in pieces that fit nothing, as a pipe may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 100_003))


def reader(data: bytes) -> LayerReader:
    return LayerReader(Halting(data), "it")


def shown(size: int, *streams: bytes) -> bytearray:
    readers = [reader(one) for one in streams]
    pieces = readers[0].pieces()
    out = bytearray(-(-size // CLUSTER) * CLUSTER)
    for piece in pieces if len(readers) == 1 else overlaid(pieces, readers[1].pieces()):
        if piece.data is not None:
            out[piece.first * CLUSTER : piece.end * CLUSTER] = piece.data
    return out[:size]


def test_full_and_difference_make_the_volume_again() -> None:
    rng = random.Random(5)
    for _ in range(200):
        count = rng.randrange(1, 200)
        size = count * CLUSTER - rng.choice([0, 1, 4096, CLUSTER - 1])
        old = image({c: rng.randrange(1, 256) for c in range(count) if rng.random() < 0.4}, size)
        new = bytearray(old)
        touched = sorted(rng.sample(range(count), rng.randrange(0, count + 1) // 3))
        for c in touched:
            at = c * CLUSTER
            length = len(new[at : at + CLUSTER])
            new[at : at + CLUSTER] = rng.choice([bytes(length), rng.randbytes(length)])
        earlier = [Run(c, 1) for c in sorted(rng.sample(range(count), count // 4))]

        def extents(content: bytearray, upper: set[int]) -> list[Extent]:
            return [
                Extent(at, len(part := content[at : at + CLUSTER]), not any(part), 1 if at // CLUSTER in upper else 2)
                for at in range(0, len(content), CLUSTER)
            ]

        full = packed(old, full_runs(extents(old, set()), size))
        assert shown(size, full) == old
        difference = packed(new, changed_runs(extents(new, set(touched)), size, 1, earlier))
        assert shown(size, full, difference) == new


def test_extents_within_clusters_make_data_of_the_whole_cluster() -> None:
    extents = [
        Extent(0, 4 * KIB, False, 1), Extent(4 * KIB, 100 * KIB, True, 0), Extent(104 * KIB, 4 * KIB, False, 1),
        Extent(108 * KIB, 20 * KIB + CLUSTER, True, 0),
    ]  # fmt: skip
    assert full_runs(extents, 3 * CLUSTER) == [Run(0, 2)]


def test_many_runs_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MOST_RUNS", 10)
    extents = [Extent(c * CLUSTER, CLUSTER, c % 3 == 0, 1) for c in range(300)]
    runs = full_runs(extents, 300 * CLUSTER)
    assert len(runs) <= 10 and all(any(run.first <= c < run.end for run in runs) for c in range(300) if c % 3)


def test_what_is_no_layer_is_refused() -> None:
    good = packed(image({1: 7, 3: 8}, 5 * CLUSTER), [Run(1, 1), Run(3, 1)])
    assert list(reader(good).pieces())
    broken = [
        b"", good[:20], good[: CLUSTER // 2], good[:-1], good + b"x", b"CMLAYER2" + good[8:],
        good[:8] + (1 << 60).to_bytes(8, "big") + good[16:],
        good[:16] + (1 << 40).to_bytes(8, "big") + good[24:],
        good[:24] + (9 << 1).to_bytes(8, "big") + good[32:],
        good[:40] + (1 << 1).to_bytes(8, "big") + good[48:],
    ]  # fmt: skip
    for data in broken:
        with pytest.raises(DamagedError):
            list(reader(data).pieces())


def test_retention_keeps_the_newest_of_each_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    days = [timegm((2026, 1, day, hour, 0, 0)) for day in range(1, 29) for hour in (3, 15)]
    assert kept(days, Keep(last=3)) == set(days[-3:])
    assert kept(days, Keep(daily=2)) == {days[-1], days[-3]}
    weekly = kept(days, Keep(weekly=2))
    assert weekly == {days[-1], timegm((2026, 1, 25, 15, 0, 0))}  # a Wednesday, and the Sunday before
    assert kept(days, Keep(monthly=5, yearly=1)) == {days[-1]}
    assert kept(days, Keep(daily=1, last=2)) == set(days[-2:])
    assert kept([], Keep(daily=1)) == set()
