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
