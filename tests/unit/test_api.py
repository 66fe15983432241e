"""The Admin API over its real socket and a real store; only the engine is a fake.

One file although it is long: its tests share one daemon and its client.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.api import dispatch
from casemate.api.events import MAX_SUBSCRIPTIONS, QUEUE_LIMIT
from casemate.api.method import Access, Method
from casemate.api.methods import METHODS
from casemate.client.qubes import Qubes
from casemate.wire import admin
from casemate.wire.errors import (
    AlreadyExistsError,
    CasemateError,
    DaemonAccessError,
    FeatureNotFoundError,
    InternalError,
    InUseError,
    LabelNotFoundError,
    NoSuchPropertyError,
    NotFoundError,
    NotHaltedError,
    PermissionDeniedError,
    PropertyValueError,
    ProtocolError,
    StartError,
    ValueInvalidError,
)
from casemate.wire.events import FeaturesRequest
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.parts import GUID


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with running(tmp_path) as found:
        yield found


@pytest.fixture
def qubes(daemon: FakeDaemon) -> Qubes:
    return client(daemon)


def client(daemon: FakeDaemon) -> Qubes:
    found = daemon.client()
    if "deb" not in daemon.store.snapshot().domains:
        found.create("TemplateVM", "deb", "black")
        found.create("AppVM", "work", "blue", "deb")
    return found


def exchange(path: Path, data: bytes, *, close: bool = True) -> bytes:
    """Raw bytes to the daemon, raw bytes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        try:
            connection.sendall(data)
            if close:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except ConnectionResetError:
            pass
        return found


def test_life_of_a_qube(qubes: Qubes, daemon: FakeDaemon) -> None:
    qubes.call("admin.vm.Start", "", "work")
    assert {q.name: q.state for q in qubes.listed()} == {"dom0": "Running", "deb": "Halted", "work": "Running"}
    state = qubes.call("admin.vm.CurrentState", "", "work")
    assert state == "mem=409600 mem_static_max=409600 cputime=1000000 power_state=Running"
    assert qubes.get("work", "xid").text == "1"
    with pytest.raises(NotHaltedError):
        qubes.remove("work")
    with pytest.raises(NotHaltedError):
        qubes.set("work", "template", "deb")
    qubes.call("admin.vm.Pause", "", "work")
    assert "power_state=Paused" in qubes.call("admin.vm.CurrentState", "", "work")
    qubes.call("admin.vm.Unpause", "", "work")
    qubes.call("admin.vm.Shutdown", "wait+force", "work")
    with pytest.raises(InUseError):
        qubes.remove("deb")
    qubes.remove("work")
    assert [q.name for q in qubes.listed()] == ["dom0", "deb"]
    daemon.parts.power.broken.add("deb")
    with pytest.raises(CasemateError, match="broken") as caught:
        qubes.call("admin.vm.Start", "", "deb")
    assert caught.value.wire_name == StartError.wire_name


def test_properties(qubes: Qubes) -> None:
    qubes.set("work", "memory", "600")
    assert qubes.get("work", "memory") == (False, "int", "600")
    assert qubes.properties("work")["memory"] == (False, "int", "600")
    assert qubes.call("admin.vm.property.GetDefault", "memory", "work") == "type=int 400"
    assert qubes.call("admin.vm.property.GetDefault", "label", "work") == ""
    qubes.reset("work", "memory")
    assert qubes.get("work", "memory") == (True, "int", "400")
    assert set(qubes.properties("work")) == set(qubes.property_names("work"))
    assert "Memory" in qubes.help("work", "memory") and "MiB" in qubes.help("work", "memory")
    for name in ("dom0", "deb", "work"):
        assert qubes.properties(name)["klass"].text
    qubes.set(None, "default_template", "deb")
    assert qubes.get(None, "default_template") == (False, "vm", "deb")
    assert "default_netvm" in qubes.properties(None)
    with pytest.raises(NoSuchPropertyError):
        qubes.get("work", "nothing")
    with pytest.raises(PropertyValueError, match="memory"):
        qubes.set("work", "memory", "0x10")
    with pytest.raises(NotFoundError):
        qubes.set("work", "netvm", "nobody")
    with pytest.raises(PropertyValueError):
        qubes.reset("work", "label")
    with pytest.raises(ValueInvalidError):
        qubes.set("work", "netvm", "deb")


