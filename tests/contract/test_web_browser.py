"""The manager page in a real browser (Chromium): a thousand qubes without machines, keys and clicks, pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, expect
from playwright.sync_api import Page as Tab

from tests.builders import short_directory
from tests.fakes.browser import SECONDS, chromium, opened, picture
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.web import Page, page

QUBES = 1000


@pytest.fixture(scope="module")
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        qubes = found.client()
        qubes.create("TemplateVM", "debian-13", "black")
        for name, label, netvm in (("sys-net", "red", ""), ("sys-firewall", "orange", "sys-net")):
            qubes.create("AppVM", name, label, "debian-13")
            qubes.set(name, "provides_network", "True")
            qubes.set(name, "netvm", netvm)
        qubes.set(None, "default_netvm", "sys-firewall")
        for name, label in (("banking", "yellow"), ("dvm", "gray"), ("mail", "green"), ("personal", "green"),
                            ("untrusted", "red"), ("vault", "black"), ("work", "blue")):  # fmt: skip
            qubes.create("AppVM", name, label, "debian-13")
        qubes.set("vault", "netvm", "")
        for name in ("sys-firewall", "work", "mail", "personal"):
            qubes.call("admin.vm.Start", "", name)
        qubes.call("admin.vm.Pause", "", "personal")
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


def test_the_token_leaves_the_address_and_is_in_no_cookie(tab: Tab, web: Page) -> None:
    assert web.token not in tab.url and tab.context.cookies() == []
    tab.reload()
    expect(tab.locator("tr[data-name=work]")).to_be_visible(timeout=SECONDS)


def test_without_the_token_the_page_says_what_to_do(browser: Browser, web: Page) -> None:
    with ExitStack() as stack:
        context = browser.new_context()
        stack.callback(context.close)
        found = context.new_page()
        found.goto(web.url.partition("#")[0])
        expect(found.locator("#lost")).to_contain_text("casemate web", timeout=SECONDS)
        assert found.locator("tr").count() == 0


def test_rows_stand_below_their_net_qube_or_by_name(tab: Tab) -> None:
    def names() -> list[str]:
        found: list[str] = tab.eval_on_selector_all("#qubes tbody tr", "rows => rows.map(row => row.dataset.name)")
        return found

    expect(tab.locator("tr[data-name=work]")).to_be_visible(timeout=SECONDS)
    assert names()[:3] == ["sys-net", "sys-firewall", "banking"] and names().index("vault") > names().index("work")
    tab.get_by_text("By name").click()
    assert names() == sorted(names())
    tab.get_by_text("By net qube").click()
    assert names()[0] == "sys-net"


def test_the_keyboard_does_it_all(tab: Tab, daemon: FakeDaemon) -> None:
    tab.keyboard.press("/")
    tab.keyboard.type("banking")
    expect(tab.locator("#count")).to_have_text("1 of 11", timeout=SECONDS)
    tab.get_by_role("button", name="Start banking").focus()
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("button", name="Shut down banking")).to_be_visible(timeout=SECONDS)
    # The pressed button is gone; who goes on by keyboard is still in that row.
    assert tab.evaluate("document.activeElement.closest('tr')?.dataset.name") == "banking"
    tab.get_by_role("button", name="Kill banking").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#confirm")).to_be_visible(timeout=SECONDS)
    tab.keyboard.press("Enter")  # "Cancel" has the focus
    assert "banking" in daemon.parts.machines
    tab.get_by_role("button", name="Kill banking").click()
    tab.get_by_role("button", name="Yes").click()
    expect(tab.get_by_role("button", name="Start banking")).to_be_visible(timeout=SECONDS)


def test_a_page_of_another_port_reaches_nothing(tab: Tab, web: Page, browser: Browser, daemon: FakeDaemon) -> None:
    """A script of another origin of this host, as any program's page on it is: it is sent by a real browser."""
    with page(daemon.socket.parents[1]) as other, ExitStack() as stack:
        elsewhere = opened(stack, browser, other)
        attempts = f"""async () => {{
            const found = [];
            for (const options of [
                {{}}, {{mode: "no-cors"}}, {{method: "POST", mode: "no-cors"}},
                {{method: "POST", headers: {{"X-Casemate": "1", Authorization: "Bearer {web.token}"}}}},
            ]) {{
                try {{ found.push((await fetch("http://127.0.0.1:{web.port}/qubes/vault/do/start", options)).status); }}
                catch (error) {{ found.push("failed"); }}
            }}
            return found;
        }}"""
        # The page's own policy would not let this script out; another program's page has none.
        blank = elsewhere.context.new_page()
        blank.route("**/blank", lambda route: route.fulfill(body="<p>", content_type="text/html"))
        blank.goto(f"http://127.0.0.1:{other.port}/blank")
        assert set(blank.evaluate(attempts)) <= {"failed", 0}
    assert "vault" not in daemon.parts.machines


def test_pictures_of_all_kinds_of_windows(browser: Browser, web: Page) -> None:
    for name, scheme, width in (("light", "light", 1360), ("dark", "dark", 1360), ("phone", "light", 390)):
        with ExitStack() as stack:
            found = opened(stack, browser, web, scheme=scheme, width=width)
            expect(found.locator("tr[data-name=work]")).to_be_visible(timeout=SECONDS)
            wide: int = found.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, "nothing sticks out at the side"
            picture(found, f"qubes-{name}")


def test_a_thousand_qubes(tab: Tab, daemon: FakeDaemon) -> None:
    """Listed, filtered, one started; its row changes under the eyes of who looks."""
    with daemon.store.write() as transaction:
        for number in range(QUBES):
            transaction.system.add("AppVM", f"many{number}", uuid=uuid4(), label="purple", template="debian-13")
    expect(tab.locator("#count")).to_have_text(str(QUBES + 11), timeout=SECONDS)
    tab.reload()
    expect(tab.locator("#count")).to_have_text(str(QUBES + 11), timeout=SECONDS)
    tab.locator("#filter").fill("many77")
    expect(tab.locator("#count")).to_have_text(f"11 of {QUBES + 11}", timeout=SECONDS)
    tab.get_by_role("button", name="Start many777", exact=True).click()
    expect(tab.locator("tr[data-name=many777] .state")).to_have_text("Running", timeout=SECONDS)
    daemon.client().set("many777", "label", "red")
    expect(tab.locator("tr[data-name=many777] svg.label")).to_have_attribute("aria-label", "label red", timeout=SECONDS)
    picture(tab, "thousand-filtered")
