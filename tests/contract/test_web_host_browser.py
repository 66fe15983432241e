"""The pages about the whole host in a real browser (Chromium): what a person does on them, and pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as Tab

from casemate.qrexec.calls import Calls
from casemate.qrexec.files import default_policy
from casemate.wire.events import BackupProgress
from tests.builders import settings_in, short_directory
from tests.contract.test_web_browser import SECONDS, browser, daemon, opened, picture, web
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.web import Page, page

__all__ = ["browser", "daemon", "web"]


@pytest.fixture
def tab(browser: Browser, web: Page) -> Iterator[Tab]:
    with ExitStack() as stack:
        yield opened(stack, browser, web)


def go(tab: Tab, name: str) -> None:
    """Choose a page from those at the top."""
    tab.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text(name, timeout=SECONDS)


def test_the_host_and_its_events(tab: Tab, daemon: FakeDaemon) -> None:
    go(tab, "Host")
    expect(tab.locator(".remedy").first).to_be_visible(timeout=SECONDS)
    daemon.client().set("vault", "label", "red")
    expect(tab.locator(".log")).to_contain_text("property-set:label", timeout=SECONDS)
    picture(tab, "host")
    tab.get_by_role("button", name="Find out what runs qubes here").click()
    expect(tab.locator(".notice")).to_contain_text("there are no machines", timeout=SECONDS)
    daemon.client().set("vault", "label", "black")
    expect(tab.locator(".log")).to_contain_text("newvalue=black", timeout=SECONDS)


def test_the_network_is_drawn_and_explains(tab: Tab, daemon: FakeDaemon) -> None:
    with daemon.store.write() as transaction:
        transaction.system.domains["sys-net"].features["net.uplink"] = "pasta"
    network = daemon.parts.network
    network.carry("work", 0, 0)
    network.carry("mail", 0, 0)
    go(tab, "Network")
    box = tab.get_by_role("link", name="work, Running: explain")
    expect(box).to_be_visible(timeout=SECONDS)
    network.carry("work", 400_000, 2_000_000)
    network.carry("mail", 3_000, 12_000)
    expect(tab.locator(".network .wire text").first).to_contain_text("/s", timeout=SECONDS)
    picture(tab, "network")
    box.click()
    expect(tab.get_by_role("combobox", name="Qube")).to_have_value("work", timeout=SECONDS)
    tab.get_by_label("Place").fill("192.0.2.1")
    tab.get_by_label("Port").fill("443")
    tab.get_by_role("button", name="Explain").click()
    expect(tab.locator(".steps li").first).to_be_visible(timeout=SECONDS)
    picture(tab, "network-explained")


@contextmanager
def reported(daemon: FakeDaemon) -> Iterator[Calls]:
    """The daemon's real report of calls."""
    made = Calls()
    path = settings_in(daemon.socket.parents[1]).trace_socket
    asyncio.run_coroutine_threadsafe(made.start(path), daemon.loop).result(20)
    yield made
    asyncio.run_coroutine_threadsafe(made.close(), daemon.loop).result(20)


def test_a_refused_call_becomes_a_rule(tab: Tab, daemon: FakeDaemon) -> None:
    """What a person does who asks why a call was refused: looks at calls, asks, makes the rule, edits it."""
    policy = daemon.socket.parents[1] / "policy.d"
    (policy / "90-default.policy").write_text(default_policy())
    with reported(daemon) as calls:
        go(tab, "Policy")
        expect(tab.get_by_text("No qube has called since")).to_be_visible(timeout=SECONDS)
        begun = daemon.loop.call_soon_threadsafe

        def happen() -> None:
            call = calls.begin("mail", "qubes.OpenURL", "", "@dispvm")
            calls.step(call, "decided", final="disp1234")
            calls.not_begun("work", "my.Backup", "daily", "vault", "policy", "denied by rule 90-default.policy:1")

        begun(happen)
        link = tab.get_by_role("link", name="Make a rule")
        expect(link).to_be_visible(timeout=SECONDS)
        picture(tab, "policy")
        link.click()
        expect(tab.locator(".verdict")).to_contain_text("Denied", timeout=SECONDS)
        picture(tab, "policy-explained")
        tab.get_by_role("button", name="Put it into 30-user").click()
        expect(tab.locator(".verdict")).to_contain_text("Allowed, goes to vault", timeout=SECONDS)
    tab.get_by_role("link", name="30-user").click()
    text = tab.get_by_label("Text of the file")
    expect(text).to_have_value("my.Backup +daily work vault allow\n", timeout=SECONDS)
    text.press("Control+End")
    text.press_sequentially("my.Backup * mail")
    checked = tab.locator("[data-checked]")
    expect(checked).to_contain_text("30-user.policy:2", timeout=SECONDS)
    picture(tab, "policy-editor")
    text.press_sequentially(" vault deny")
    expect(checked).to_contain_text("can be saved", timeout=SECONDS)
    tab.get_by_role("button", name="Save").click()
    expect(tab.locator(".notice.good", has_text="is saved")).to_be_visible(timeout=SECONDS)
    assert (policy / "30-user.policy").read_text().endswith("my.Backup * mail vault deny")
    tab.get_by_role("button", name="Remove").click()
    tab.get_by_role("button", name="Yes").click()
    expect(tab.locator(".files")).not_to_contain_text("30-user", timeout=SECONDS)


