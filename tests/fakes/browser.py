"""Windows of a real browser (Chromium) that show the manager page.

With ``CASEMATE_SCREENSHOTS=DIRECTORY`` the pictures that tests take are kept there, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from playwright.sync_api import Page as Tab

from tests.fakes.web import Page

CHROMIUM = "/usr/bin/chromium"
SECONDS = 30_000
"""How long (ms) a condition is waited for: generous, for a busy machine."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, until the block ends."""
    if not Path(CHROMIUM).exists():
        pytest.fail(f"{CHROMIUM} is missing: make setup-tests installs it")
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox of its own; it opens nothing here but our page.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


def opened(
    stack: ExitStack, browser: Browser, web: Page, *, scheme: str = "light", width: int = 1360, height: int = 820
) -> Tab:
    """A window with the page. Any fault of a script, or anything that the policy of the page blocked, is an error."""
    context = browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        viewport={"width": width, "height": height},
    )
    stack.callback(context.close)
    faults: list[str] = []
    found = context.new_page()
    found.set_default_timeout(SECONDS)
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    stack.callback(lambda: _none(faults))
    found.goto(web.url)
    expect(found.locator("tr[data-name=dom0]")).to_be_visible(timeout=SECONDS)
    return found


def _none(faults: list[str]) -> None:
    assert not [text for text in faults if "Failed to load resource" not in text], faults


def picture(tab: Tab, name: str) -> None:
    """Keep a picture, where a directory for it was named."""
    if directory := os.environ.get("CASEMATE_SCREENSHOTS"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        tab.screenshot(path=Path(directory) / f"{name}.png")
