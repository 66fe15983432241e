"""Every method of upstream's is there, answers a good call as documented and a bad one with a typed error."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.api.methods import METHODS
from casemate.client.transport import send_request
from casemate.wire import admin
from casemate.wire.errors import CasemateError, ValueInvalidError, all_errors
from casemate.wire.events import NetworkStatistics
from tests.contract.upstream import CALLS, STREAMS, fits, names
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.host_devices import add_block
from tests.unit.test_api import exchange

ERROR = re.compile(rb"2\0([A-Za-z]+)\0\0[^\0]+\0")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDaemon]:
    with running(tmp_path_factory.mktemp("d")) as found:
        for klass, name, template in (("TemplateVM", "deb", None), ("AppVM", "work", "deb"), ("AppVM", "dvm", "deb")):
            found.client().create(klass, name, "blue", template)
        found.client().set("dvm", "template_for_dispvms", "True")
        add_block(found.parts.sys, "loop0", loop__backing_file="/images/a")
        yield found


def test_each_good_call_has_the_documented_reply(daemon: FakeDaemon) -> None:
    for call in CALLS:
        reply = exchange(daemon.socket, admin.build_request(call.method, call.arg, call.dest, call.payload))
        assert fits(call, reply), (call, reply)


def test_the_two_streams_begin_as_documented(daemon: FakeDaemon) -> None:
    for method in STREAMS:
        with daemon.client().transport.connect() as connection:
            send_request(connection, admin.build_request(method))
            connection.settimeout(20)
            frame = b"1\0\0connection-established\0\0"
            found = b""
            while len(found) < len(frame):
                found += connection.recv(len(frame) - len(found))
            assert found == frame


def test_nothing_of_upstream_is_missing() -> None:
    assert names() - METHODS.keys() == set()
    assert {name for name in METHODS.keys() - names() if not name.startswith("admin.casemate.")} == set()


@pytest.mark.parametrize("method", sorted(names() - set(STREAMS)))
def test_bad_calls_have_a_typed_error_or_an_answer(daemon: FakeDaemon, method: str) -> None:
    known = {cls.wire_name.encode() for cls in all_errors()}
    for dest in ("nobody", "uuid:00000000-0000-0000-0000-00000000ffff"):
        reply = exchange(daemon.socket, admin.build_request(method, "", dest))
        assert (found := ERROR.fullmatch(reply)) and found[1] in known, (dest, reply)
    for arg in ("", "no%such", "../x", "a" * 1000, "+"):
        for payload in (b"", b"%s", b"\xff\xfe", b"-1", b"\n" * 10, b"name= label=", b"9" * 100):
            for dest in ("dom0", "work"):
                if method == "admin.vm.Remove":
                    continue
                reply = exchange(daemon.socket, admin.build_request(method, arg, dest, payload))
                found = ERROR.fullmatch(reply)
                assert reply[:2] == b"0\0" or (found and found[1] in known), (dest, arg, payload, reply)
                assert b"Internal error" not in reply, (dest, arg, payload, reply)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(sorted(METHODS.keys() - set(STREAMS))), st.booleans())
def test_whatever_comes_is_answered(daemon: FakeDaemon, noise: bytes, method: str, shaped: bool) -> None:
    data = f"{method}+".encode() + noise if shaped else noise
    reply = exchange(daemon.socket, data)
    assert reply.startswith(b"0\0") or ERROR.fullmatch(reply), (data, reply)
    assert b"Internal error" not in reply and b"Traceback" not in reply, (data, reply)


def test_wrong_types_everywhere(daemon: FakeDaemon) -> None:
    """Words of one method given to every other."""
    chosen = random.Random(7)  # noqa: S311
    words = sorted({call.arg for call in CALLS} | {"default", "private", "-1", "1_0", "+1", "00", "9" * 20})
    payloads = sorted({call.payload for call in CALLS} | {b"True", b"uuid", b"any\n", b"{}", b"[1]", b"0" * 60000})
    for _ in range(int(os.environ.get("CASEMATE_FUZZ_ROUNDS", "3000"))):
        method = chosen.choice(sorted(METHODS.keys() - set(STREAMS) - {"admin.vm.Remove"}))
        request = admin.build_request(
            method, chosen.choice(words), chosen.choice(("dom0", "work", "deb", "none")), chosen.choice(payloads)
        )
        reply = exchange(daemon.socket, request)
        assert reply.startswith(b"0\0") or ERROR.fullmatch(reply), (request[:200], reply)
        assert b"Internal error" not in reply, (request[:200], reply)


def test_firewall_rules_are_checked_and_survive_a_restart(tmp_path: Path) -> None:
    good = (
        "action=accept proto=tcp dst4=10.1.0.0/16 dstports=80-443 comment=the web, mostly\n"
        "action=accept dsthost=www.example.com expire=99999999999\n"
        "action=drop proto=icmp icmptype=8\n"
        "action=accept specialtarget=dns\n"
    )
    with running(tmp_path) as one:
        qubes = one.client()
        qubes.create("TemplateVM", "deb", "black")
        qubes.create("AppVM", "work", "red", "deb")
        qubes.call("admin.vm.firewall.Set", "", "work", good)
        for bad in (
            "action=maybe", "proto=tcp", "action=accept dst4=1.2.3", "action=accept dst4=10.0.0.1/33",
            "action=accept dsthost=1.2.3", "action=accept dsthost=-a.b", "action=accept dstports=80",
            "action=accept proto=tcp dstports=0-1", "action=accept proto=tcp dstports=9-1", "action=accept action=drop",
            "action=accept dst4=1.1.1.1 dst6=::1", "action=accept proto=tcp icmptype=8", "action=accept x=y", "action",
            "action=accept comment=" + "x" * 65, "action=accept expire=-1", "action=accept expire=01",
            "action=accept specialtarget=dns dst4=1.1.1.1", "\n".join(["action=drop"] * 257),
        ):  # fmt: skip
            with pytest.raises(ValueInvalidError):
                qubes.call("admin.vm.firewall.Set", "", "work", bad)
            assert qubes.call("admin.vm.firewall.Get", "", "work") == good
        qubes.call("admin.vm.firewall.Set", "", "deb", "action=drop expire=1\naction=accept dst4=1.2.3.4\n")
        assert qubes.call("admin.vm.firewall.Get", "", "deb") == "action=accept dst4=1.2.3.4/32\n"
    with running(tmp_path) as other:
        qubes = other.client()
        assert qubes.call("admin.vm.firewall.Get", "", "work") == good
        qubes.remove("work")
        qubes.create("AppVM", "work", "red", "deb")
        assert qubes.call("admin.vm.firewall.Get", "", "work") == "action=accept\n"


def test_notes_may_be_long_and_empty(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    text = "ä" * 100_000 + "\n\x1b[31m"
    qubes.call("admin.vm.notes.Set", "", "work", text)
    assert qubes.call("admin.vm.notes.Get", "", "work") == "ä" * 100_000 + "\n_[31m"
    with pytest.raises(CasemateError) as caught:
        qubes.call("admin.vm.notes.Set", "", "work", "x" * 260_000)
    assert caught.value.wire_name == "QubesNotesError"
    qubes.call("admin.vm.notes.Set", "", "work", "")
    assert qubes.call("admin.vm.notes.Get", "", "work") == ""
    head = b"admin.vm.notes.Set+ dom0 name work\0"
    assert exchange(daemon.socket, head + b"x" * (300 << 10)).startswith(b"2\0ProtocolError\0")


def test_lesson_L14_a_policy_that_does_not_parse_changes_nothing(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.call("policy.Replace", "40-mine", payload="any\ntest.A * work dom0 allow\n")
    token, _, text = qubes.call("policy.Get", "40-mine").partition("\n")
    for payload, error in (
        (f"{token}\nno rule at all\n", "PolicyAdminSyntaxException"),
        ("sha256:" + "0" * 64 + "\n# x\n", "PolicyAdminTokenException"),
        ("new\n# x\n", "PolicyAdminTokenException"),
    ):
        with pytest.raises(CasemateError) as caught:
            qubes.call("policy.Replace", "40-mine", payload=payload)
        assert caught.value.wire_name == error
        assert qubes.call("policy.Get", "40-mine") == f"{token}\n{text}"
    qubes.call("policy.Remove", "40-mine", payload=token)


def test_the_old_name_of_memory_balancing(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.call("admin.vm.feature.Set", "service.meminfo-writer", "work", "")
    assert qubes.get("work", "maxmem") == (False, "int", "0")
    qubes.call("admin.vm.feature.Set", "service.meminfo-writer", "work", "1")
    assert qubes.get("work", "maxmem").default and "service.meminfo-writer" not in qubes.features("work")


def test_who_shows_a_qube_is_also_a_tag(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.create("AppVM", "screen", "red", "deb")
    qubes.set("work", "guivm", "screen")
    assert "guivm-screen" in qubes.tags("work")
    with pytest.raises(CasemateError):
        qubes.call("admin.vm.tag.Remove", "guivm-screen", "work")
    qubes.reset("work", "guivm")
    assert "guivm-screen" not in qubes.tags("work")


def test_data_for_a_volume_is_put_in_place_whole_or_not_at_all(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.create("AppVM", "vault", "red", "deb")
    image = bytes(range(256)) * 4096 + bytes(1 << 20) + b"end"
    head = b"admin.vm.volume.ImportWithSize+private dom0 name vault\0"
    whole = head + b"%d\n" % len(image) + image
    assert exchange(daemon.socket, whole) == b"0\0"
    assert daemon.parts.volumes.images.pop(("vault", "private")) == image
    for wrong in (whole[:-1], whole + b"x", head, head + b"\n", head + b"-1\nx", head + b"x" * 100, head + b"01\nx"):
        assert ERROR.fullmatch(exchange(daemon.socket, wrong)), wrong[:80]
    for dest, arg in (("nobody", "private"), ("vault", "nosuch"), ("dom0", "root")):
        request = f"admin.vm.volume.Import+{arg} dom0 name {dest}\0".encode() + image
        assert ERROR.fullmatch(exchange(daemon.socket, request))
    assert ("vault", "private") not in daemon.parts.volumes.images
    assert exchange(daemon.socket, b"admin.vm.volume.Import+private dom0 name vault\0" + image) == b"0\0"
    assert daemon.parts.volumes.images.pop(("vault", "private")) == image
    assert list((daemon.socket.parent.parent / "spool").iterdir()) == []


def test_statistics_of_what_runs(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.create("AppVM", "busy", "red", "deb")
    qubes.set(None, "stats_interval", "1")
    qubes.call("admin.vm.Start", "", "busy")
    with qubes.transport.connect() as connection:
        send_request(connection, admin.build_request("admin.vm.Stats", "", "busy"))
        connection.settimeout(20)
        reader, events = admin.EventReader(), []
        while len(events) < 3:
            events += reader.feed(connection.recv(65536))
    assert events[0].name == admin.CONNECTED
    for subject, name, values in events[1:]:
        assert (subject, name) == ("busy", "vm-stats")
        assert values == {
            "memory_kb": "409600", "memory_assigned_total": "409600", "memory_assigned_usable": "409600",
            "memory_with_swap_used": "409600", "cpu_time": "1", "cpu_usage": "0", "online_vcpus": "2",
        }  # fmt: skip
    qubes.call("admin.vm.Kill", "", "busy")
    qubes.remove("busy")


def test_statistics_of_the_network(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.set(None, "stats_interval", "1")
    figures = (1, 2, 3, 4, 9, "spoof=2 firewall=7")
    daemon.parts.network.carried = [
        NetworkStatistics(name, tap, *figures) for name, tap in (("other", "u8"), ("deb", "u7"))
    ]
    with qubes.transport.connect() as connection:
        send_request(connection, admin.build_request("admin.vm.Stats", "", "deb"))
        connection.settimeout(20)
        reader, events = admin.EventReader(), []
        while not any(event.name == "vm-network-stats" for event in events):
            events += reader.feed(connection.recv(65536))
    daemon.parts.network.carried = []
    assert {event.subject for event in events[1:]} == {"deb"}
    assert events[-1][2] == {
        "interface": "u7", "sent_bytes": "1", "sent_packets": "2", "received_bytes": "3", "received_packets": "4",
        "dropped": "9", "causes": "spoof=2 firewall=7",
    }  # fmt: skip
