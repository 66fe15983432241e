"""The model: properties, defaults, references, volumes, and what a transaction may not leave behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from casemate.model import invariants
from casemate.model.changes import DomainAdded, FeatureSet, PropertyReset, PropertySet, TagAdded
from casemate.model.classes import CLASSES, Admin, Remote
from casemate.model.properties import Property, Setting
from casemate.model.system import System
from casemate.model.volumes import VOLUME_NAMES
from casemate.wire.errors import (
    AlreadyExistsError,
    CasemateError,
    FeatureNotFoundError,
    InUseError,
    LabelInUseError,
    LabelNotFoundError,
    NoSuchPropertyError,
    NoTemplateError,
    NotFoundError,
    PoolInUseError,
    PropertyValueError,
    TagNotFoundError,
    ValueInvalidError,
)
from tests.builders import small_system, uuid


def test_typed_reading_and_defaults_along_the_template() -> None:
    system = small_system()
    work, deb = system.domains["work"], system.domains["deb"]
    assert (work.memory, work.vcpus, work.netvm, work.template) == (400, 2, system.domains["net"], deb)
    deb.memory = 700
    assert work.memory == 700 and not work.is_set("memory")
    work.memory = 800
    assert (work.memory, deb.memory) == (800, 700)
    work.reset("memory")
    assert work.memory == 700
    system.default_qrexec_timeout = 99
    assert work.qrexec_timeout == 99


def test_template_has_no_network_by_default() -> None:
    system = small_system()
    assert system.domains["deb"].netvm is None
    assert system.domains["deb"].is_set("netvm") is False


def test_absent_properties_read_as_their_neutral_value() -> None:
    system = small_system()
    assert (system.admin.template, system.admin.netvm, system.admin.provides_network) == (None, None, False)
    with pytest.raises(NoSuchPropertyError):
        system.admin.get_never = system.admin.memory  # type: ignore[attr-defined]
    with pytest.raises(NoSuchPropertyError):
        system.admin.set_text("memory", "400")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_property_of_every_class_can_be_read_as_text_and_parsed_again(name: str) -> None:
    system = small_system()
    system.add("StandaloneVM", "alone", uuid=uuid(8))
    system.add("RemoteVM", "far", uuid=uuid(9))
    domain = next(d for d in system.domains.values() if d.klass == name)
    assert list(domain.properties()) == sorted(domain.properties())
    for key, prop in domain.properties().items():
        text = domain.text(key)
        stored = prop.kind.parse(text) if text or prop.kind.optional else domain.stored(key)
        assert prop.kind.format(stored) == text, key
        assert prop.doc.endswith(".") and prop.kind.syntax(), key
        rule = domain.default_rule(key)
        assert rule is None or rule.describe()


def test_the_property_count_upstream_clients_see() -> None:
    assert len(CLASSES["AppVM"].properties()) == 48
    assert "klass" in CLASSES["AppVM"].properties()


def test_announced_changes_name_old_and_new() -> None:
    system = small_system()
    work = system.domains["work"]
    work.set_text("memory", "601")
    work.reset("memory")
    work.features.set("service.cups", "1")
    work.tags.add("mine")
    work.tags.add("mine")
    assert system.changes == [
        PropertySet("work", "memory", "601", "400"),
        PropertyReset("work", "memory", "601"),
        FeatureSet("work", "service.cups", "1", None),
        TagAdded("work", "mine"),
    ]


def test_creation_is_one_change() -> None:
    system = small_system()
    system.add("AppVM", "new", uuid=uuid(20), properties={"memory": 512})
    assert system.changes == [DomainAdded("new", "AppVM")]
    assert list(system.domains["new"].tags) == ["created-by-dom0"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory", "0"), ("memory", "-1"), ("memory", "0400"), ("memory", "4_0"), ("memory", "+4"), ("memory", ""),
        ("memory", "400\n"), ("memory", "９"), ("memory", "99999999999999999999"), ("autostart", "maybe"),
        ("virt_mode", "PVH"), ("netvm", "no space"), ("kernelopts", "a\nb"), ("kernelopts", "x" * 513),
        ("mac", "zz"), ("ip", "1.2.3"), ("ip", "1.2.3.256"), ("keyboard_layout", "us"), ("kernel", "../x"),
        ("default_user", "-x"), ("label", "Bad Label"), ("name", "other"), ("qid", "9"), ("xid", "3"), ("icon", "x"),
    ],
)  # fmt: skip
def test_refused_values(name: str, text: str) -> None:
    system = small_system()
    before = system.domains["work"].text(name)
    with pytest.raises(PropertyValueError):
        system.domains["work"].set_text(name, text)
    assert system.domains["work"].text(name) == before and not system.changes


def test_references_must_exist() -> None:
    system = small_system()
    with pytest.raises(NotFoundError):
        system.domains["work"].set_text("netvm", "nobody")
    with pytest.raises(LabelNotFoundError):
        system.domains["work"].set_text("label", "mauve")
    with pytest.raises(PropertyValueError, match="no default"):
        system.domains["work"].reset("label")
    with pytest.raises(PropertyValueError, match="no default"):
        system.domains["work"].reset("template")


def test_lookups_by_name_uuid_and_qid() -> None:
    system = small_system()
    work = system.domains["work"]
    assert system.domains.find("work") is work
    assert system.domains.find(f"uuid:{work.uuid}") is work
    assert system.domains.by_qid(work.qid) is work
    assert [d.name for d in system.domains.ordered()] == ["dom0", "base", "deb", "disp7", "net", "work"]
    with pytest.raises(NotFoundError):
        system.domains.find("nobody")
    with pytest.raises(ValueInvalidError):
        system.domains.find("uuid:zz")


def test_a_qid_is_never_given_twice() -> None:
    system = small_system()
    last = max(d.qid for d in system.domains.values())
    system.remove("disp7")
    assert system.add("AppVM", "next", uuid=uuid(30)).qid == last + 1


@pytest.mark.parametrize(
    ("error", "action"),
    [
        (AlreadyExistsError, lambda s: s.add("AppVM", "work", uuid=uuid(40))),
        (AlreadyExistsError, lambda s: s.add("AppVM", "Work", uuid=uuid(40))),
        (AlreadyExistsError, lambda s: s.add("AppVM", "w2", uuid=uuid(3))),
        (ValueInvalidError, lambda s: s.add("AppVM", "none", uuid=uuid(40))),
        (ValueInvalidError, lambda s: s.add("AppVM", "Dom0", uuid=uuid(40))),
        (ValueInvalidError, lambda s: s.add("AppVM", "x-dm", uuid=uuid(40))),
        (ValueInvalidError, lambda s: s.add("AdminVM", "host", uuid=uuid(40))),
        (ValueInvalidError, lambda s: s.add("StandaloneVM", "alone", uuid=uuid(40), template="deb")),
        (NotFoundError, lambda s: s.add("AppVM", "w2", uuid=uuid(40), template="nobody")),
        (LabelNotFoundError, lambda s: s.add("AppVM", "w2", uuid=uuid(40), label="mauve")),
        (CasemateError, lambda s: s.add("AppVM", "w2", uuid=uuid(40), pools={"root": "nowhere"})),
    ],
)  # fmt: skip
def test_refused_creations_leave_nothing(error: type[CasemateError], action: Callable[[System], object]) -> None:
    system = small_system()
    names, following = set(system.domains), system.next_qid
    with pytest.raises(error):
        action(system)
    assert (set(system.domains), system.next_qid, system.changes) == (names, following, [])


def test_a_template_is_needed() -> None:
    system = System.initial()
    with pytest.raises(NoTemplateError):
        system.add("AppVM", "work", uuid=uuid(1))


def _veto(change: Callable[[System], object]) -> CasemateError:
    system = small_system()
    invariants.check(system)
    change(system)
    with pytest.raises(CasemateError) as caught:
        invariants.check(system)
    assert str(caught.value) in invariants.problems(system)
    return caught.value


def _net_loop(system: System) -> None:
    system.domains["work"].provides_network = True
    system.domains["net"].netvm = system.domains["work"]


def _self_loop(system: System) -> None:
    system.domains["net"].reset("netvm")


def _label_gone(system: System) -> None:
    system.add_label("mauve", "0xE0B0FF")
    system.domains["work"].set_text("label", "mauve")
    system.remove_label("mauve")


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (InUseError, lambda s: s.remove("deb")),
        (InUseError, lambda s: s.remove("net")),
        (InUseError, lambda s: s.remove("base")),
        (ValueInvalidError, _net_loop),
        (ValueInvalidError, _self_loop),
        (ValueInvalidError, lambda s: s.domains["net"].set_text("provides_network", "no")),
        (ValueInvalidError, lambda s: s.domains["work"].set_text("netvm", "base")),
        (ValueInvalidError, lambda s: s.domains["work"].set_text("template", "net")),
        (ValueInvalidError, lambda s: s.domains["disp7"].set_text("template", "deb")),
        (CasemateError, lambda s: s.domains["base"].set_text("template_for_dispvms", "no")),
        (CasemateError, lambda s: s.domains["disp7"].set_text("template", "work")),
        (ValueInvalidError, lambda s: s.domains["work"].set_text("default_dispvm", "net")),
        (ValueInvalidError, lambda s: s.set_text("default_template", "work")),
        (ValueInvalidError, lambda s: s.set_text("default_netvm", "work")),
        (LabelInUseError, _label_gone),
        (PoolInUseError, lambda s: s.remove_pool("default")),
        (PoolInUseError, lambda s: s.set_text("default_pool_root", "elsewhere")),
    ],
)  # fmt: skip
def test_invariants_veto(error: type[CasemateError], change: Callable[[System], object]) -> None:
    assert isinstance(_veto(change), error)


def test_a_copy_is_independent_and_a_snapshot_refuses_changes() -> None:
    system = small_system()
    copy = system.copy()
    copy.domains["work"].memory = 999
    copy.domains["work"].features["a"] = "b"
    copy.domains["work"].tags.add("t")
    copy.remove("disp7")
    copy.add_label("mauve", "0xE0B0FF")
    assert system.domains["work"].memory == 400 and "a" not in system.domains["work"].features
    assert "t" not in system.domains["work"].tags and "disp7" in system.domains and "mauve" not in system.labels
    assert copy.domains["work"].netvm is copy.domains["net"]
    system.frozen = True
    for change in (
        lambda: system.remove("disp7"),
        lambda: system.domains["work"].features.set("a", "b"),
        lambda: system.domains["work"].set_text("memory", "500"),
    ):
        with pytest.raises(RuntimeError):
            change()
    assert system.domains["work"].memory == 400 and "disp7" in system.domains


def test_volumes_follow_class_and_template() -> None:
    system = small_system()
    deb, work, disp = system.domains["deb"], system.domains["work"], system.domains["disp7"]
    for domain in system.domains.values():
        assert tuple(domain.volumes) == VOLUME_NAMES
    assert all(volume is None for volume in system.admin.volumes.values())
    root = work.volume("root")
    assert (root.source, root.snap_on_start, root.save_on_stop) == ("deb/root", True, False)
    assert (disp.volume("root").source, disp.volume("private").source) == ("deb/root", "base/private")
    assert work.volumes["kernel"] is None
    from dataclasses import replace

    deb.set_volume(replace(deb.volume("root"), size=5 << 30))
    assert work.volume("root").size == disp.volume("root").size == 5 << 30


def test_features_follow_template_net_and_admin() -> None:
    system = small_system()
    work = system.domains["work"]
    system.domains["deb"].features["os"] = "Linux"
    system.domains["net"].features["ipv6"] = "1"
    system.admin.features["gui"] = ""
    assert work.features.check("os") is None
    assert work.features.check("os", template=True) == "Linux"
    assert system.domains["disp7"].features.check("os", template=True) == "Linux"
    assert work.features.check("ipv6", netvm=True) == "1"
    assert work.features.check("gui", admin=True) == ""
    assert work.ip6 == f"fd09:24ef:4179::a89:{work.qid:x}"
    with pytest.raises(FeatureNotFoundError):
        work.features.find("nothing")
    with pytest.raises(TagNotFoundError):
        work.tags.remove("nothing")
    for name, value in (("bad name", "x"), ("ok", "line\nfeed"), ("ok", "é"), ("ok", "x" * 4097)):
        with pytest.raises(ValueInvalidError):
            work.features.set(name, value)


def test_addresses() -> None:
    system = small_system()
    work, disp = system.domains["work"], system.domains["disp7"]
    assert work.ip == f"10.137.0.{work.qid}" and disp.ip == "10.138.0.7"
    assert work.visible_gateway == system.domains["net"].ip and work.dns == "10.139.1.1 10.139.1.2"
    work.features["net.fake-ip"] = "192.168.1.2"
    assert work.visible_ip == "192.168.1.2"
    work.netvm = None
    assert (work.visible_gateway, work.dns, work.visible_netmask) == (None, None, None)


def test_nobody_sets_what_is_computed() -> None:
    read_only = {n for n, p in CLASSES["AppVM"].properties().items() if p.setting is Setting.READ_ONLY}
    assert {"icon", "klass", "updateable", "xid", "visible_ip", "dns"} <= read_only
    assert isinstance(Admin.memory, Property) and not Admin.has("memory") and not Remote.has("netvm")
