"""The XML of machines: compared with goldens, and each hardening rule by itself.

``CASEMATE_REGENERATE=1`` writes the goldens anew; look at the difference before you commit it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from lxml import etree

from casemate.host.domain_xml_qemu import qemu_xml
from casemate.host.hypervisor import Disk, MachineSpec
from casemate.wire.errors import ValueInvalidError

GOLDEN = Path(__file__).parent.parent / "golden"

WORK = MachineSpec(
    name="work",
    uuid=UUID("6f0c5b5e-2f86-4d3a-9f5f-3d1f3c1b2a10"),
    title="Casemate qube work of /var/lib/casemate",
    memory_mib=400,
    vcpus=2,
    acceleration="tcg",
    kernel=Path("/var/lib/casemate/kernels/k/vmlinuz"),
    initrd=Path("/var/lib/casemate/kernels/k/initrd"),
    cmdline="casemate.init=lean",
    disks=(
        Disk(
            "vda",
            "root",
            Path("/p/work/root.run.qcow2"),
            "qcow2",
            backing=((Path("/p/work/root.base.qcow2"), "qcow2"),),
            scratch=True,
        ),
        Disk("vdb", "private", Path("/p/work/private.qcow2"), "qcow2"),
        Disk("vdc", "volatile", Path("/p/work/volatile.run.qcow2"), "qcow2", scratch=True),
    ),
    channel=Path("/run/casemate/qubes/work/channel.sock"),
    console=Path("/run/casemate/qubes/work/console.sock"),
    uid=1_900_000_002,
    gid=1_900_000_000,
)

CASES = {
    "tcg": WORK,
    "kvm": replace(WORK, acceleration="kvm"),
    "user": replace(WORK, uid=None, gid=None),
    "readonly": replace(WORK, disks=(Disk("vda", "root", Path("/p/root.raw"), "raw", readonly=True),)),
}


@pytest.mark.parametrize("case", CASES)
def test_xml_is_the_golden_one(case: str) -> None:
    path = GOLDEN / f"domain-{case}.xml"
    text = qemu_xml(CASES[case], "casemate-")
    if os.environ.get("CASEMATE_REGENERATE"):
        path.write_text(text)
    assert text == path.read_text()


def parsed(spec: MachineSpec) -> etree._Element:
    return etree.fromstring(qemu_xml(spec, "casemate-"))


ALLOWED_DEVICES = {"controller", "memballoon", "audio", "disk", "channel", "serial", "rng"}


@pytest.mark.parametrize("case", CASES)
def test_no_device_but_those_we_know(case: str) -> None:
    devices = parsed(CASES[case]).find("devices")
    assert devices is not None
    assert {element.tag for element in devices} <= ALLOWED_DEVICES
    assert devices.xpath("string(controller[@type='usb']/@model)") == "none"
    assert devices.xpath("string(memballoon/@model)") == "none"
    for element in devices.xpath("disk|rng|controller[@type='virtio-serial']"):
        assert element.get("model") == "virtio-non-transitional"


@pytest.mark.parametrize("case", CASES)
def test_every_disk_says_its_whole_chain(case: str) -> None:
    for disk in parsed(CASES[case]).iterfind("devices/disk"):
        assert disk.xpath("string(driver/@type)") in ("raw", "qcow2")
        assert disk.find("shareable") is None
        layers = disk.xpath(".//backingStore")
        assert [layer.get("type") for layer in layers[:-1]] == ["file"] * (len(layers) - 1)
        assert len(layers[-1]) == 0 and not layers[-1].attrib, "the chain must end by itself"


@pytest.mark.parametrize("case", CASES)
def test_guest_cannot_restart_itself_nor_nest(case: str) -> None:
    domain = parsed(CASES[case])
    assert {domain.findtext(f"on_{what}") for what in ("poweroff", "reboot", "crash")} == {"destroy"}
    assert domain.xpath("cpu/feature[@name='svm']/@policy") == ["disable"]
    assert domain.find("memoryBacking/nosharepages") is not None
    assert not domain.xpath("//*[contains(name(), 'commandline')]")


def test_a_user_of_its_own_and_nothing_relabelled() -> None:
    label = parsed(WORK).find("seclabel")
    assert label is not None
    assert (label.get("relabel"), label.findtext("label")) == ("no", "+1900000002:+1900000000")
    assert parsed(CASES["user"]).find("seclabel") is None


ATTACKS = [
    "'/><devices/>",
    '"><disk type="file"><source file="/etc/shadow"/></disk>',
    "</cmdline></os><devices><filesystem/></devices>",
    "]]>&lt;&#0;",
    "<!-- --><!ENTITY x SYSTEM 'file:///etc/shadow'>&x;",
]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("field", ["title", "cmdline", "name"])
def test_text_stays_text(field: str, attack: str) -> None:
    """Whatever a settable text holds, the elements are the same ones (QSB-066)."""
    domain = parsed(replace(WORK, **{field: attack}))
    assert [e.tag for e in domain.iter()] == [e.tag for e in parsed(WORK).iter()]
    assert attack in "".join(domain.itertext())


@pytest.mark.parametrize("attack", ATTACKS)
def test_paths_stay_attributes(attack: str) -> None:
    disk = Disk("vda", "root", Path(attack), "raw")
    domain = parsed(replace(WORK, disks=(disk,), channel=Path(attack)))
    assert domain.xpath("devices/disk/source/@file") == [str(Path(attack))]
    assert len(domain.xpath("//filesystem")) == 0


@pytest.mark.parametrize("bad", ["a\0b", "a\x1bb", "a\ud800b"])
def test_what_xml_cannot_hold_is_refused(bad: str) -> None:
    with pytest.raises(ValueInvalidError):
        qemu_xml(replace(WORK, title=bad), "casemate-")
