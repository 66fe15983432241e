"""A collection that any older version has written opens, and nothing of it is lost when this version writes it.

``tests/fixtures/states`` has one file for each form that the file ever had, written by the program of that time::

    no-format              the first: no ``casemate-format``, and each volume says how many older states it keeps
    format-1-all-revisions the root element says the format
    format-1               a volume that keeps as many older states as its pool says does not say so: today's form

Those with ``-devices`` were taken over from Qubes OS R4.3 by the same program: devices, foreign pools, and what we do
not know. A change of the form adds a file here, written before the change; the old ones stay.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from casemate.model import invariants
from casemate.store import layout, reader, writer
from casemate.store.store import Store
from casemate.wire.errors import StoreError
from tests.unit.test_store_upgrade import facts

SAMPLES = Path(__file__).parents[1] / "fixtures" / "states"
MADE = ["no-format", "format-1-all-revisions", "format-1"]
TAKEN_OVER = [f"{name}-devices" for name in MADE]


def sample(name: str) -> bytes:
    return (SAMPLES / f"{name}.xml").read_bytes()


def test_each_sample_is_tried() -> None:
    assert sorted(path.stem for path in SAMPLES.iterdir()) == sorted(MADE + TAKEN_OVER)


@pytest.mark.parametrize("name", MADE + TAKEN_OVER)
def test_all_of_it_is_there_and_stays(name: str, tmp_path: Path) -> None:
    path = tmp_path / "qubes.xml"
    path.write_bytes(sample(name))
    assert invariants.problems(Store(path).snapshot()) == []
    with Store(path).write() as transaction:
        transaction.system.domains["work"].tags.add("written-anew")
    after = facts(path.read_bytes())
    if name.startswith(("no-format", "format-1-all")):
        # Said for each volume then; today only where the pool says something else, which means the same.
        same = {fact for fact in facts(sample(name)) if "volume" in fact[0].rpartition("/")[2]}
        assert {fact[0] for fact in same} <= {fact[0] for fact in after}
        assert facts(sample(name)) - same <= after
    else:
        assert facts(sample(name)) <= after
    assert b'casemate-format="%d"' % layout.FORMAT in path.read_bytes()


@pytest.mark.parametrize("name", MADE)
def test_settings_mean_what_they_meant(name: str, tmp_path: Path) -> None:
    path = tmp_path / "qubes.xml"
    path.write_bytes(sample(name))
    system = Store(path).snapshot()
    work, disposable = system.domains["work"], system.domains["disp7"]
    assert (work.memory, work.vcpus, work.qrexec_timeout, work.shutdown_timeout) == (500, 3, 90, 91)
    assert (work.kernelopts, work.default_user, work.autostart) == ('quiet <&> "x"', "user1", True)
    assert dict(work.features) == {"note": "Gruesse & <b>", "service.cups": "1"} and "mine" in work.tags
    assert work.netvm is system.domains["net"] and work.template is system.domains["deb"]
    assert disposable.dispid == 7 and disposable.template is system.domains["base"]
    assert [work.volume(one).revisions_to_keep for one in ("root", "private")] == [0, 1]
    assert system.pool("fast").options == {"revisions_to_keep": "2"} and system.labels["pink"].color == "0xff69b4"
    assert system.next_qid == 7


@pytest.mark.parametrize("name", ["format-1", "format-1-devices"])
def test_the_newest_sample_has_todays_form(name: str) -> None:
    """When this fails, the form has changed: keep the old sample, add one of the new form, and say so at the head."""
    assert writer.write(reader.read(sample(name))) == sample(name)


def test_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "qubes.xml"
    newer = re.sub(rb'casemate-format="\d+"', b'casemate-format="%d"' % (layout.FORMAT + 1), sample("format-1"))
    path.write_bytes(newer)
    shutil.copy(path, tmp_path / "before")
    with pytest.raises(StoreError, match=f"newer Casemate .format {layout.FORMAT + 1}; this one knows {layout.FORMAT}"):
        Store(path).snapshot()
    with pytest.raises(StoreError, match="newer Casemate"), Store(path).write():
        raise AssertionError("entered")
    assert path.read_bytes() == newer
