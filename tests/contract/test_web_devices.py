"""The page of devices: what is listed of host and qubes, who has what, and what a person does there in a browser."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from casemate.client.device_lines import argument
from casemate.devices.device_class import HostDevice
from casemate.web import devices_page
from casemate.web.devices_page import Group, offered, place_holders
from casemate.wire.errors import NotImplementedHereError
from tests.builders import settings_in, short_directory
from tests.component.served_database import served_database
from tests.contract.test_web_accessibility import browser, faults
from tests.fakes.browser import SECONDS, opened, picture
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.host_devices import add_block, add_usb_stick
from tests.fakes.web import Page, page, post

__all__ = ["browser"]

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        qubes = found.client()
        qubes.create("TemplateVM", "deb", "black")
        for name in ("work", "vault"):
            qubes.create("AppVM", name, "blue", "deb")
        add_block(found.parts.sys, "sdb", size=4096)
        add_block(found.parts.sys, "sdc", size=4096, device__model=EVIL[:40], device__vendor="<b>")
        look(found)
        yield found


@pytest.fixture
def web(daemon: FakeDaemon) -> Iterator[Page]:
    with page(daemon.socket.parents[1]) as found:
        yield found


def look(daemon: FakeDaemon) -> None:
    """Have the daemon look at the host's devices, as an event of the kernel does."""
    asyncio.run_coroutine_threadsafe(daemon.parts.devices.look(), daemon.loop).result(20)


def read(web: Page) -> str:
    status, _, text = web.ask("GET", "/view/devices")
    assert status == 200, text
    return text


def row(text: str, device: str) -> str:
    """The row of a device."""
    return text.partition(f'data-key="device-{device}"')[2].partition("</tr>")[0]


