"""qubes.xml: what upstream writes is read and comes back, what is damaged is named by line."""

from __future__ import annotations

import pytest

from casemate.model.system import System
from casemate.store import document, reader, writer
from casemate.store.layout import qid_of
from casemate.store.parts import follow, split
from casemate.store.reader import read_domain
from casemate.wire.errors import StoreError
from tests.builders import small_system

UPSTREAM = b"""<?xml version='1.0' encoding='utf-8'?>
<qubes version="3.0">
  <labels>
    <label id="label-1" color="0xcc0000">red</label>
    <label id="label-9" color="0xe0b0ff">mauve</label>
  </labels>
  <pools>
    <pool name="lvm" driver="lvm_thin" volume_group="qubes_dom0" thin_pool="vm-pool" revisions_to_keep="2"/>
    <pool name="linux-kernel" driver="linux-kernel" dir_path="/var/lib/qubes/vm-kernels"/>
  </pools>
  <properties>
    <property name="default_netvm">sys-firewall</property>
    <property name="clockvm"></property>
    <property name="default_pool">lvm</property>
    <property name="some_future_global">7</property>
  </properties>
  <domains>
    <domain id="domain-0" class="AdminVM">
      <properties><property name="label">black</property></properties>
      <features><feature name="config.default.qubes-update-check"></feature></features>
      <devices class="pci"/>
      <tags/>
    </domain>
    <domain id="domain-3" class="AppVM">
      <properties>
        <property name="name">work</property>
        <property name="qid">3</property>
        <property name="uuid">8cbd8f3c-2c5b-4e3b-9d6a-000000000003</property>
        <property name="label" ref="label-1">mauve</property>
        <property name="template">fedora</property>
        <property name="autostart">True</property>
        <property name="backup_timestamp">1700000000</property>
        <property name="dispvm_allowed">False</property>
      </properties>
      <features><feature name="service.cups">1</feature><feature name="gui"></feature></features>
      <devices class="pci">
        <device backend-domain="dom0" id="00_1f.3" mode="required" identity="*">
          <option name="no-strict-reset">True</option>
        </device>
      </devices>
      <tags><tag name="audiovm-dom0"/><tag name="created-by-dom0"/></tags>
      <volume-config>
        <volume name="root" pool="lvm" vid="qubes_dom0/vm-work-root" rw="True" snap_on_start="True"
                save_on_stop="False" revisions_to_keep="0" size="10737418240" source="qubes_dom0/vm-fedora-root"/>
        <volume name="kernel" pool="linux-kernel" vid="" rw="False" future="yes"/>
      </volume-config>
      <something-new a="1"><deep>text &amp; more</deep></something-new>
    </domain>
    <domain id="domain-2" class="AppVM">
      <properties>
        <property name="name">sys-firewall</property>
        <property name="qid">2</property>
        <property name="uuid">8cbd8f3c-2c5b-4e3b-9d6a-000000000002</property>
        <property name="label">red</property>
        <property name="template">fedora</property>
        <property name="netvm"></property>
        <property name="provides_network">True</property>
      </properties>
    </domain>
    <domain id="domain-1" class="TemplateVM">
      <properties>
        <property name="name">fedora</property>
        <property name="qid">1</property>
        <property name="uuid">8cbd8f3c-2c5b-4e3b-9d6a-000000000001</property>
        <property name="label">red</property>
        <property name="installed_by_rpm">True</property>
      </properties>
      <volume-config>
        <volume name="root" pool="lvm" vid="qubes_dom0/vm-fedora-root" rw="True" snap_on_start="False"
                save_on_stop="True" revisions_to_keep="2" size="21474836480"/>
      </volume-config>
    </domain>
  </domains>
</qubes>
""".replace(b'vid="" rw="False"', b'vid="6.1" rw="False"')


