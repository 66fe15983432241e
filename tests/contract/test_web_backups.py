"""Verifying and restoring from the page: verdicts per qube, and no passphrase that goes through it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from casemate.backup.container import Cost
from casemate.backup.incremental.repository import Repository
from casemate.engine import backups
from casemate.web import rendering
from casemate.web.backup_tools import ToolRun
from tests.builders import short_directory, wait_for
from tests.contract.test_web_accessibility import browser, faults
from tests.fakes.answered_call import answered_call
from tests.fakes.browser import SECONDS, opened, picture
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.web import Page, page, post

__all__ = ["browser"]

PASSPHRASE = "five words that nobody knows"


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """Two qubes, and a backup of both by the profile daily."""
    monkeypatch.setattr(backups, "DEFAULT_COST", Cost(10))
    with short_directory() as directory, running(directory) as found:
        qubes = found.client()
        qubes.create("TemplateVM", "deb", "black")
        qubes.set(None, "default_template", "deb")
        for number, name in enumerate(("work", "mail")):
            qubes.create("AppVM", name, "blue", "deb")
            found.parts.volumes.images[name, "private"] = content(number)
        (directory / "stick").mkdir()
        profile(found, "daily", f"destination_path: {directory}/stick\npassphrase_text: {PASSPHRASE}\n")
        qubes.call("admin.backup.Execute", "daily")
        yield found


@pytest.fixture
def web(daemon: FakeDaemon) -> Iterator[Page]:
    with page(daemon.socket.parents[1]) as found:
        yield found


def content(number: int) -> bytes:
    """What the volume of a qube has."""
    return random.Random(number).randbytes(300_000)


def profile(daemon: FakeDaemon, name: str, text: str) -> None:
    place = daemon.socket.parents[1] / "backup"
    place.mkdir(exist_ok=True)
    (place / f"{name}.conf").write_text(f"include: [work, mail]\n{text}")


def the_backup(daemon: FakeDaemon) -> Path:
    [found] = (daemon.socket.parents[1] / "stick").iterdir()
    return found


def read(web: Page, path: str = "/part/backups") -> str:
    status, _, text = web.ask("GET", path)
    assert status == 200, text
    return text


def ended(web: Page) -> str:
    """The list once nothing is under way."""
    wait_for(lambda: "being verified" not in read(web) and "being restored" not in read(web), 60)
    return read(web)


def verdict(text: str, name: str) -> list[str]:
    """The cells of a qube's row."""
    row = text.partition(f'<tr data-key="{name}">')[2].partition("</tr>")[0]
    return [cell.rpartition(">")[2] for cell in row.split("</t")[:-1]]


def damage(path: Path) -> None:
    """One byte of the last third, which is the data of a qube."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size * 2 // 3)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_a_verdict_for_each_qube(daemon: FakeDaemon, web: Page) -> None:
    assert post(web, "/backups/daily/verify") == (200, "Verifying the newest backup by daily.")
    text = ended(web)
    assert "all is whole" in text
    assert [verdict(text, name)[1] for name in ("work", "mail")] == ["whole", "whole"]
    damage(the_backup(daemon))
    assert post(web, "/backups/daily/verify")[0] == 200
    text = ended(web)
    assert "not all is whole" in text
    assert {verdict(text, name)[1] for name in ("work", "mail")} == {"whole", "damaged"}
    assert PASSPHRASE not in text + read(web, "/view/backups?profile=daily")


def test_qubes_come_back(daemon: FakeDaemon, web: Page) -> None:
    qubes = daemon.client()
    before = daemon.parts.volumes.images["work", "private"]
    qubes.remove("work")
    del daemon.parts.volumes.images["work", "private"]
    assert post(web, "/backups/daily/restore", qubes="work", conflict="skip")[0] == 200
    text = ended(web)
    assert verdict(text, "work")[:3] == ["work", "whole", "work"] and "all is whole" in text
    assert daemon.parts.volumes.images["work", "private"].rstrip(b"\0") == before.rstrip(b"\0")
    assert post(web, "/backups/daily/restore", qubes="", conflict="skip")[0] == 200
    text = ended(web)
    assert "nothing to be restored" in text and verdict(text, "mail")[:2] == ["mail", "left out"]
    assert post(web, "/backups/daily/restore", qubes="mail", conflict="rename")[0] == 200
    assert verdict(ended(web), "mail")[:3] == ["mail", "whole", "mail-1"]
    assert "mail-1" in daemon.store.snapshot().domains


def test_a_repository_is_verified_too(daemon: FakeDaemon, web: Page) -> None:
    if shutil.which("borg") is None:
        pytest.fail("borg is missing: make setup-tests installs it")
    state = daemon.socket.parents[1]
    Repository(state / "repository", PASSPHRASE.encode(), state / "backup").borg.init()
    profile(daemon, "often", f"destination_path: {state}/repository\nrepository: true\npassphrase_text: {PASSPHRASE}\n")
    daemon.client().call("admin.backup.Execute", "often")
    assert post(web, "/backups/often/verify")[0] == 200
    text = ended(web)
    assert "all is whole" in text and verdict(text, "work")[:2] == ["work", "whole"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_qube_gives_the_passphrase_to_the_tool(daemon: FakeDaemon, web: Page, code: int) -> None:
    """The link of the qube is this test: the page's own process asks for no passphrase and is told none."""
    daemon.client().call("admin.vm.Start", "", "mail")
    profile(daemon, "asking", f"destination_path: {daemon.socket.parents[1]}/stick\npassphrase_vm: mail\n")
    path = Path(daemon.client().transport.settings.link_address("mail"))
    with answered_call(path, f"{PASSPHRASE}\n".encode(), code) as heard:
        assert post(web, "/backups/asking/verify")[0] == 200
    text = ended(web)
    assert b"qubes.BackupPassphrase+asking" in heard and PASSPHRASE not in text
    assert ("all is whole" in text, "mail gave no passphrase" in text) == (code == 0, code == 1)