def database(daemon: FakeDaemon, name: str) -> Path:
    path = settings_in(daemon.socket.parents[1]).database_socket(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def argument_of(daemon: FakeDaemon, port: str) -> str:
    """A block device of the host as methods name it."""
    [found] = [one for one in daemon.parts.devices.offered("block") if one.port == port]
    return argument("dom0", port, found.ident)


# ------------------------------------------------------------------------------------------------------ what is listed


def test_who_has_which_device_is_one_answer(daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.call("admin.vm.Start", "", "work")
    qubes.call("admin.vm.device.block.Attach", "dom0+sdb", "work")
    qubes.call("admin.vm.device.block.Assign", "dom0+sdc", "vault", "mode='auto-attach'")
    found = json.loads(qubes.call("admin.casemate.device.Held"))
    known = {(one["qube"], one["class"], one["port"], one["attached"], one["mode"]) for one in found}
    assert known == {("work", "block", "sdb", True, ""), ("vault", "block", "sdc", False, "auto-attach")}
    assert {one["backend"] for one in found} == {"dom0"}


def test_all_devices_are_listed_with_who_has_them(daemon: FakeDaemon, web: Page) -> None:
    add_usb_stick(daemon.parts.sys, "1-2", "sdd")
    qubes, sdb = daemon.client(), argument_of(daemon, "sdb")
    text = read(web)
    for word in ("block", "usb", "pci"):
        assert f'data-key="class-{word}"' in text, word
    assert "dom0:1-2" in text and "nobody" in row(text, sdb)
    assert post(web, "/devices/block/attach", device=sdb, qube="work", mode="")[0] == 409, "it does not run"
    qubes.call("admin.vm.Start", "", "work")
    assert post(web, "/devices/block/attach", device=sdb, qube=" work ", mode="") == (200, "")
    shown = row(read(web), sdb)
    assert "/qubes/work/device/block/detach" in shown and "/devices/block/attach" not in shown
    assert post(web, "/devices/block/assign", device=sdb, qube="vault", mode="required") == (200, "")
    assert qubes.call("admin.vm.device.block.Assigned", "", "vault").startswith("dom0+sdb:")
    shown = row(read(web), sdb)
    assert "/qubes/vault/device/block/unassign" in shown and ">required<" in shown
    assert post(web, "/qubes/work/device/block/detach", device=sdb)[0] == 200
    assert post(web, "/qubes/vault/device/block/unassign", device=sdb)[0] == 200
    assert row(read(web), sdb).count("nobody") == 2


def test_what_a_device_or_a_qube_says_is_plain_marked_text(daemon: FakeDaemon, web: Page) -> None:
    daemon.client().call("admin.vm.Start", "", "work")
    keys = {
        "/qubes-block-devices/xvdi/desc": EVIL.encode(), "/qubes-block-devices/xvdi/size": b"1024",
        "/qubes-block-devices/xvdi/mode": b"w", "/qubes-block-devices/B.D/size": b"512",
    }  # fmt: skip
    with served_database(database(daemon, "work"), keys):
        text = read(web)
    assert "<img" not in text and "<b>" not in text
    assert '<span class="said" title="The qube work says this">&lt;img src=x' in text
    assert '<span class="said" title="The device says this">&lt;b&gt; &lt;img' in text
    shown = row(text, "work+xvdi+xvdi")
    assert "said by work" in shown and "stays in work" in shown and "<form" not in shown
    assert "B.D" not in text, "a device with a name that is none is left out"


def test_a_qube_that_does_not_answer_holds_nothing_up(daemon: FakeDaemon, web: Page) -> None:
    for name in ("work", "vault"):
        daemon.client().call("admin.vm.Start", "", name)
    with closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.bind(str(database(daemon, "work")))
        silent.listen()
        with served_database(database(daemon, "vault"), {"/qubes-block-devices/xvdi/size": b"512"}):
            began = time.monotonic()
            text = read(web)
        assert time.monotonic() - began < devices_page.QUBE_SECONDS + 5
    assert "did not say which devices they offer: work." in text
    assert "vault:xvdi" in text and "dom0:sdb" in text


def test_a_device_that_is_gone_is_shown_while_it_is_assigned(daemon: FakeDaemon, web: Page) -> None:
    daemon.client().call("admin.vm.device.block.Assign", "dom0+gone", "vault", "mode='required'")
    shown = row(read(web), "dom0+gone+_")
    assert "not there now" in shown and "/qubes/vault/device/block/unassign" in shown
    assert "/devices/block/attach" not in shown


def test_an_assignment_of_any_device_of_a_port_is_in_the_row_of_that_which_is_there() -> None:
    group = Group("block", offered("block", "dom0", "sda:one device_id='one' port_id='sda'\n"))
    entry: dict[str, object] = {"qube": "q", "class": "block", "backend": "dom0", "attached": False, "mode": "required"}
    place_holders([group], [entry | {"port": "sda", "identity": "*"}, entry | {"port": "*", "identity": "one"},
                            entry | {"port": "sda", "identity": "other"}, entry | {"class": "none", "port": "sda",
                                                                                    "identity": "one"}])  # fmt: skip
    assert [(one.port, one.identity, len(one.assigned)) for one in group.rows] == [
        ("sda", "one", 2),
        ("sda", "other", 1),
    ]


def test_trouble_with_one_class_hides_no_other(daemon: FakeDaemon, web: Page) -> None:
    real = daemon.parts.devices.offered

    def broken(klass: str) -> Sequence[HostDevice]:
        if klass == "usb":
            raise NotImplementedHereError("the <bus> cannot be read")
        return real(klass)

    daemon.parts.devices.offered = broken  # type: ignore[method-assign]
    text = read(web)
    assert "the &lt;bus&gt; cannot be read" in text and "dom0:sdb" in text


@pytest.mark.parametrize(
    ("path", "fields", "status", "named"),
    [
        ("/devices/block/explode", {"device": "dom0+sdb+_", "qube": "work", "mode": ""}, 404, "action"),
        ("/devices/block/detach", {"device": "dom0+sdb+_", "qube": "work", "mode": ""}, 404, "action"),
        ("/devices/block/attach", {"device": "sdb", "qube": "work", "mode": ""}, 409, "BACKEND+PORT+IDENTITY"),
        ("/devices/block/attach", {"device": "dom0+sdb+_", "qube": "", "mode": ""}, 409, ""),
        ("/devices/block/attach", {"device": "dom0+sdb+_", "qube": "a b", "mode": ""}, 409, "a b"),
        ("/devices/block/attach", {"device": "dom0+sdb+_", "qube": "nobody", "mode": ""}, 404, "nobody"),
        ("/devices/block/attach", {"device": "vault+xvdi+_", "qube": "work", "mode": ""}, 409, "other qubes"),
        ("/devices/block/assign", {"device": "dom0+sdb+_", "qube": "work", "mode": "often"}, 409, "required"),
        ("/devices/block/assign", {"device": "dom0+sdb+_", "qube": "work"}, 409, "device, qube, mode"),
        ("/devices/block/assign", {"device": "dom0+sdb+_", "qube": "dom0", "mode": "required"}, 409, "dom0"),
        ("/devices/no.thing/attach", {"device": "dom0+sdb+_", "qube": "work", "mode": ""}, 409, ""),
    ],
)
def test_wrong_input_is_named_and_changes_nothing(
    daemon: FakeDaemon, web: Page, path: str, fields: dict[str, str], status: int, named: str
) -> None:
    found, text = post(web, path, **fields)
    assert found == status and text and named in text, (found, text)
    assert json.loads(daemon.client().call("admin.casemate.device.Held")) == []


def test_a_read_only_page_has_no_buttons_and_gives_nothing_away(daemon: FakeDaemon) -> None:
    daemon.client().call("admin.vm.device.block.Assign", "dom0+sdc", "vault", "mode='required'")
    with page(daemon.socket.parents[1], "--read-only") as web:
        text = read(web)
        assert "dom0:sdb" in text and "Read only" in text and ">vault<" in text
        for word in ("<button", "<form", "data-post", "<input"):
            assert word not in text, word
        for verb in ("attach", "assign"):
            status, _ = post(web, f"/devices/block/{verb}", device="dom0+sdb+_", qube="work", mode="required")
            assert status == 403
    assert "sdb" not in daemon.client().call("admin.casemate.device.Held")


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 390)])
def test_a_person_gives_devices_away_and_sees_what_others_do(
    browser: Browser, daemon: FakeDaemon, web: Page, scheme: str, width: int
) -> None:
    qubes = daemon.client()
    qubes.call("admin.vm.Start", "", "work")
    with served_database(database(daemon, "work"), {"/qubes-block-devices/xvdi/size": b"512"}), ExitStack() as stack:
        tab = opened(stack, browser, web, scheme=scheme, width=width)
        tab.get_by_role("navigation").get_by_role("link", name="Devices", exact=True).click()
        here = tab.locator("tr", has_text="dom0:sdb")
        here.get_by_label("Qube to attach dom0:sdb to").fill("work")
        here.get_by_role("button", name="Attach dom0:sdb").click()
        expect(here.get_by_role("button", name="Detach dom0:sdb from work")).to_be_visible(timeout=SECONDS)
        there = tab.locator("tr", has_text="dom0:sdc")
        typed = there.get_by_label("Qube to assign dom0:sdc to")
        typed.fill("vau")
        # What others do is seen at once, and leaves alone what is being typed.
        qubes.call("admin.vm.device.block.Detach", "dom0+sdb", "work")
        qubes.call("admin.vm.device.block.Assign", "dom0+sdb", "vault", "mode='auto-attach'")
        expect(here.get_by_role("button", name="Unassign dom0:sdb from vault")).to_be_visible(timeout=SECONDS)
        expect(here.get_by_role("button", name="Attach dom0:sdb")).to_be_visible(timeout=SECONDS)
        add_block(daemon.parts.sys, "sde", size=64)
        look(daemon)
        expect(tab.locator("tr", has_text="dom0:sde")).to_be_visible(timeout=SECONDS)
        expect(typed).to_have_value("vau")
        typed.fill("nobody")
        there.get_by_role("button", name="Assign dom0:sdc").click()
        expect(there.get_by_role("alert")).to_contain_text("nobody", timeout=SECONDS)
        typed.fill("vault")
        there.get_by_role("button", name="Assign dom0:sdc").click()
        expect(there.get_by_role("button", name="Unassign dom0:sdc from vault")).to_be_visible(timeout=SECONDS)
        expect(tab.locator("tr", has_text="work:xvdi")).to_contain_text("said by work")
        picture(tab, f"devices-{scheme}")
        assert faults(tab) == [] and tab.locator("main img").count() == 0
        wide: int = tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