def test_features_tags_labels_pools_volumes(qubes: Qubes) -> None:
    qubes.call("admin.vm.feature.Set", "os", "deb", "Linux")
    assert qubes.call("admin.vm.feature.CheckWithTemplate", "os", "work") == "Linux"
    with pytest.raises(FeatureNotFoundError):
        qubes.call("admin.vm.feature.Get", "os", "work")
    with pytest.raises(PermissionDeniedError):
        qubes.call("admin.vm.feature.Set", "preload-dispvm", "work", "1")
    qubes.call("admin.vm.tag.Set", "mine", "work")
    assert qubes.tags("work") == ["created-by-dom0", "mine"]
    assert qubes.call("admin.vm.tag.Get", "mine", "work") == "1" and qubes.call("admin.vm.tag.Get", "m", "work") == "0"
    qubes.call("admin.label.Create", "mauve", payload="0xE0B0FF")
    assert qubes.call("admin.label.Get", "mauve") == "0xe0b0ff" and qubes.call("admin.label.Index", "mauve") == "9"
    qubes.set("work", "label", "mauve")
    with pytest.raises(CasemateError, match="mauve"):
        qubes.call("admin.label.Remove", "mauve")
    with pytest.raises(ValueInvalidError, match="100%s"):
        qubes.create("AppVM", "new", "100%s", "deb")
    qubes.call("admin.pool.Add", "qcow2", payload="name=second\nrevisions_to_keep=2\n")
    assert qubes.call("admin.pool.Info", "second") == (
        "name=second\ndriver=qcow2\nrevisions_to_keep=2\nsize=1000\nusage=10\n"
    )
    qubes.create("AppVM", "there", "red", "deb", {"private": "second"})
    assert qubes.volume("there", "private")["pool"] == "second" and qubes.volume("there", "root")["pool"] == "default"
    with pytest.raises(CasemateError, match="second"):
        qubes.call("admin.pool.Remove", "second")
    assert qubes.volumes("work") == ["root", "private", "volatile"] and qubes.volumes("dom0") == []
    qubes.call("admin.vm.volume.Resize", "private", "work", str(3 << 30))
    assert qubes.volume("work", "private")["size"] == str(3 << 30)
    with pytest.raises(CasemateError, match="smaller"):
        qubes.call("admin.vm.volume.Resize", "private", "work", "1024")
    token = qubes.call("admin.vm.volume.CloneFrom", "private", "work")
    qubes.call("admin.vm.volume.CloneTo", "private", "there", token)
    assert qubes.volume("there", "private")["size"] == str(3 << 30)
    with pytest.raises(CasemateError, match="token"):
        qubes.call("admin.vm.volume.CloneTo", "private", "there", token)


def test_one_call_for_everything(qubes: Qubes) -> None:
    qubes.call("admin.vm.feature.Set", "servicevm", "work", "1")
    found = qubes.inventory(["label", "netvm"], ["servicevm"], True)
    assert [entry["name"] for entry in found] == ["dom0", "deb", "work"]
    assert found[2]["properties"]["label"] == {"default": False, "type": "label", "value": "blue"}
    assert found[2]["features"] == {"servicevm": "1"} and found[2]["tags"] == ["created-by-dom0"]
    assert "netvm" not in found[0]["properties"]
    whole = qubes.inventory(None, None, True, ["work"])[0]["properties"]
    assert {name: (v["default"], v["type"], v["value"]) for name, v in whole.items()} == qubes.properties("work")
    for payload in (b"[]", b"{", b'{"x": 1}', b'{"properties": 1}', b'{"properties": [1]}', b"[" * 5000):
        with pytest.raises(ProtocolError):
            qubes.call("admin.casemate.List", payload=payload)
    assert qubes.status()["acceleration"] == "none"


