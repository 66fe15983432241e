"""Options of a pool are checked by its driver's declaration, when the pool is added and when one is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.client.qubes import Qubes
from casemate.wire.errors import CasemateError, NotImplementedHereError, ValueInvalidError
from tests.fakes.daemon import running


@pytest.fixture
def qubes(tmp_path: Path) -> Iterator[Qubes]:
    with running(tmp_path) as daemon:
        yield daemon.client()


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ("colour=red", ValueInvalidError, "no option 'colour'"),
        ("dir_path=srv/pool", ValueInvalidError, "absolute path"),
        ("dir_path=/srv/../etc", ValueInvalidError, "absolute path"),
        ("revisions_to_keep=many", ValueInvalidError, "revisions_to_keep"),
        ("ephemeral_volatile=True", NotImplementedHereError, "encrypt"),
    ],
)
@pytest.mark.parametrize("driver", ["qcow2", "file-reflink", "file"])
def test_what_the_driver_does_not_take_is_refused(
    qubes: Qubes, driver: str, option: str, error: type[CasemateError], words: str
) -> None:
    with pytest.raises(error, match=words):
        qubes.call("admin.pool.Add", driver, payload=f"name=second\n{option}\n")
    assert "second" not in qubes.call("admin.pool.List").split()
    qubes.call("admin.pool.Add", driver, payload="name=second\n")
    assert f"driver={driver}\n" in qubes.call("admin.pool.Info", "second")
    key, _, text = option.partition("=")
    if key in ("revisions_to_keep", "ephemeral_volatile"):
        with pytest.raises(error, match=words):
            qubes.call(f"admin.pool.Set.{key}", "second", payload=text)


def test_a_driver_that_this_host_does_not_have(qubes: Qubes) -> None:
    with pytest.raises(ValueInvalidError, match="No such driver of pools: 'lvm_thin'"):
        qubes.call("admin.pool.Add", "lvm_thin", payload="name=second\n")