def test_upstream_file_is_understood() -> None:
    system = reader.read(UPSTREAM)
    work = system.domains["work"]
    assert work.template is system.domains["fedora"] and work.netvm is system.domains["sys-firewall"]
    assert (work.label.name, work.label.index, work.autostart, work.backup_timestamp) == ("mauve", 9, True, 1700000000)
    assert dict(work.features) == {"service.cups": "1", "gui": ""}
    assert work.volume("root").size == 21474836480 and work.volume("kernel").extra == (("future", "yes"),)
    assert system.pool("lvm").options["thin_pool"] == "vm-pool"
    assert system.domains["sys-firewall"].netvm is None
    assert system.next_qid == 4 and set(system.labels) >= {"red", "black", "mauve"}


def test_what_is_unknown_survives_writing() -> None:
    text = writer.write(reader.read(UPSTREAM))
    for kept in (
        b'<property name="some_future_global">7</property>',
        b'<property name="dispvm_allowed">False</property>',
        b'<something-new a="1"><deep>text &amp; more</deep></something-new>',
        b'<option name="no-strict-reset">True</option>',
        b'version="3.0"',
        b'ref="label-1"',
        b'future="yes"',
    ):
        assert kept in text, kept
    assert writer.write(reader.read(text)) == text


def test_the_order_is_canonical_and_ours_round_trips() -> None:
    system = small_system()
    system.domains["work"].features["x"] = "<&>\"' "
    text = writer.write(system)
    again = reader.read(text)
    assert writer.write(again) == text
    assert [text.index(f"<{tag}>".encode()) for tag in ("labels", "pools", "properties", "domains")] == sorted(
        text.index(f"<{tag}>".encode()) for tag in ("labels", "pools", "properties", "domains")
    )
    for name, domain in system.domains.items():
        other = again.domains[name]
        assert (dict(domain.values()), dict(domain.features), set(domain.tags), dict(domain.volumes)) == (
            dict(other.values()), dict(other.features), set(other.tags), dict(other.volumes)
        )  # fmt: skip
    assert again.next_qid == system.next_qid


def test_a_change_of_one_qube_changes_its_text_only() -> None:
    system = reader.read(UPSTREAM)
    before = writer.write(system).splitlines()
    changed = system.copy()
    changed.domains["work"].set_text("memory", "512")
    after = writer.write(changed).splitlines()
    assert [line for line in after if line not in before] == [b'        <property name="memory">512</property>']


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        (b"</qubes>", b"", 77, ""),
        (b"<qubes ", b"<!DOCTYPE qubes><qubes ", 0, "not allowed"),
        (b"<qubes ", b"<!DOCTYPE qubes [<!ENTITY a 'b'>]><qubes ", 0, "not allowed"),
        (b'class="TemplateVM"', b'class="NoSuchVM"', 60, "no such class"),
        (b'name="autostart">True', b'name="autostart">Maybe', 32, "autostart"),
        (b'name="qid">2', b'name="qid">02', 53, "qid"),
        (b'id="domain-2"', b'id="domain-3"', 50, "differ"),
        (b'name="qid">2', b'name="qid">3', 50, "differ"),
        (b'<property name="name">sys-firewall', b'<property name="name">work', 50, "exists already"),
        (b'name="default_netvm">sys-firewall', b'name="default_netvm">gone', 12, "No such qube"),
        (b'name="template">fedora</property>\n        <property name="auto', b'name="autos', 25, "template"),
        (b'label">red</property>\n        <property name="temp', b'label">pink</property>\n<property name="temp',
         55, "No such label"),
        (b'size="21474836480"', b'size="huge"', 70, "size"),
        (b'save_on_stop="True"', b'save_on_stop="perhaps"', 70, "save_on_stop"),
        (b'driver="lvm_thin"', b"", 8, "no driver"),
        (b'color="0xe0b0ff"', b'color="mauve"', 5, "colour"),
        (b"<deep>", b"<x>" * 20 + b"</x>" * 20 + b"<deep>", 0, "deep"),
    ],
)  # fmt: skip
def test_damage_is_refused_with_line_and_reason(old: bytes, new: bytes, line: int, reason: str) -> None:
    assert old in UPSTREAM
    with pytest.raises(StoreError) as caught:
        reader.read(UPSTREAM.replace(old, new, 1), "here.xml")
    text = str(caught.value)
    assert text.startswith("here.xml:") and reason in text
    found = text.removeprefix("here.xml:").split(":")[0]
    if line:
        assert abs(int(found) - line) <= 2, text