def test_clone_leaves_nothing_when_it_fails(qubes: Qubes, daemon: FakeDaemon) -> None:
    qubes.set("work", "memory", "640")
    qubes.call("admin.vm.feature.Set", "a", "work", "b")
    qubes.call("admin.vm.firewall.Set", "", "work", "action=drop\n")
    qubes.call("admin.vm.notes.Set", "", "work", "ours")
    qubes.clone("work", "twin")
    assert qubes.call("admin.vm.firewall.Get", "", "twin") == "action=drop\n"
    assert qubes.call("admin.vm.notes.Get", "", "twin") == "ours"
    assert qubes.get("twin", "memory").text == "640" and qubes.features("twin") == {"a": "b"}
    qubes.call("admin.vm.Start", "", "work")
    with pytest.raises(NotHaltedError):
        qubes.clone("work", "triplet")
    assert "triplet" not in daemon.store.snapshot().domains


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ("name=new", ProtocolError), ("label=red", ProtocolError), ("name=new label=red x", ProtocolError),
        ("name=new label=red name=b", ProtocolError), ("name=new label=red memory=1", ProtocolError),
        ("name=new label=red pool=default", ProtocolError), ("name=none label=red", ValueInvalidError),
        ("name=a/b label=red", ValueInvalidError), ("name=work label=red", AlreadyExistsError),
        ("name=new label=pink", LabelNotFoundError), ("", ProtocolError),
    ],
)  # fmt: skip
def test_refused_creations(qubes: Qubes, daemon: FakeDaemon, payload: str, error: type[CasemateError]) -> None:
    with pytest.raises(error):
        qubes.call("admin.vm.Create.AppVM", "deb", payload=payload)
    assert set(daemon.store.snapshot().domains) == {"dom0", "deb", "work"}


def test_disposables(qubes: Qubes) -> None:
    with pytest.raises(CasemateError):
        qubes.call("admin.vm.CreateDisposable")
    qubes.set("work", "template_for_dispvms", "True")
    qubes.set(None, "default_dispvm", "work")
    name = qubes.call("admin.vm.CreateDisposable")
    assert qubes.get(name, "auto_cleanup").text == "True"
    uuid = qubes.call("admin.vm.CreateDisposable", "", "work", "uuid")
    assert uuid.startswith("uuid:") and qubes.call("admin.vm.property.Get", "klass", uuid).endswith(" DispVM")


def test_every_method_answers_every_call(qubes: Qubes, daemon: FakeDaemon) -> None:
    """No combination of too little, too much and nonsense gives silence or a fault of ours."""
    for name in sorted(METHODS):
        if METHODS[name].access is Access.STREAM:
            continue
        for dest in ("work", "dom0", "nobody"):
            for arg in ("", "nonsense", "%s"):
                for payload in (b"", b"\xff", b"=%d"):
                    reply = exchange(daemon.socket, admin.build_request(name, arg, dest, payload))
                    assert reply[:2] in (b"0\0", b"2\0"), (name, dest, arg, payload)
                    assert b"Internal error" not in reply, (name, dest, arg, payload)


def test_every_method_says_what_it_does_and_asks_for_permission_first(qubes: Qubes, daemon: FakeDaemon) -> None:
    denial = admin.failure(PermissionDeniedError())
    for name, method in METHODS.items():
        if sys.flags.optimize < 2:  # python -OO drops docstrings
            assert method.doc.endswith("."), name
        for dest in ("work", "nobody"):
            raw = admin.build_request(name, "some", dest, b"x", source="work")
            assert exchange(daemon.socket, raw) == denial, name
    unknown = admin.build_request("admin.vm.NoSuch", "", "work", b"", source="work")
    assert exchange(daemon.socket, unknown) == denial


def test_framing_errors_are_answered(daemon: FakeDaemon) -> None:
    for data in (b"", b"garbage", b"admin.vm.List+ dom0 name dom0", b"x" * 70000, b"a+ dom0 keyword x\0"):
        assert exchange(daemon.socket, data).startswith(b"2\0ProtocolError\0"), data[:20]
    head = b"admin.vm.feature.Set+x dom0 name dom0\0"
    assert exchange(daemon.socket, head + b"y" * (65536 - len(head))).startswith(b"2\0QubesValueError\0")
    assert exchange(daemon.socket, head + b"y" * (65537 - len(head))).startswith(b"2\0ProtocolError\0")
    assert exchange(daemon.socket, b"admin.vm.List dom0 keyword adminvm\0").startswith(b"0\0dom0 class=AdminVM")