def test_what_needs_a_typed_passphrase_is_a_command(daemon: FakeDaemon, web: Page) -> None:
    profile(daemon, "typed", "destination_path: /mnt/my stick\nrepository: true\n")
    profile(daemon, "there", "destination_vm: work\ndestination_path: /home/user\npassphrase_vm: mail\n")
    text = read(web, "/view/backups?profile=typed")
    assert "casemate backup verify &#39;/mnt/my stick&#39;" in text and "/verify" not in text and "<form" not in text
    text = read(web, "/view/backups?profile=there")
    assert "qvm-backup-restore -d work --verify-only /home/user" in text and "/verify" not in text
    assert 'data-post="/backups/daily/verify"' in read(web, "/view/backups?profile=daily")
    for verb, fields in (("verify", {}), ("restore", {"qubes": "", "conflict": "skip"})):
        status, said = post(web, f"/backups/typed/{verb}", **fields)
        assert status == 409 and "no passphrase" in said


@pytest.mark.parametrize(
    ("path", "fields", "status", "named"),
    [
        ("/backups/nobody/verify", {}, 409, "nobody"),
        ("/backups/daily/restore", {"qubes": "", "conflict": "overwrite"}, 409, "skip, rename"),
        ("/backups/daily/restore", {"qubes": "--keep-damaged", "conflict": "skip"}, 409, "--keep-damaged"),
        ("/backups/daily/restore", {"qubes": "a b/c", "conflict": "skip"}, 409, "b/c"),
        ("/backups/daily/restore", {"qubes": "", "conflict": "skip", "passphrase": "x"}, 409, "qubes, conflict"),
        ("/backups/daily/stop", {}, 409, "daily"),
    ],
)
def test_wrong_input_is_named(web: Page, path: str, fields: dict[str, str], status: int, named: str) -> None:
    found, text = post(web, path, **fields)
    assert found == status and named in text, (found, text)
    assert "being" not in read(web)


def test_text_of_a_backup_is_plain_text(web: Page) -> None:
    """A backup may come from anywhere, and so may the names and reasons in a report."""
    evil = "<img src=x onerror=alert(1)>\u202e"
    run = ToolRun("restore", evil, 0.0, ended=1.0, report={
        "qubes": [{"name": evil, "verdict": "damaged", "restored_as": None, "why": evil}], "left_out": {evil: evil},
        "notes": [evil], "error": evil,
    })  # fmt: skip
    text = rendering.render(
        "backups_list.html", tools=[run], running={}, ended={}, profiles=[], closed="", place="", read_only=True,
        moment=str,
    )  # fmt: skip
    assert text.count("&lt;img src=x") >= 7 and "<img" not in text and "\u202e" not in text


