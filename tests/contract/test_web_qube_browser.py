"""One qube on the manager page, in a real browser: each flow as a person goes through it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, Locator, Route, expect
from playwright.sync_api import Page as Tab

from tests.builders import short_directory, wait_for
from tests.fakes.browser import SECONDS, chromium, opened, picture
from tests.fakes.console import console
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.host_devices import add_block
from tests.fakes.web import Page, page


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        qubes = found.client()
        qubes.create("TemplateVM", "debian-13", "black")
        for name, label in (("sys-net", "red"), ("sys-vpn", "orange")):
            qubes.create("AppVM", name, label, "debian-13")
            qubes.set(name, "provides_network", "True")
            qubes.set(name, "netvm", "")
        qubes.set(None, "default_netvm", "sys-net")
        qubes.set(None, "default_template", "debian-13")
        qubes.call("admin.vm.feature.Set", "net.uplink", "sys-net", "pasta")
        for name, label in (("work", "blue"), ("mail", "green"), ("vault", "gray")):
            qubes.create("AppVM", name, label, "debian-13")
        qubes.set("vault", "netvm", "")
        found.parts.volumes.kept["work", "private"] = ["2026-11-01T10:00:00", "2026-11-20T18:30:00"]
        add_block(found.parts.sys, "sdb", size=4096, device__model="Data Traveler", device__vendor="Kingston")
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def web(daemon: FakeDaemon) -> Iterator[Page]:
    with page(daemon.socket.parents[1]) as found:
        yield found


@pytest.fixture
def tab(browser: Browser, web: Page) -> Iterator[Tab]:
    with ExitStack() as stack:
        yield opened(stack, browser, web)


def go(tab: Tab, address: str) -> None:
    """Show an address of a qube, and wait until it is there."""
    tab.evaluate("address => { location.hash = address; }", address)
    expect(tab.get_by_role("heading", level=1)).to_have_text(address.split("/")[2], timeout=SECONDS)
    expect(tab.locator(".tabs a[aria-current]")).to_have_attribute("href", address, timeout=SECONDS)


def test_settings_are_forms_of_what_the_daemon_declares(tab: Tab, daemon: FakeDaemon) -> None:
    tab.get_by_role("link", name="work", exact=True).click()
    memory = tab.get_by_label("memory", exact=True)
    expect(memory).to_have_value("400", timeout=SECONDS)
    shown = tab.eval_on_selector_all(".setting > label", "all => all.map(one => one.textContent)")
    free = [name for name, prop in daemon.client().properties("work").items() if name in shown]
    assert len(free) == len(shown) and {"memory", "netvm", "template", "autostart", "kernelopts"} <= set(shown)
    picture(tab, "qube-settings")
    memory.fill("777")
    part = tab.locator("[data-key=property-memory]")
    part.get_by_role("button", name="Save").click()
    expect(part.locator(".mark")).to_have_text("set", timeout=SECONDS)
    assert daemon.client().get("work", "memory").text == "777"
    part.get_by_role("button", name="Reset").click()
    expect(part.locator(".mark")).to_have_text("default", timeout=SECONDS)
    expect(memory).to_have_value("400")
    assert daemon.client().get("work", "memory").default
    memory.fill("many")
    memory.press("Enter")
    expect(part.get_by_role("alert")).to_contain_text("many", timeout=SECONDS)
    expect(memory).to_have_value("many")


def test_another_net_qube_and_what_others_set_meanwhile(tab: Tab, daemon: FakeDaemon) -> None:
    go(tab, "#/qubes/mail")
    netvm = tab.get_by_label("netvm", exact=True)
    netvm.select_option("sys-vpn")
    tab.locator("[data-key=property-netvm]").get_by_role("button", name="Save").click()
    expect(tab.locator(".about")).to_contain_text("network from sys-vpn", timeout=SECONDS)
    assert daemon.client().get("mail", "netvm").text == "sys-vpn"
    # Somebody else changes what is not being edited: it is shown. What is being typed stays, with the focus in it.
    memory, cores = tab.get_by_label("memory", exact=True), tab.get_by_label("vcpus", exact=True)
    memory.fill("55")
    daemon.client().set("mail", "vcpus", "7")
    expect(cores).to_have_value("7", timeout=SECONDS)
    expect(memory).to_have_value("55")
    assert tab.evaluate("document.activeElement.id") == "p-memory"
    late = tab.locator("[data-key=property-memory] .late")
    expect(late).to_be_hidden()
    daemon.client().set("mail", "memory", "640")
    expect(late).to_have_text("Meanwhile this was set to 640.", timeout=SECONDS)
    expect(memory).to_have_value("55")
    memory.press("End")
    tab.keyboard.type("5")
    tab.keyboard.press("Enter")
    wait_for(lambda: daemon.client().get("mail", "memory").text == "555", 20)
    expect(late).to_be_hidden(timeout=SECONDS)
    # A template's value is the default of those that are based on it.
    daemon.client().set("debian-13", "qrexec_timeout", "321")
    expect(tab.get_by_label("qrexec_timeout")).to_have_value("321", timeout=SECONDS)
    daemon.client().reset("debian-13", "qrexec_timeout")
    for name in ("netvm", "memory", "vcpus"):
        daemon.client().reset("mail", name)


def test_features_services_tags_and_notes(tab: Tab, daemon: FakeDaemon) -> None:
    go(tab, "#/qubes/work/features")
    add = tab.locator("[data-key=add-feature]")
    add.get_by_label("Feature").fill("menu-favorites")
    add.get_by_label("Value").fill("@disp:firefox")
    add.get_by_role("button").click()
    value = tab.get_by_label("Value of menu-favorites")
    expect(value).to_have_value("@disp:firefox", timeout=SECONDS)
    expect(add.get_by_label("Feature")).to_have_value("")
    assert daemon.client().features("work")["menu-favorites"] == "@disp:firefox"
    value.fill("firefox")
    value.press("Enter")
    wait_for(lambda: daemon.client().features("work")["menu-favorites"] == "firefox", 20)
    services = tab.locator("[data-key=add-service]")
    services.get_by_label("Service").fill("cups")
    services.get_by_role("button").click()
    tab.get_by_role("button", name="Switch cups off").click()
    expect(tab.get_by_role("button", name="Switch cups on")).to_be_visible(timeout=SECONDS)
    assert daemon.client().features("work")["service.cups"] == ""
    tags = tab.locator("[data-key=add-tag]")
    tags.get_by_label("Tag").fill("project-x")
    tags.get_by_role("button").click()
    expect(tab.locator("[data-key=tag-project-x]")).to_be_visible(timeout=SECONDS)
    notes = tab.get_by_label("Notes about work")
    notes.fill("Two lines,\nof which this is one.")
    picture(tab, "qube-features")
    # What would be typed until the answer has come would be lost with it.
    held: list[Route] = []
    tab.route("**/qubes/work/notes", lambda route: held.append(route))
    tab.get_by_role("button", name="Save notes").click()
    expect(notes).not_to_be_editable(timeout=SECONDS)
    held.pop().continue_()
    tab.unroute("**/qubes/work/notes")
    expect(notes).to_be_editable(timeout=SECONDS)
    wait_for(lambda: "of which" in daemon.client().call("admin.vm.notes.Get", "", "work"), 20)
    # Notes that others have changed are not written over by who began before.
    notes.fill("mine")
    daemon.client().call("admin.vm.notes.Set", "", "work", "theirs")
    daemon.client().call("admin.vm.tag.Set", "touched", "work")  # notes have no event of their own
    expect(tab.locator("[data-key=tag-touched]")).to_be_visible(timeout=SECONDS)
    tab.get_by_role("button", name="Save notes").click()
    expect(tab.locator("[data-key=set-notes] .problem")).to_contain_text("changed meanwhile", timeout=SECONDS)
    expect(notes).to_have_value("mine")
    tab.locator("[data-key=set-notes]").get_by_role("button", name="Undo").click()
    expect(notes).to_have_value("theirs", timeout=SECONDS)
    for remove in ("the feature menu-favorites", "the tag touched", "the tag project-x"):
        tab.get_by_role("button", name=f"Remove {remove}").click()
    wait_for(lambda: "menu-favorites" not in daemon.client().features("work"), 20)
    wait_for(lambda: not {"touched", "project-x"} & set(daemon.client().tags("work")), 20)


def test_a_volume_is_resized_and_reverted(tab: Tab, daemon: FakeDaemon) -> None:
    go(tab, "#/qubes/work/volumes")
    part = tab.locator("[data-key=volume-private]")
    size = int(daemon.client().volume("work", "private")["size"])
    part.get_by_label("New size").fill("1")
    part.get_by_label("Unit").select_option("MiB")
    part.get_by_role("button", name="Resize private").click()
    expect(part.locator(".problem").first).to_contain_text("cannot become smaller", timeout=SECONDS)
    part.get_by_label("New size").fill("20")
    part.get_by_label("Unit").select_option("GiB")
    picture(tab, "qube-volumes")
    part.get_by_role("button", name="Resize private").click()
    expect(part.locator(".usage")).to_contain_text("of 20.0 GiB", timeout=SECONDS)
    assert int(daemon.client().volume("work", "private")["size"]) == 20 << 30 != size
    asked: list[str] = []

    async def revert(name: str, volume: str, revision: str) -> None:
        asked.append(f"{name} {volume} {revision}")

    daemon.parts.volumes.revert = revert  # type: ignore[method-assign]
    part.get_by_role("button", name="Revert private to 2026-11-20T18:30:00").click()
    tab.get_by_role("button", name="Cancel").click()
    part.get_by_role("button", name="Revert private to 2026-11-20T18:30:00").click()
    tab.get_by_role("button", name="Yes").click()
    expect(tab.locator(".notice.good")).to_contain_text("older content", timeout=SECONDS)
    assert asked == ["work private 2026-11-20T18:30:00"]


def test_a_device_is_assigned_and_attached(tab: Tab, daemon: FakeDaemon) -> None:
    go(tab, "#/qubes/work/devices")
    expect(tab.get_by_role("row").filter(has_text="dom0:sdb")).to_be_visible(timeout=SECONDS)
    tab.get_by_label("When work gets dom0:sdb").select_option("auto-attach")
    tab.get_by_role("button", name="Assign dom0:sdb").click()
    expect(tab.get_by_role("button", name="Unassign dom0:sdb")).to_be_visible(timeout=SECONDS)
    assert "mode='auto-attach'" in daemon.client().call("admin.vm.device.block.Assigned", "", "work")
    picture(tab, "qube-devices")
    tab.get_by_role("button", name="Unassign dom0:sdb").click()
    expect(tab.get_by_role("button", name="Assign dom0:sdb", exact=True)).to_be_visible(timeout=SECONDS)
    daemon.client().call("admin.vm.Start", "", "work")
    tab.get_by_role("button", name="Attach dom0:sdb").click()
    expect(tab.get_by_role("button", name="Detach dom0:sdb")).to_be_visible(timeout=SECONDS)
    tab.get_by_role("button", name="Detach dom0:sdb").click()
    expect(tab.get_by_role("button", name="Attach dom0:sdb")).to_be_visible(timeout=SECONDS)
    daemon.client().call("admin.vm.Kill", "", "work")
    expect(tab.get_by_role("button", name="Attach dom0:sdb")).to_be_hidden(timeout=SECONDS)


def test_a_rule_is_added_and_explained(tab: Tab, daemon: FakeDaemon) -> None:
    daemon.client().call("admin.vm.Start", "", "sys-net")
    go(tab, "#/qubes/work/firewall")
    ask = tab.locator("[data-key=ask]")
    ask.get_by_label("Host or address").fill("198.51.100.7")
    ask.get_by_label("Port").fill("443")
    ask.get_by_role("button", name="Explain").click()
    answer = tab.locator("[data-key=answer]")
    expect(answer.locator("p b")).to_have_text("yes", timeout=SECONDS)
    add = tab.locator("[data-key=add-rule]")
    add.get_by_label("Action").select_option("drop")
    add.get_by_label("To", exact=True).fill("198.51.100.0/24")
    add.get_by_label("Protocol").select_option("tcp")
    add.get_by_label("Ports").fill("440-450")
    add.get_by_label("Ends in minutes").fill("90")
    add.get_by_label("Comment").fill("not today")
    add.get_by_role("button").click()
    expect(tab.locator("[data-key=rules] tbody tr")).to_have_count(2, timeout=SECONDS)
    rules = daemon.client().call("admin.vm.firewall.Get", "", "work").splitlines()
    assert rules[0].startswith("action=drop proto=tcp dst4=198.51.100.0/24 dstports=440-450 expire=")
    assert rules[0].endswith("comment=not today") and rules[1] == "action=accept"
    # The answer that stands there follows the rules.
    expect(answer.locator("p b")).to_have_text("no", timeout=SECONDS)
    expect(answer).to_contain_text("198.51.100.0/24")
    picture(tab, "qube-firewall")
    add.get_by_label("To", exact=True).fill("a host?")
    add.get_by_role("button").click()
    expect(add.get_by_role("alert")).to_contain_text("invalid host name: 'a host?'", timeout=SECONDS)
    tab.get_by_role("button", name="Remove rule 0").click()
    expect(answer.locator("p b")).to_have_text("yes", timeout=SECONDS)
    tab.get_by_text("Edit all rules as text").click()
    text = tab.get_by_label("All rules, one a line")
    text.fill("action=drop specialtarget=dns\naction=maybe\n")
    tab.get_by_role("button", name="Save rules").click()
    expect(tab.locator("[data-key=write] .problem")).to_contain_text("maybe", timeout=SECONDS)
    assert daemon.client().call("admin.vm.firewall.Get", "", "work") == "action=accept\n"
    text.fill("action=drop specialtarget=dns\n")
    tab.get_by_role("button", name="Save rules").click()
    wait_for(lambda: daemon.client().call("admin.vm.firewall.Get", "", "work") == "action=drop specialtarget=dns\n", 20)
    expect(text).to_be_visible()  # the fold stays open


def test_a_qube_is_created_cloned_renamed_and_removed(tab: Tab, daemon: FakeDaemon) -> None:
    tab.get_by_role("button", name="Create…").click()
    box = tab.locator("#dialog")
    box.get_by_label("Name").fill("work")
    box.get_by_role("button", name="Create").click()
    expect(box.get_by_role("alert")).to_contain_text("'work' exists already", timeout=SECONDS)
    box.get_by_label("Name").fill("shop")
    box.get_by_label("Label").select_option("purple")
    box.get_by_label("Network").select_option("sys-vpn")
    picture(tab, "dialog-create")
    box.get_by_role("button", name="Create").click()
    expect(tab.get_by_role("heading", name="shop")).to_be_visible(timeout=SECONDS)
    assert daemon.client().get("shop", "netvm").text == "sys-vpn"
    tab.get_by_role("button", name="Clone…").click()
    box.get_by_label("Name of the clone").fill("shop-2")
    tab.keyboard.press("Enter")
    expect(box).to_be_hidden(timeout=SECONDS)
    wait_for(lambda: "shop-2" in {qube.name for qube in daemon.client().listed()}, 20)
    wait_for(lambda: daemon.client().get("shop-2", "netvm").text == "sys-vpn", 20)
    # Its row says until then that it is being cloned.
    expect(tab.locator(".is").first).to_have_text("Halted", timeout=SECONDS)

    # What uses it is told, and uses the new name afterwards.
    daemon.client().set("shop-2", "provides_network", "True")
    daemon.client().set("shop", "netvm", "shop-2")
    go(tab, "#/qubes/shop-2")
    tab.get_by_role("button", name="Rename…").click()
    expect(box).to_contain_text("shop: its netvm", timeout=SECONDS)
    box.get_by_label("New name").fill("sys-shop")
    picture(tab, "dialog-rename")
    box.get_by_role("button", name="Rename").click()
    wait_for(lambda: daemon.client().get("shop", "netvm").text == "sys-shop", 20)
    wait_for(lambda: "shop-2" not in {qube.name for qube in daemon.client().listed()}, 20)

    go(tab, "#/qubes/sys-shop")
    tab.get_by_role("button", name="Remove…").click()
    expect(box.locator(".warning")).to_contain_text("cannot be removed", timeout=SECONDS)
    expect(box.locator(".users")).to_contain_text("shop: its netvm")
    expect(box.get_by_role("button", name="Remove sys-shop")).to_have_count(0)
    picture(tab, "dialog-remove")
    daemon.client().set("shop", "netvm", "")  # somebody takes that away while the dialog is open
    box.get_by_role("button", name="Remove sys-shop").click()
    expect(tab.locator("tr[data-name=sys-shop]")).to_have_count(0, timeout=SECONDS)
    wait_for(lambda: "sys-shop" not in {qube.name for qube in daemon.client().listed()}, 20)
    daemon.client().remove("shop")


def test_selected_rows_and_saved_views(tab: Tab, daemon: FakeDaemon) -> None:
    def view(name: str) -> Locator:
        return tab.get_by_role("button", name=name, exact=True)

    tab.get_by_label("Filter").fill("sys-")
    tab.get_by_text("By name").click()
    tab.get_by_role("button", name="Save view…").click()
    tab.locator("#dialog").get_by_label("Name").fill("Net qubes")
    tab.keyboard.press("Enter")
    expect(view("Net qubes")).to_be_visible(timeout=SECONDS)
    tab.get_by_label("Filter").fill("")
    tab.get_by_label("Select all that are shown").check()
    expect(tab.locator("#selected-count")).to_have_text("6 selected", timeout=SECONDS)
    view("Net qubes").click()
    expect(tab.get_by_label("Filter")).to_have_value("sys-")
    expect(tab.locator("#selected-count")).to_have_text("6 selected, 2 of them not shown")
    tab.get_by_role("button", name="Select none").click()
    tab.get_by_label("Select sys-vpn").check()
    tab.get_by_label("Select sys-net").check()
    daemon.client().call("admin.vm.Start", "", "sys-net")
    expect(tab.locator("tr[data-name=sys-net] .state")).to_have_text("Running", timeout=SECONDS)
    expect(tab.get_by_label("Select sys-net")).to_be_checked()  # although the row is a new one
    picture(tab, "qubes-selected")
    bar = tab.get_by_role("group", name="Selected qubes")
    bar.get_by_role("button", name="Start", exact=True).click()
    expect(tab.locator(".notice.good")).to_contain_text("asked of 1, and not of 1 in another state", timeout=SECONDS)
    expect(tab.locator("tr[data-name=sys-vpn] .state")).to_have_text("Running", timeout=SECONDS)
    bar.get_by_role("button", name="Kill").click()
    expect(tab.locator("#confirm")).to_contain_text("Kill what is selected (2)?")
    tab.get_by_role("button", name="Yes").click()
    expect(tab.locator("tr[data-name=sys-vpn] .state")).to_have_text("Halted", timeout=SECONDS)
    tab.reload()
    view("Remove the view Net qubes").click()
    expect(view("Net qubes")).to_have_count(0, timeout=SECONDS)


def test_a_page_of_a_qube_that_goes_says_so(tab: Tab, daemon: FakeDaemon) -> None:
    daemon.client().create("AppVM", "short", "red", "debian-13")
    go(tab, "#/qubes/short")
    expect(tab.get_by_role("heading", name="short")).to_be_visible(timeout=SECONDS)
    daemon.client().remove("short")
    expect(tab.locator("main")).to_contain_text("short", timeout=SECONDS)
    expect(tab.locator("form")).to_have_count(1)  # the question of the frame


def test_the_console_carries_bytes_both_ways(tab: Tab, daemon: FakeDaemon) -> None:
    """The guest's end of the terminal is this test; there is no agent, so no shell."""
    with console(daemon) as guest:
        daemon.client().call("admin.vm.Start", "", "vault")
        go(tab, "#/qubes/vault/console")
        tab.get_by_role("button", name="Open the console").click()
        expect(tab.locator(".screen")).to_contain_text("No shell: the agent of vault", timeout=SECONDS)
        guest.write(b"\x1b[31mvault login:\x1b[0m \x1b]0;a title\x07")
        expect(tab.locator(".xterm-rows")).to_contain_text("vault login:", timeout=SECONDS)
        assert "vault" in tab.title() and "a title" not in tab.title()
        tab.keyboard.type("root\n")
        assert guest.read_until(b"\r") == b"root\r"
        guest.write(b"\r\n".join(b"line %d" % number for number in range(5000)) + b"\r\nthe end")
        expect(tab.locator(".xterm-rows")).to_contain_text("the end", timeout=SECONDS)
        picture(tab, "qube-console")
        tab.keyboard.press("Control+]")
        assert tab.evaluate("document.activeElement.textContent") == "Close the console"
        tab.keyboard.press("Enter")
        # The console is free again, and the terminal of another page takes it.
        expect(tab.get_by_role("button", name="Open the console")).to_be_visible(timeout=SECONDS)
        tab.get_by_role("button", name="Open the console").click()
        expect(tab.locator(".screen")).to_contain_text("No shell", timeout=SECONDS)
        go(tab, "#/qubes/vault")
        expect(tab.get_by_label("memory", exact=True)).to_be_visible(timeout=SECONDS)
        wait_for(lambda: not guest.is_used(), 20)
    daemon.client().call("admin.vm.Kill", "", "vault")
