"""Files of every version of Qubes OS: R4.0 to R4.3 are read and kept, R3 is imported, hostile XML is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from casemate.model import invariants
from casemate.store import document, reader, upgrade, writer
from casemate.store.store import Store
from casemate.wire.errors import StoreError

HERE = Path(__file__).parents[1] / "fixtures" / "qubes-xml"
R4 = sorted(path.name for path in HERE.glob("r4*.xml"))


def test_there_is_a_file_of_every_release() -> None:
    assert R4 == ["r4.0.xml", "r4.1.xml", "r4.2.xml", "r4.3.xml"]


@pytest.mark.parametrize("name", R4)
def test_every_r4_file_is_read_kept_and_written_so_that_upstream_reads_it(name: str, tmp_path: Path) -> None:
    data = (HERE / name).read_bytes()
    system = reader.read(data, name)
    assert invariants.problems(system) == []
    work = system.domains["work"]
    assert work.template is not None and work.template.name == "fedora" and work.qid == 4
    assert work.netvm is system.domains["sys-firewall"] and system.domains["sys-firewall"].netvm.name == "sys-net"
    assert work.volume("private").save_on_stop and work.volume("root").snap_on_start
    text = writer.write(system)
    again = reader.read(text, name)
    assert writer.write(again) == text
    before, after = facts(data), facts(text)
    assert before <= after, sorted(before - after)
    # upstream's reader wants these sections in this order, and gets by with attributes that it does not know
    root = document.parse(text, name)
    assert [child.tag for child in root][:4] == ["labels", "pools", "properties", "domains"]
    path = tmp_path / "qubes.xml"
    path.write_bytes(data)
    with Store(path).write() as transaction:
        transaction.system.domains["work"].features["touched"] = "1"
    kept = facts(path.read_bytes())
    assert before <= kept, sorted(before - kept)


def facts(data: bytes) -> set[tuple[str, ...]]:
    """Everything that a file says, without its order: (path with names, attributes, text) of each element.

    What volumes take from their template (size and source) is computed, so only whether it is there counts.
    """
    found = set()
    root = document.parse(data, "facts")
    for element in root.iter():
        at, where = element, []
        while at is not None:
            where.append(f"{at.tag}:{at.get('name') or at.get('id') or at.get('class') or ''}")
            at = at.getparent()
        attributes = {str(key): str(value) for key, value in element.items()}
        if element.tag == "volume" and attributes.get("snap_on_start") == "True":
            attributes = {key: "" if key in ("size", "source") else value for key, value in attributes.items()}
        if element is root:
            attributes = {}
        if element.tag == "property" and (element.text or "").lower() in ("true", "false"):
            element.text = (element.text or "").capitalize()
        if len(element) or element.text or attributes:
            found.add(("/".join(reversed(where)), repr(sorted(attributes.items())), (element.text or "").strip()))
    return found


def test_devices_of_all_versions_come_back_word_for_word() -> None:
    for name, words in (
        ("r4.0.xml", [b'<option name="no-strict-reset">True</option>']),
        ("r4.2.xml", [b'required="yes"']),
        ("r4.3.xml", [b'mode="ask-to-attach"', b'identity="*"']),
    ):
        text = writer.write(reader.read((HERE / name).read_bytes()))
        for word in words:
            assert word in text, (name, word)


def test_r3_is_imported(tmp_path: Path) -> None:
    system, notes = upgrade.read_r3((HERE / "r3.2.xml").read_bytes(), "r3.2.xml")
    assert invariants.problems(system) == []
    classes = {name: domain.klass for name, domain in system.domains.items()}
    assert classes == {
        "dom0": "AdminVM", "fedora-23": "TemplateVM", "sys-net": "AppVM", "sys-firewall": "AppVM", "work": "AppVM",
        "vault": "AppVM", "fedora-23-dvm": "AppVM", "disp5": "DispVM", "win7": "StandaloneVM", "win-app": "AppVM",
        "win-template": "TemplateVM", "alone": "StandaloneVM",
    }  # fmt: skip
    work = system.domains["work"]
    assert (work.qid, work.memory, work.maxmem, work.label.name) == (5, 500, 4000, "blue")
    assert str(work.uuid) == "2fcfc1f4-b2fe-4361-931a-c5294b35edfa"
    assert dict(work.features) == {"service.cups": "", "service.meminfo-writer": "1"}
    assert work.netvm is system.domains["sys-firewall"] and not work.is_set("netvm")
    assert system.domains["vault"].netvm is None
    assert system.domains["sys-net"].provides_network and system.domains["sys-firewall"].provides_network
    assert system.domains["win7"].virt_mode == "hvm" and system.domains["win-app"].virt_mode == "hvm"
    assert system.default_template is system.domains["fedora-23"]
    assert system.domains["fedora-23-dvm"].template_for_dispvms and not work.include_in_backups
    assert system.next_qid == 41
    assert any("PCI" in note and "sys-net" in note for note in notes)
    path = tmp_path / "qubes.xml"
    program = [sys.executable, "-m", "casemate.store", str(path), "import-r3", str(HERE / "r3.2.xml")]
    done = subprocess.run(program, capture_output=True)
    assert done.returncode == 0 and b"12 qubes" in done.stdout, done.stderr
    assert set(Store(path).snapshot().domains) == set(classes)
    assert subprocess.run(program, capture_output=True).returncode == 1, "never into a store that has qubes"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'services="{', b"services=\"__import__('os').system('touch /tmp/pwned') or {", "plain value"),
        (b'services="{', b'services="[] #{', "not a dict"),
        (b'template_qid="1"', b'template_qid="77"', "template"),
        (b' qid="5"', b' qid="6"', "twice"),
        (b'name="work"', b'name="wo rk"', "qube name"),
        (b'label="blue"', b'label="pink"', "label"),
        (b"<QubesVmCollection", b"<!DOCTYPE x><QubesVmCollection", "not allowed"),
    ],
)
def test_a_bad_r3_file_is_refused(old: bytes, new: bytes, reason: str) -> None:
    data = (HERE / "r3.2.xml").read_bytes()
    assert old in data
    with pytest.raises(StoreError, match=reason):
        upgrade.read_r3(data.replace(old, new, 1), "r3.2.xml")


HOSTILE = {
    "depth": b"<qubes>" + b"<a>" * 100000 + b"</a>" * 100000 + b"</qubes>",
    "depth within": b"<qubes>" + b"<a>" * 200 + b"</a>" * 200 + b"</qubes>",
    "entities": b"<!DOCTYPE q [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]><qubes>&b;</qubes>",
    "external": b"<!DOCTYPE q SYSTEM 'http://127.0.0.1:1/x'><qubes/>",
    "external entity": b"<!DOCTYPE q [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><qubes>&a;</qubes>",
    "undeclared": b"<qubes><properties><property name='default_kernel'>&b;</property></properties></qubes>",
    "another encoding": "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE q [<!ENTITY a 'b'>]><qubes/>".encode(
        "utf-16"
    ),
    "a huge text": b"<qubes><x>" + b"a" * (11 << 20) + b"</x></qubes>",
    "size": b"<qubes>" + b" " * document.MAX_SIZE + b"</qubes>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_xml_is_refused_quickly(name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(StoreError):
        reader.read(HOSTILE[name])
    assert time.monotonic() - begin < 5
