"""The pages of qubes against WCAG 2.1 AA, checked by axe-core in a real browser; and hostile texts in that browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.resources import files

import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as Tab

from tests.contract.test_web_qube import TABS, daemon, plant, web
from tests.fakes.browser import SECONDS, chromium, opened, picture
from tests.fakes.console import console
from tests.fakes.daemon import FakeDaemon
from tests.fakes.web import Page, post

__all__ = ["daemon", "web"]

CHECK = """async () => {
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"];
    const { violations } = await axe.run(document, { runOnly: { type: "tag", values: tags } });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => node.html).join(" ")}`);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def show(tab: Tab, address: str, heading: str) -> None:
    """Go to a page, and wait until it is there."""
    tab.evaluate("address => { location.hash = address; }", address)
    expect(tab.get_by_role("heading", level=1)).to_contain_text(heading, timeout=SECONDS)
    expect(tab.locator(".tabs a[aria-current]")).to_have_attribute("href", address, timeout=SECONDS)


def faults(tab: Tab) -> list[str]:
    """What axe finds wrong with what is shown."""
    if not tab.evaluate("'axe' in window"):
        tab.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    found: list[str] = tab.evaluate(CHECK)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_of_a_qube_is_accessible(browser: Browser, web: Page, daemon: FakeDaemon, scheme: str) -> None:
    """With hostile texts wherever there can be some: none of them becomes an element, and no script runs."""
    plant(daemon, "work")
    post(web, "/views", name="A view", filter="x", which="all", order="tree")
    wrong: dict[str, list[str]] = {}
    with ExitStack() as stack:
        tab = opened(stack, browser, web, scheme=scheme)
        tab.on("dialog", lambda found: wrong.setdefault("script", []).append(found.message))
        tab.get_by_label("Select work").check()
        expect(tab.locator("#selected")).to_be_visible()
        wrong["table"] = faults(tab)
        for word in TABS:
            show(tab, f"#/qubes/work{word}", "work")
            wrong[word] = faults(tab)
            assert tab.locator("main img").count() == 0 and tab.locator("main script").count() == 0, word
        for verb in ("Clone…", "Rename…", "Remove…"):
            tab.get_by_role("button", name=verb).click()
            expect(tab.locator("#dialog h2")).to_be_visible(timeout=SECONDS)
            wrong[verb] = faults(tab)
            tab.keyboard.press("Escape")
            expect(tab.locator("#dialog")).to_be_hidden()
        picture(tab, f"qube-{scheme}")
        if scheme == "dark":
            show(tab, "#/qubes/work", "work")
            picture(tab, "qube-settings-dark")
    assert not {page: found for page, found in wrong.items() if found}


def test_the_terminal_is_accessible_and_left_by_a_key(browser: Browser, web: Page, daemon: FakeDaemon) -> None:
    daemon.client().call("admin.vm.Start", "", "vault")
    with console(daemon) as guest, ExitStack() as stack:
        tab = opened(stack, browser, web)
        show(tab, "#/qubes/vault/console", "vault")
        tab.get_by_role("button", name="Open the console").click()
        guest.write(b"\x1b[1;32mlogin:\x1b[0m <img src=x onerror=alert(1)>\r\n")
        expect(tab.locator(".xterm-rows")).to_contain_text("<img src=x", timeout=SECONDS)
        assert tab.locator("main img").count() == 0
        assert faults(tab) == []
        tab.evaluate("document.querySelector('main').append(document.createElement('input'))")
        assert [text.partition(":")[0] for text in faults(tab)] == ["label"], "it does find what is wrong"
        tab.keyboard.press("Control+]")
        tab.keyboard.press("Enter")
    daemon.client().call("admin.vm.Kill", "", "vault")


def test_pages_fit_a_phone(browser: Browser, web: Page) -> None:
    with ExitStack() as stack:
        tab = opened(stack, browser, web, width=390)
        for word in TABS:
            show(tab, f"#/qubes/work{word}", "work")
            wide: int = tab.evaluate("document.documentElement.scrollWidth")
            picture(tab, f"phone{word.replace('/', '-')}")
            assert wide <= 390, f"{word} sticks out at the side: {wide}"