def test_disposables_templates_and_backups(tab: Tab, daemon: FakeDaemon) -> None:
    qubes = daemon.client()
    qubes.set("dvm", "template_for_dispvms", "True")
    qubes.set(None, "default_dispvm", "dvm")
    go(tab, "Disposables")
    tab.get_by_role("button", name="New disposable of dvm").click()
    kill = tab.get_by_role("button", name="Kill disp")
    expect(kill).to_be_visible(timeout=SECONDS)
    # What a person types and where he is stay, whatever happens to the others.
    wanted = tab.get_by_label("How many of dvm are to wait")
    wanted.fill("2")
    tab.get_by_role("button", name="Make the warm image of dvm").focus()
    other = qubes.call("admin.vm.CreateDisposable", "", "dvm")
    expect(tab.locator("tbody th", has_text="disp")).to_have_count(2, timeout=SECONDS)
    expect(wanted).to_have_value("2")
    expect(tab.get_by_role("button", name="Make the warm image of dvm")).to_be_focused()
    tab.keyboard.press("Enter")
    qubes.remove(other)
    expect(tab.get_by_role("button", name="Drop the image of dvm")).to_be_visible(timeout=SECONDS)
    picture(tab, "disposables")
    kill.click()
    tab.get_by_role("button", name="Yes").click()
    expect(tab.get_by_text("None runs")).to_be_visible(timeout=SECONDS)
    tab.get_by_role("button", name="Drop the image of dvm").click()
    qubes.create("TemplateVM", "debian-14", "black")
    go(tab, "Templates")
    tab.get_by_label("vault").check()
    tab.get_by_label("untrusted").check()
    tab.locator("select[name=to]").select_option("debian-14")
    picture(tab, "templates")
    tab.get_by_role("button", name="Switch").click()
    expect(tab.locator(".notice.good", has_text="2 qubes have the template debian-14")).to_be_visible(timeout=SECONDS)
    expect(tab.locator("tr", has_text="debian-14")).to_contain_text("2 qubes", timeout=SECONDS)
    for name in ("vault", "untrusted"):
        qubes.set(name, "template", "debian-13")
    profiles = daemon.socket.parents[1] / "backup"
    profiles.mkdir(exist_ok=True)
    text = "destination_path: /nowhere/x\npassphrase_text: six words of a book\ninclude: [vault]\n"
    (profiles / "daily.conf").write_text(text)
    go(tab, "Backups")
    tab.get_by_role("link", name="daily").click()
    expect(tab.get_by_role("button", name="Back up now")).to_be_visible(timeout=SECONDS)
    daemon.loop.call_soon_threadsafe(daemon.parts.bus.say, BackupProgress(backup_profile="weekly", progress="41.5"))
    expect(tab.get_by_text("41.5 %")).to_be_visible(timeout=SECONDS)
    picture(tab, "backups")
    tab.get_by_role("button", name="Back up now").click()
    expect(tab.get_by_text("from this page: failed")).to_be_visible(timeout=SECONDS)


def test_five_steps_to_a_running_qube(browser: Browser) -> None:
    with short_directory() as directory, running(directory) as empty, page(directory) as web, ExitStack() as stack:
        tab = opened(stack, browser, web)
        tab.get_by_role("button", name="Build Debian").click()
        tab.get_by_role("button", name="Make sys-net").click()
        # The list is shown anew when the net qube is there; on a busy machine that may be while a person types.
        expect(tab.locator(".first li[data-key=network]")).to_have_class("done", timeout=SECONDS)
        tab.locator(".first").get_by_label("Name").fill("personal")
        picture(tab, "first-steps")
        tab.get_by_role("button", name="Make it").click()
        tab.get_by_role("button", name="Start personal now").click()
        expect(tab.locator("tr[data-name=personal] .state")).to_have_text("Running", timeout=SECONDS)
        expect(tab.locator(".first")).to_have_count(0, timeout=SECONDS)
        assert set(empty.parts.machines) == {"sys-net", "personal"}


def test_no_page_sticks_out_and_all_have_a_picture(browser: Browser, web: Page) -> None:
    """Light and dark, wide and narrow; and nothing of a page is wider than a phone."""
    for name, scheme, width in (("dark", "dark", 1360), ("phone", "light", 390)):
        with ExitStack() as stack:
            tab = opened(stack, browser, web, scheme=scheme, width=width)
            for title in ("Templates", "Disposables", "Network", "Policy", "Backups", "Host"):
                go(tab, title)
                expect(tab.locator("[data-part] > *").first).to_be_visible(timeout=SECONDS)
                wide: int = tab.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (title, name)
                picture(tab, f"{title.lower()}-{name}")
