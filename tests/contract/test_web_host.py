"""The pages about the whole host, as a browser asks for them: the real server, the real Admin API, no machines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from markupsafe import escape

from casemate.client.network_tree import way_out
from casemate.web import host_page, rendering
from casemate.web.connections import REQUEST_SECONDS
from casemate.web.event_log import KEPT_EVENTS, Entry
from casemate.web.host_page import Pool
from casemate.web.network_picture import MOST_BOXES, Meter, picture
from casemate.wire.errors import ValueInvalidError
from casemate.wire.events import FeatureSet
from tests.builders import short_directory, wait_for
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.web import Page, page

EVIL = "<img src=x onerror=alert(1)>\u202e"


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        qubes = found.client()
        qubes.create("TemplateVM", "deb", "black")
        qubes.create("AppVM", "work", "blue", "deb")
        yield found


@pytest.fixture
def web(daemon: FakeDaemon) -> Iterator[Page]:
    with page(daemon.socket.parents[1]) as found:
        yield found


def read(web: Page, path: str) -> str:
    """The HTML at an address, which must be there."""
    status, _, text = web.ask("GET", path)
    assert status == 200, (path, status, text)
    return text


# ---------------------------------------------------------------------------------------------------------------- host


def test_the_host_page_says_what_is_missing_and_what_to_do(daemon: FakeDaemon, web: Page) -> None:
    text = read(web, "/part/host")
    status = daemon.client().status()
    missing = [one for one in status["protections"] if not one["present"]]
    assert missing, "no host of tests has all: qubes are emulated there"
    for one in missing:
        assert one["remedy"] and escape(one["remedy"]) in text, one
    assert f"version {status['version']}" in text and "qubes are emulated" in text
    assert "default" in text and "linux-kernel" in text


def test_a_pool_with_little_room_is_warned_of() -> None:
    gib = 1 << 30
    assert not Pool("a", "file", "/x", 100 * gib, 50 * gib).warning
    assert not Pool("kernels", "linux-kernel", "/x", None, None).warning
    assert Pool("a", "file", "/x", 100 * gib, 95 * gib).warning, "a twentieth is left"
    assert Pool("a", "file", "/x", 10 * gib, 9 * gib).warning, "less than a start may write"


def test_the_log_has_events_newest_first_and_only_the_new_ones(daemon: FakeDaemon, web: Page) -> None:
    with web.stream(topics="events") as messages:
        next(message for message in messages if not message["lost"])
        daemon.client().set("work", "label", "red")
        assert next(message for message in messages if message["topics"])["topics"] == ["events"]
        wait_for(lambda: "property-set:label" in read(web, "/part/events"), 20)
        text = read(web, "/part/events")
        newest = int(text.partition('data-number="')[2].partition('"')[0])
        assert read(web, f"/part/events?after={newest}") == ""
        daemon.client().set("work", "label", "green")
        wait_for(lambda: "newvalue=green" in read(web, f"/part/events?after={newest}"), 20)
    for wrong in ("x", "-1", "9" * 40):
        assert web.ask("GET", f"/part/events?after={wrong}")[0] == 409


def test_the_log_is_bounded_and_a_stream_that_did_not_ask_is_left_alone(daemon: FakeDaemon, web: Page) -> None:
    with web.stream(topics="events") as messages, web.stream() as other:
        for stream in (messages, other):
            next(message for message in stream if not message["lost"])
        for number in range(KEPT_EVENTS + 100):
            daemon.loop.call_soon_threadsafe(daemon.parts.bus.say, FeatureSet("work", feature="a", value=str(number)))
        wait_for(lambda: f"value={KEPT_EVENTS + 99}" in read(web, "/part/events"), 20)
        assert read(web, "/part/events").count("<tr") == KEPT_EVENTS
        daemon.client().set("work", "label", "purple")
        assert next(other)["rows"].keys() == {"work"}, "nothing came in between"


def test_text_in_events_is_escaped_and_marked() -> None:
    html = rendering.render(
        "events.html", entries=[Entry(1, 0.0, "work", "a" + EVIL, "x=" + EVIL)], clock=host_page.clock
    )
    assert "<img" not in html and "\u202e" not in html and 'class="said"' in html


def test_a_page_that_nobody_looks_at_sleeps(web: Page) -> None:
    """It is counted how often the kernel woke it, which a busy machine does not change."""

    def woken() -> int:
        status = Path(f"/proc/{web.process.pid}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split("\n")[0])

    assert web.ask("GET", "/view/host")[0] == 200
    time.sleep(REQUEST_SECONDS)  # until the end of the connection's own timer
    before = woken()
    time.sleep(2)
    assert woken() - before <= 4


# ------------------------------------------------------------------------------------------------------------- network


@pytest.fixture
def networked(daemon: FakeDaemon) -> FakeDaemon:
    """A net qube that runs, one behind it that runs, one that does not."""
    qubes = daemon.client()
    qubes.create("AppVM", "sys-net", "red", "deb")
    qubes.set("sys-net", "netvm", "")
    qubes.set("sys-net", "provides_network", "True")
    qubes.call("admin.vm.feature.Set", "net.uplink", "sys-net", "pasta")
    qubes.create("AppVM", "vault", "black", "deb")
    qubes.set("vault", "netvm", "")
    qubes.set("work", "netvm", "sys-net")
    qubes.call("admin.vm.Start", "", "work")
    return daemon


def test_the_picture_has_each_qube_and_its_traffic(networked: FakeDaemon, web: Page) -> None:
    networked.parts.network.carry("work", 1 << 20, 2 << 20, dropped=7)
    text = read(web, "/part/network")
    assert ">work</text>" in text and ">sys-net</text>" in text and "Without network:" in text and "vault" in text
    assert "1.0 MiB sent, 2.0 MiB received" in text and "7 packets (firewall)" in text
    assert 'href="#/network?qube=work"' in text and " style=" not in text


def test_the_picture_and_the_table_name_the_card_of_a_net_qube(networked: FakeDaemon, web: Page) -> None:
    networked.client().call("admin.vm.feature.Set", "net.uplink", "sys-net", "card:eth1")
    assert "this host&#39;s network (card eth1): " in read(web, "/part/network")
    networked.parts.network.missing["sys-net"] = "eth1 has vanished"
    (one,) = (
        found for found in json.loads(networked.client().call("admin.casemate.net.Show"))["qubes"]
        if found["name"] == "sys-net"
    )  # fmt: skip
    assert (one["uplink_by"], one["uplink_missing"], way_out(one)) == (
        "card:eth1", "eth1 has vanished", "card eth1, which is missing"
    )  # fmt: skip
    with pytest.raises(ValueInvalidError, match="no name of a card"):
        networked.client().call("admin.vm.feature.Set", "net.uplink", "sys-net", "card:a/b")


def test_the_picture_is_not_of_yesterday(networked: FakeDaemon, web: Page) -> None:
    """A report serves several windows for a moment, but not beyond a change."""
    with web.stream(topics="network") as messages:
        next(message for message in messages if not message["lost"])
        assert "work, Running" in read(web, "/part/network")
        networked.client().call("admin.vm.Kill", "", "work")
        assert next(message for message in messages if message["topics"])["topics"] == ["network"]
        assert "work, Halted" in read(web, "/part/network")


def test_it_is_explained_what_stops_a_packet(networked: FakeDaemon, web: Page) -> None:
    rules = "action=accept dst4=192.0.2.1 proto=tcp dstports=443-443\naction=drop\n"
    networked.client().call("admin.vm.firewall.Set", "", "work", rules)
    assert '<b class="good">yes</b>' in read(web, "/view/network?qube=work&host=192.0.2.1&port=443&protocol=tcp")
    text = read(web, "/view/network?qube=work&host=192.0.2.1&port=80&protocol=tcp")
    assert '<b class="bad">no</b>' in text and 'class="remedy' in text, "and what would change it"
    assert 'role="alert"' in read(web, "/view/network?qube=work&host=192.0.2.1&port=99999")
    assert 'role="alert"' in read(web, "/view/network?qube=nobody&host=x")
    status, headers, _ = web.ask("GET", "/view/network?qube=%3Cimg%3E")
    assert status == 409 and headers["content-type"].startswith("text/plain")


def test_rates_are_of_the_time_between_two_reports() -> None:
    def report(sent: int, received: int) -> list[dict[str, object]]:
        return [{"name": "a", "traffic": {"u1": {"sent_bytes": sent, "received_bytes": received}}}]

    meter = Meter()
    meter.take(report(1000, 5000), 10.0)
    assert meter.rates == {}, "nothing to compare with"
    meter.take(report(3000, 5000), 12.0)
    assert meter.rates == {"a": (1000.0, 0.0)}
    meter.take(report(10, 10), 13.0)
    assert meter.rates == {"a": (0.0, 0.0)}, "its machine was started anew"


def test_a_picture_of_thousands_stays_small() -> None:
    def qube(number: int, netvm: str | None, state: str, provides: bool = False) -> dict[str, object]:
        return {
            "name": f"q{number}", "label": "0xcc0000", "state": state, "netvm": netvm, "ip": "10.0.0.1", "rules": 1,
            "provides_network": provides, "uplink": provides, "joined": True, "traffic": {}, "dropped": {},
        }  # fmt: skip

    found = [
        qube(0, None, "Running", True),
        *(qube(n, "q0", "Halted") for n in range(1, 2000)),
        qube(2000, "q0", "Running"),
    ]
    shown = picture(found, {})  # type: ignore[arg-type]
    assert {box.name for box in shown.boxes} >= {"q0", "q2000"} and len(shown.boxes) <= MOST_BOXES + 1
    assert shown.left_out == 1999
    many = [qube(0, None, "Running", True), *(qube(n, "q0", "Running") for n in range(1, 2000))]
    assert len(picture(many, {}).boxes) == MOST_BOXES + 1  # type: ignore[arg-type]