def test_why_the_tool_could_not_is_shown(daemon: FakeDaemon, web: Page) -> None:
    path = the_backup(daemon)
    profile(daemon, "daily", f"destination_path: {path.parent}\npassphrase_text: another one than that\n")
    assert post(web, "/backups/daily/verify")[0] == 200
    assert "passphrase" in (text := ended(web)) and "another one than that" not in text
    path.unlink()
    assert post(web, "/backups/daily/verify")[0] == 200
    assert "There is no backup in" in ended(web)


@pytest.fixture
def held(daemon: FakeDaemon) -> Iterator[threading.Event]:
    """A restore waits in the midst of the first volume's import until the event is set."""
    qubes, gate, real = daemon.client(), threading.Event(), daemon.parts.volumes.import_image

    async def slow(name: str, volume: str, image: Path, size: int) -> None:
        await asyncio.to_thread(gate.wait, 60)
        await real(name, volume, image, size)

    daemon.parts.volumes.import_image = slow  # type: ignore[method-assign]
    for name in ("work", "mail"):
        qubes.remove(name)
    yield gate
    gate.set()


def tools(web: Page) -> list[int]:
    """Tools that the page has started."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                if int(stat[1]) == web.process.pid:
                    found.append(int(path.name))
            except OSError:
                continue
    return found


def test_a_cancelled_restore_leaves_nothing(daemon: FakeDaemon, web: Page, held: threading.Event) -> None:
    assert post(web, "/backups/daily/restore", qubes="", conflict="skip")[0] == 200
    wait_for(lambda: "work" in daemon.store.snapshot().domains, 60)
    assert "is being restored" in read(web)
    status, text = post(web, "/backups/daily/verify")
    assert status == 409 and "already" in text
    assert post(web, "/backups/daily/stop")[0] == 200
    time.sleep(0.5)
    held.set()
    assert "It was cancelled" in ended(web)
    assert not {"work", "mail"} & set(daemon.store.snapshot().domains.keys()) and not tools(web)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_page_that_ends_leaves_no_qube_that_looks_whole(
    daemon: FakeDaemon, held: threading.Event, number: signal.Signals
) -> None:
    """Ended or killed: what a restore had begun is removed, or cannot be started and is removed by the next."""
    with ExitStack() as stack:
        web = stack.enter_context(page(daemon.socket.parents[1]))
        assert post(web, "/backups/daily/restore", qubes="work", conflict="skip")[0] == 200
        wait_for(lambda: "work" in daemon.store.snapshot().domains, 60)
        [tool] = tools(web)
        web.process.send_signal(number)
        time.sleep(0.5)
        held.set()
        wait_for(lambda: not Path(f"/proc/{tool}").exists(), 60)
        web.process.wait(60)
        stack.pop_all()
    system = daemon.store.snapshot()
    if number == signal.SIGINT:
        assert "work" not in system.domains
    elif "work" in system.domains:
        whole = daemon.parts.volumes.images["work", "private"].startswith(content(0))
        assert whole or "restore-incomplete" in system.domains["work"].features


def test_a_read_only_page_shows_verdicts_and_starts_nothing(daemon: FakeDaemon) -> None:
    with page(daemon.socket.parents[1], "--read-only") as web:
        text = read(web, "/view/backups?profile=daily")
        assert "data-post" not in text and "qvm-backup-restore --verify-only" in text
        for verb in ("verify", "restore", "stop"):
            assert post(web, f"/backups/daily/{verb}")[0] == 403


def test_a_person_verifies_and_restores(browser: Browser, daemon: FakeDaemon, web: Page) -> None:
    daemon.client().remove("work")
    with ExitStack() as stack:
        tab = opened(stack, browser, web)
        tab.evaluate("location.hash = '#/backups?profile=daily'")
        tab.get_by_role("button", name="Verify", exact=True).click()
        expect(tab.locator(".live")).to_contain_text("all is whole", timeout=SECONDS)
        tab.evaluate("location.hash = '#/backups?profile=daily'")
        tab.get_by_label("Qubes to be restored").fill("work")
        tab.get_by_role("button", name="Restore", exact=True).click()
        tab.get_by_role("button", name="Yes").click()
        expect(tab.locator(".live")).to_contain_text("restored", timeout=SECONDS)
        expect(tab.locator("[data-key=restore-daily] tbody tr")).to_have_text("workwholework", timeout=SECONDS)
        picture(tab, "backups-verdicts")
        assert faults(tab) == []
        tab.evaluate("location.hash = '#/backups?profile=daily'")
        expect(tab.get_by_label("Qubes to be restored")).to_be_visible(timeout=SECONDS)
        assert faults(tab) == []
    assert "work" in daemon.store.snapshot().domains
