"""Builds of templates on the manager page: log and steps while they happen, cancelling, and what becomes of one when
the page or the daemon dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Browser, expect

from casemate.engine.template_builds import KEPT_BUILDS, KEPT_LINES, MAX_BUILDS, MAX_LINE
from casemate.host.build_steps import AGENT, DOWNLOAD, KERNEL, LISTS, STEPS, BuildReport, ended_at
from casemate.wire.errors import CasemateError, InUseError, NoBuildError, TemplateBuildError
from casemate.wire.recipe import Recipe
from tests.builders import short_directory, wait_for
from tests.contract.test_web_accessibility import browser, faults
from tests.fakes.browser import SECONDS, opened, picture
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.web import Page, page, post

__all__ = ["browser"]

EVIL = "<img src=x onerror=alert(1)>\u202e\x1b[2J"


class Builder:
    """Stands still in each build until the test says how it goes on."""

    def __init__(self, daemon: FakeDaemon) -> None:
        self._daemon = daemon
        self._real = daemon.parts.templates.install
        self._gates: dict[str, asyncio.Event] = {}
        self.reports: dict[str, BuildReport] = {}
        self.why = ""
        daemon.parts.templates.install = self._install  # type: ignore[method-assign]

    async def _install(self, name: str, recipe: Recipe, report: BuildReport) -> None:
        self.reports[name] = report
        gate = self._gates[name] = asyncio.Event()
        await gate.wait()
        if self.why:
            raise TemplateBuildError(self.why)
        await self._real(name, recipe, report)

    def tell(self, name: str, say: Callable[[BuildReport], None]) -> None:
        """Have the build report something."""
        wait_for(lambda: name in self.reports, 20)
        self._daemon.loop.call_soon_threadsafe(say, self.reports[name])

    def go_on(self, name: str) -> None:
        """Let the build come to its end."""
        wait_for(lambda: name in self._gates, 20)
        self._daemon.loop.call_soon_threadsafe(self._gates[name].set)


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        yield found


@pytest.fixture
def builder(daemon: FakeDaemon) -> Builder:
    return Builder(daemon)


@pytest.fixture
def web(daemon: FakeDaemon) -> Iterator[Page]:
    with page(daemon.socket.parents[1]) as found:
        yield found


def build(web: Page, name: str) -> int:
    return post(web, "/templates/build", suite="trixie", kind="lean", packages="", name=name)[0]


def read(web: Page, path: str = "/part/builds") -> str:
    status, _, text = web.ask("GET", path)
    assert status == 200, text
    return text


# ------------------------------------------------------------------------------------------------------- what is told


def test_a_step_has_ended_when_the_next_begins() -> None:
    said = [
        "I: running apt-get update...", "I: downloading packages with apt...", "I: extracting archives...",
        "I: running --essential-hook directly: x", "I: installing essential packages...",
        "I: installing remaining packages inside the chroot...", "I: running --customize-hook in shell: sh -c 'x'",
        "I: cleaning package lists and apt cache...", "W: I: extracting archives...",
    ]  # fmt: skip
    assert [step for line in said if (step := ended_at(line))] == list(STEPS[:5])


def test_the_log_and_the_steps_are_those_that_were_reported(builder: Builder, web: Page) -> None:
    with web.stream(topics="event:template-build-progress") as messages:
        next(message for message in messages if not message["lost"])
        assert build(web, "deb") == 200
        builder.tell("deb", lambda report: report.line("I am the log"))
        next(message for message in messages if "event:template-build-progress" in message["topics"])
        wait_for(lambda: "I am the log" in read(web), 20)
        assert "0 of 9 steps have ended, next: package lists" in read(web)
        builder.tell("deb", lambda report: report.ended(DOWNLOAD))
        wait_for(lambda: "2 of 9 steps have ended, next: extraction" in read(web), 20)
        assert '<progress max="9" value="2"' in read(web)
        builder.tell("deb", lambda report: report.ended(LISTS))  # nothing goes back
        builder.tell("deb", lambda report: report.line("later"))
        wait_for(lambda: "later" in read(web), 20)
        assert "2 of 9" in read(web)
        builder.go_on("deb")
        wait_for(lambda: '<span class="good">built</span>' in read(web), 20)
    assert ">deb<" in read(web, "/part/templates")


def test_a_log_is_bounded_and_plain_text(builder: Builder, web: Page, daemon: FakeDaemon) -> None:
    def say(report: BuildReport) -> None:
        for number in range(KEPT_LINES * 3):
            report.line(f"line {number} {EVIL}")
        report.line("y" * 100_000)

    assert build(web, "deb") == 200
    builder.tell("deb", say)
    wait_for(lambda: "yyy" in read(web), 20)
    [one] = json.loads(daemon.client().call("admin.casemate.template.Builds"))
    assert len(one["log"]) == KEPT_LINES and max(map(len, one["log"])) <= MAX_LINE + 1
    text = read(web)
    assert "&lt;img src=x" in text and "<img" not in text and "\u202e" not in text and "\x1b" not in text
    builder.go_on("deb")


def test_why_a_build_failed_stays(builder: Builder, web: Page, daemon: FakeDaemon) -> None:
    builder.why = f"no mirror answers {EVIL}"
    assert build(web, "deb") == 200
    builder.tell("deb", lambda report: report.line("last words"))
    builder.go_on("deb")
    wait_for(lambda: "no mirror answers &lt;img" in read(web), 20)
    assert "last words" in read(web) and "deb" not in daemon.store.snapshot().domains
    builder.why = ""
    assert build(web, "deb") == 200, "it can be tried again"
    builder.go_on("deb")


# ---------------------------------------------------------------------------------------------------- cancel and bound


def test_a_build_is_cancelled_until_the_template_is_being_made(builder: Builder, web: Page, daemon: FakeDaemon) -> None:
    assert build(web, "deb") == 200
    builder.tell("deb", lambda report: report.ended(AGENT))
    wait_for(lambda: "/templates/deb/cancel" in read(web), 20)
    assert post(web, "/templates/deb/cancel")[0] == 200
    wait_for(lambda: "It was cancelled" in read(web), 20)
    assert "deb" not in daemon.store.snapshot().domains
    assert post(web, "/templates/deb/cancel")[0] == 409
    assert build(web, "late") == 200
    builder.tell("late", lambda report: report.ended(KERNEL))
    wait_for(lambda: "8 of 9" in read(web), 20)
    status, text = post(web, "/templates/late/cancel")
    assert status == 409 and "cannot be cancelled" in text and "/templates/late/cancel" not in read(web)
    builder.go_on("late")
    wait_for(lambda: "late" in daemon.store.snapshot().domains, 20)


def test_builds_are_bounded(builder: Builder, daemon: FakeDaemon, web: Page) -> None:
    names = [f"deb{number}" for number in range(MAX_BUILDS)]
    for name in names:
        assert build(web, name) == 200
        wait_for(lambda name=name: name in builder.reports, 20)  # type: ignore[misc]
    assert build(web, "more") == 200
    wait_for(lambda: f"not built: {MAX_BUILDS} templates are being built; wait" in read(web), 20)
    with pytest.raises(InUseError, match="is being built already"):
        daemon.client().call("admin.casemate.template.Install", names[0], payload=Recipe("trixie").encode())
    assert build(web, names[0]) == 409
    for name in names:
        builder.go_on(name)
    wait_for(lambda: read(web).count(">built<") == MAX_BUILDS, 20)
    builder.why = "no"
    for number in range(KEPT_BUILDS + 3):
        name = f"f{number}"
        assert build(web, name) == 200
        builder.go_on(name)
        wait_for(lambda name=name: f"<b>{name}</b>, " in read(web), 20)  # type: ignore[misc]
    assert len(json.loads(daemon.client().call("admin.casemate.template.Builds"))) == KEPT_BUILDS


def test_what_is_not_built_cannot_be_cancelled(daemon: FakeDaemon) -> None:
    with pytest.raises(NoBuildError, match="nothing"):
        daemon.client().call("admin.casemate.template.Cancel", "nothing")


def test_a_template_is_built_anew(daemon: FakeDaemon, web: Page) -> None:
    assert build(web, "deb") == 200
    wait_for(lambda: "/templates/deb/fresh" in read(web, "/part/templates"), 20)
    assert post(web, "/templates/deb/fresh")[0] == 200
    wait_for(lambda: "deb: built anew" in read(web), 20)
    assert post(web, "/templates/deb/rebuild")[0] == 200
    wait_for(lambda: "deb: built before" in read(web), 20)
    with pytest.raises(CasemateError, match="'old'"):
        daemon.client().call("admin.casemate.template.Rebuild", "old", "deb")


# ------------------------------------------------------------------------------------------------ when something dies


def test_a_build_outlives_the_page_and_the_next_one_shows_it(daemon: FakeDaemon, builder: Builder) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(page(daemon.socket.parents[1]))
        assert build(first, "deb") == 200
        builder.tell("deb", lambda report: report.line("said to the first page"))
        wait_for(lambda: "said to the first page" in read(first), 20)
        first.process.kill()
        first.process.wait()
        stack.pop_all()
    with page(daemon.socket.parents[1]) as second:
        assert "said to the first page" in read(second) and "0 of 9 steps" in read(second)
        builder.go_on("deb")
        wait_for(lambda: ">built<" in read(second), 20)
    assert "deb" in daemon.store.snapshot().domains


def test_a_build_that_ends_with_the_daemon_is_told() -> None:
    with short_directory() as directory, ExitStack() as stack:
        with running(directory) as first:
            builder = Builder(first)
            web = stack.enter_context(page(directory))
            assert build(web, "deb") == 200
            builder.tell("deb", lambda report: report.line("x"))
            wait_for(lambda: "0 of 9" in read(web), 20)
            # As a kill: the connections end without an answer.
            first.loop.call_soon_threadsafe(lambda: [one.abort() for one in list(first.server.connections)])
            builder.go_on("deb")
        with running(directory):
            wait_for(lambda: '<b>deb</b>: <span class="bad">not built: ' in read(web), 20)


def test_a_read_only_page_shows_builds_and_changes_none(builder: Builder, daemon: FakeDaemon, web: Page) -> None:
    assert build(web, "deb") == 200
    builder.tell("deb", lambda report: report.line("seen by all"))
    with page(daemon.socket.parents[1], "--read-only") as looking:
        wait_for(lambda: "seen by all" in read(looking), 20)
        assert "data-post" not in read(looking)
        for verb in ("cancel", "fresh", "rebuild"):
            assert post(looking, f"/templates/deb/{verb}")[0] == 403
    builder.go_on("deb")


# ------------------------------------------------------------------------------------------------------- in a browser


def test_a_person_follows_a_build(browser: Browser, builder: Builder, web: Page) -> None:
    with ExitStack() as stack:
        tab = opened(stack, browser, web)
        tab.evaluate("location.hash = '#/templates'")
        tab.get_by_label("Name", exact=True).fill("deb")
        tab.get_by_role("button", name="Build", exact=True).click()
        builder.tell("deb", lambda report: report.line("debian-13: downloading packages with apt..."))
        builder.tell("deb", lambda report: report.ended(LISTS))
        card = tab.get_by_label("Build of deb").first
        expect(card).to_contain_text("1 of 9 steps have ended, next: download", timeout=SECONDS)
        log = tab.get_by_label("Log of deb")
        expect(log).to_contain_text("downloading packages", timeout=SECONDS)
        builder.tell("deb", lambda report: report.line(EVIL))
        expect(log).to_contain_text("<img src=x", timeout=SECONDS)
        assert faults(tab) == [] and tab.locator("main img").count() == 0
        picture(tab, "templates-build")
        card.get_by_role("button", name="Cancel").click()
        tab.get_by_role("button", name="Yes").click()
        expect(card).to_contain_text("It was cancelled", timeout=SECONDS)
        assert faults(tab) == []
