"""The pages about the whole host in a real browser (Chromium): what a person does on them, and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as Tab

from tests.contract.test_web_browser import SECONDS, browser, daemon, opened, picture, web
from tests.fakes.daemon import FakeDaemon
from tests.fakes.web import Page

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