def test_a_slow_call_is_cut_off_with_an_answer(tmp_path: Path) -> None:
    with running(tmp_path, request_seconds=0.2) as daemon:
        reply = exchange(daemon.socket, b"admin.vm.List+ dom0", close=False)
        assert reply.startswith(b"2\0ProtocolError\0")
        # and so is somebody who sends byte after byte
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(daemon.socket))
            started = time.monotonic()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                while time.monotonic() - started < 60:
                    connection.sendall(b"a")
                    time.sleep(0.02)


def test_too_many_connections_are_told_so(tmp_path: Path) -> None:
    with running(tmp_path, max_connections=3) as daemon:
        silent = []
        for _ in range(3):
            silent.append(socket.socket(socket.AF_UNIX))
            silent[-1].connect(str(daemon.socket))
        call = admin.build_request("admin.label.List")
        assert b"too many connections" in exchange(daemon.socket, call)
        for connection in silent:
            connection.close()
        deadline = time.monotonic() + 10
        while not exchange(daemon.socket, call).startswith(b"0\0red\n"):
            assert time.monotonic() < deadline


def test_a_fault_of_ours_travels_as_an_id(
    qubes: Qubes, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> str:
        raise KeyError("secret detail %s")

    for access in (Access.READ, Access.WRITE):
        monkeypatch.setitem(METHODS, "admin.test.Fail", Method("admin.test.Fail", access, fail, {}))
        with pytest.raises(CasemateError, match="Internal error [0-9a-f]{8}; ") as caught:
            qubes.call("admin.test.Fail")
        assert "secret" not in str(caught.value) and caught.value.wire_name == InternalError.wire_name
        ident = str(caught.value).split()[2].rstrip(";")
        assert any(ident in record.message and record.exc_info for record in caplog.records)
    assert dispatch.reply_to(ValueError("x"), None).startswith(b"2\0QubesException\0\0Internal error")


def test_a_qube_is_not_told_what_is_missing() -> None:
    """A name may be gone between the policy's decision and the lookup: the answer is that of a refusal."""
    request = admin.parse_request(admin.build_request("admin.vm.Start", "", "gone", source="work"))
    missing = dispatch.reply_to(NotFoundError("No such qube: gone"), request)
    assert missing == dispatch.reply_to(PermissionDeniedError(), request) and b"gone" not in missing
    ours = admin.parse_request(admin.build_request("admin.vm.Start", "", "gone"))
    assert b"gone" in dispatch.reply_to(NotFoundError("No such qube: gone"), ours), "a person is told"


def test_events_in_upstreams_order(qubes: Qubes, daemon: FakeDaemon) -> None:
    with qubes.transport.events(timeout=20) as events, qubes.transport.events("work", timeout=20) as of_work:
        assert events.next(20) == ("", "connection-established", {})
        assert of_work.next(20).name == "connection-established"
        qubes.set("work", "memory", "601")
        qubes.reset("work", "memory")
        qubes.create("AppVM", "evt", "red", "deb")
        qubes.call("admin.vm.feature.Set", "a", "work", "b")
        qubes.call("admin.vm.feature.Set", "a", "work", "")
        qubes.call("admin.vm.feature.Remove", "a", "work")
        qubes.call("admin.vm.tag.Set", "t", "work")
        qubes.call("admin.vm.tag.Remove", "t", "work")
        qubes.call("admin.vm.Start", "", "work")
        qubes.remove("evt")
        changed = {"name": "memory", "newvalue": "601", "oldvalue": "400"}
        reset = {"name": "memory", "oldvalue": "601"}
        expected = [
            ("work", "property-pre-set:memory", changed),
            ("work", "property-set:memory", changed),
            ("work", "property-pre-reset:memory", reset),
            ("work", "property-pre-del:memory", reset),
            ("work", "property-reset:memory", reset),
            ("work", "property-del:memory", reset),
            ("", "domain-add", {"vm": "evt"}),
            ("evt", "domain-tag-add:created-by-dom0", {"tag": "created-by-dom0"}),
            ("evt", "domain-create-on-disk", {}),
            ("work", "domain-feature-pre-set:a", {"feature": "a", "value": "b"}),
            ("work", "domain-feature-set:a", {"feature": "a", "value": "b"}),
            ("work", "domain-feature-pre-set:a", {"feature": "a", "value": "", "oldvalue": "b"}),
            ("work", "domain-feature-set:a", {"feature": "a", "value": "", "oldvalue": "b"}),
            ("work", "domain-feature-pre-delete:a", {"feature": "a"}),
            ("work", "domain-feature-delete:a", {"feature": "a"}),
            ("work", "domain-tag-add:t", {"tag": "t"}),
            ("work", "domain-tag-delete:t", {"tag": "t"}),
            ("work", "domain-pre-start", {"start_guid": GUID, "mem_required": str(400 << 20)}),
            ("work", "domain-start", {"start_guid": GUID}),
            ("", "domain-pre-delete", {"vm": "evt"}),
            ("", "domain-delete", {"vm": "evt"}),
        ]
        assert [tuple(events.next(20)) for _ in expected] == expected
        mine = [event for event in expected if event[0] == "work"]
        assert [tuple(of_work.next(20)) for _ in mine] == mine
    assert client(daemon).listed()


def test_a_new_default_is_news_for_those_who_use_it(qubes: Qubes) -> None:
    qubes.create("AppVM", "net", "red", "deb")
    qubes.set("net", "provides_network", "True")
    qubes.set("net", "netvm", "")
    with qubes.transport.events("work", timeout=20) as events:
        assert events.next(20).name == admin.CONNECTED
        qubes.set(None, "default_netvm", "net")
        assert events.next(20) == ("work", "property-reset:netvm", {"name": "netvm"})
        qubes.set("work", "label", "green")
        assert [events.next(20).name for _ in range(3)][-1] == "property-reset:icon"


def test_a_deaf_subscriber_is_cut_off(qubes: Qubes, daemon: FakeDaemon) -> None:
    deaf = qubes.transport.events()
    big = FeaturesRequest("work", "x" * 60000)
    for _ in range(QUEUE_LIMIT + 200):
        daemon.loop.call_soon_threadsafe(daemon.context.events.publish, big)
    deadline = time.monotonic() + 20
    while len(daemon.context.events):
        assert time.monotonic() < deadline
        qubes.listed()
    with pytest.raises(DaemonAccessError):
        for _ in deaf:
            pass
    deaf.close()


def test_subscriptions_are_bounded_and_dead_ones_make_room(qubes: Qubes) -> None:
    kept = [qubes.transport.events() for _ in range(MAX_SUBSCRIPTIONS)]
    with pytest.raises(CasemateError, match="subscribers"):
        qubes.transport.events()
    for one in kept:
        one.close()
    qubes.transport.events().close()


def test_the_socket_is_its_owners_alone(daemon: FakeDaemon) -> None:
    assert daemon.socket.stat().st_mode & 0o777 == 0o600
    assert json.loads(exchange(daemon.socket, admin.build_request("admin.casemate.List"))[2:])[0]["name"] == "dom0"


PEER = """
import os, socket
from casemate.api.permissions import check_peer
from casemate.wire.errors import PermissionDeniedError
if os.geteuid() == 0:
    os.setuid(65534)
ours, theirs = socket.socketpair()
check_peer(ours)
os.geteuid = lambda: 12345  # as if the daemon were somebody else's
try:
    check_peer(ours)
except PermissionDeniedError:
    print("refused")
"""


def test_a_peer_is_root_or_the_daemons_own_user() -> None:
    """Whatever the mode of the socket: it may lie where a person has opened it for others."""
    assert subprocess.run([sys.executable, "-c", PEER], capture_output=True, text=True).stdout == "refused\n"