def test_other_documents_are_refused() -> None:
    for data in (b"", b"garbage", b"<other/>", b"\0" * 100, "<qubes/>".encode("utf-16") + b"x"):
        with pytest.raises(StoreError):
            reader.read(data)
    with pytest.raises(StoreError, match="larger"):
        reader.read(b" " * (document.MAX_SIZE + 1))
    assert list(reader.read(b"<qubes/>").domains) == ["dom0"]


def test_a_qube_read_alone_is_the_one_of_the_whole_file() -> None:
    compared = 0
    for data in (writer.write(reader.read(UPSTREAM)), writer.write(small_system())):
        system = reader.read(data)
        parts = split(system, data)
        assert parts is not None and b"".join(parts.texts) in data
        for state, text in zip(sorted(system.domains.states(), key=qid_of), parts.texts, strict=True):
            alone = read_domain(text)
            assert alone is not None and state.text == text
            for field in ("klass", "values", "features", "tags", "volumes", "devices", "unknown", "unknown_attributes"):
                assert getattr(alone, field) == getattr(state, field), (state.values["name"], field)
            compared += 1
    assert compared == 10


def test_an_unknown_element_that_looks_like_the_end_of_a_qube_is_kept_whole() -> None:
    data = writer.write(small_system())
    for begin in (b"<domain ", b">work<", b">disp7<"):  # the first qube, one between, the last one
        end = data.index(b"    </domain>\n", data.index(begin))
        odd = data[:end] + b"      <new>\n    <domain>\n    </domain>\n</new>\n" + data[end:]
        system = reader.read(odd)
        split(system, odd)
        system.admin.features["a"] = "b"
        again = reader.read(writer.write(system))
        assert b"<new>\n    <domain>\n    </domain>\n</new>" in writer.write(again)
        assert len(again.domains) == 6


EDITS = {
    b'name="qid">3<': b'name="qid">03<',
    b'id="domain-3"': b'id="domain-4"',
    b'name="label">blue<': b'name="label">blue&#32;<',
    b'name="label">blue</': b'name="label">pink</',
    b'name="template">deb<': b'name="template" ref="x">deb<',
    b'name="template">deb</': b'name="template">gone</',
    b'        <property name="template">deb</property>\n': b"",
    b"      <features/>\n": b"      <features/>\n      <new/>\n",
    b"      <features/>\n      <tags>\n": b'      <features>\n        <tag name="a"/></features>\n      <tags>\n',
    b"      <tags>\n        <": b"      <!-- a remark -->\n      <tags>\n        <",
    b"      <tags>\n": b"      <tags>\n        <?note?>\n",
    b'rw="True"': b'rw="perhaps"',
    b'size="': b'other="1" size="',
    b'class="AppVM"': b'class="NoVM"',
    b'pool="default"': b"pool='default'",
}


@pytest.mark.parametrize("old", list(EDITS))
def test_an_edit_of_one_qube_is_followed_as_it_is_read(old: bytes) -> None:
    """Either the new text is read alone, with the same outcome as the whole file, or the whole file is asked."""
    data = writer.write(small_system())
    known = split(reader.read(data), data)
    assert known is not None
    text = next(one for one in known.texts if b">work<" in one)
    assert old in text
    edited = text.replace(old, EDITS[old], 1)
    assert edited != text
    new = data.replace(next(one for one in known.texts if b">work<" in one), edited)
    followed = follow(new, known)
    try:
        whole = writer.write(reader.read(new).copy())
    except StoreError:
        assert followed is None
        return
    if followed is not None:
        assert followed.system.domains["work"].state.text == edited
        followed.system.domains["work"].state.text = None  # compare what was understood, not the bytes
    assert followed is None or _written_anew(followed.system) == _written_anew(reader.read(new)) == whole


def _written_anew(system: System) -> bytes:
    for state in system.domains.states():
        state.text = None
    return writer.write(system)
