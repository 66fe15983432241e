"""The table of qubes: what is done to several at once, saved views, what a load shows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from casemate.web import stream
from casemate.web.actions import AT_ONCE
from casemate.web.loads import Load
from casemate.web.saved_views import MAX_VIEWS, SavedViews, view_of
from casemate.wire.errors import NotFoundError, ValueInvalidError
from tests.builders import wait_for
from tests.contract.test_web import until
from tests.contract.test_web_qube import daemon, post, web
from tests.fakes.daemon import FakeDaemon
from tests.fakes.web import Page

__all__ = ["daemon", "web"]
VIEW = {"name": "Net", "filter": "sys-", "which": "all", "order": "flat"}


def test_many_are_started_a_few_at_a_time(daemon: FakeDaemon, web: Page) -> None:
    names = [f"many{number}" for number in range(12)]
    for name in names:
        daemon.client().create("AppVM", name, "red", "deb")
    real, gate, now, most = daemon.parts.power.start, asyncio.Event(), 0, 0

    async def slow(name: str) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await gate.wait()
        await real(name)
        now -= 1

    daemon.parts.power.start = slow  # type: ignore[method-assign]
    try:
        with web.stream() as messages:
            until(messages, "many11", "Halted")
            status, text = post(web, "/selected/start", names=" ".join([*names, "dom0", "nobody"]))
            assert status == 202 and "asked of 12, and not of 2" in text
            until(messages, "many0", "starting")
            daemon.loop.call_soon_threadsafe(gate.set)
            wait_for(lambda: set(names) <= set(daemon.parts.machines), 30)
            assert most == AT_ONCE
            running: set[str] = set()
            while running != set(names):
                rows = next(messages)["rows"]
                running |= {name for name in names if ">Running<" in rows.get(name, "")}
            assert post(web, "/selected/start", names="many1 many2")[0] == 409, "they run already"
            assert post(web, "/selected/kill", names=" ".join(names))[0] == 202
            wait_for(lambda: not set(names) & set(daemon.parts.machines), 30)
    finally:
        daemon.parts.power.start = real  # type: ignore[method-assign]
    for name in names:
        daemon.client().remove(name)


@pytest.mark.parametrize(
    "names", ["", "a/b", pytest.param(" ".join(f"q{number}" for number in range(1001)), id="many")]
)
def test_a_wrong_selection_is_refused(web: Page, names: str) -> None:
    status, text = post(web, "/selected/start", names=names)
    assert status == 409 and ("name" in text or "can be selected" in text), text
    assert post(web, "/selected/explode", names="work")[0] == 404


def test_views_outlive_the_page_and_are_one_users(tmp_path: Path) -> None:
    path = tmp_path / "config" / "views.json"
    views = SavedViews(path)
    assert views.all() == []
    views.save(view_of(VIEW))
    views.save(view_of({**VIEW, "name": "All"}))
    views.save(view_of({**VIEW, "filter": "net"}))
    assert [(view.name, view.filter) for view in SavedViews(path).all()] == [("All", "sys-"), ("Net", "net")]
    assert path.stat().st_mode & 0o77 == 0 and path.parent.stat().st_mode & 0o77 == 0
    views.remove("All")
    with pytest.raises(NotFoundError):
        views.remove("All")
    for number in range(MAX_VIEWS - 1):
        views.save(view_of({**VIEW, "name": str(number)}))
    with pytest.raises(ValueInvalidError, match="remove one"):
        views.save(view_of({**VIEW, "name": "one more"}))
    assert len(views.all()) == MAX_VIEWS and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1, null, {}]", '{"a": 1}', pytest.param("[" * 60_000, id="deep"), json.dumps([VIEW, {"name": 1}]),
        pytest.param(json.dumps([VIEW] * 1000), id="long"),
    ],
)  # fmt: skip
def test_a_broken_file_of_views_hides_no_page(tmp_path: Path, text: str) -> None:
    path = tmp_path / "views.json"
    path.write_text(text)
    assert len(SavedViews(path).all()) <= 1


@pytest.mark.parametrize(
    "changes",
    [{"name": ""}, {"name": "x" * 41}, {"name": "a\nb"}, {"filter": "x" * 201}, {"which": "some"}, {"order": ""}],
)
def test_a_wrong_view_is_named(web: Page, changes: dict[str, str]) -> None:
    status, text = post(web, "/views", **{**VIEW, **changes})
    assert status == 409 and "view" in text


def test_a_view_is_shown_escaped_and_removed(web: Page) -> None:
    evil = "<img src=x>\"'"
    assert post(web, "/views", **{**VIEW, "name": evil, "filter": evil})[0] == 200
    text = web.ask("GET", "/view/qubes")[2]
    assert "<img" not in text and "&lt;img" in text
    assert post(web, "/views/remove", name=evil)[0] == 200
    assert post(web, "/views/remove", name=evil)[0] == 404


def test_a_load_shows_memory_processor_and_traffic() -> None:
    now = 100.0
    load = Load(lambda: now)
    for count in (0, 30_000, 90_000):
        load.traffic({"interface": "u1", "sent_bytes": str(count), "received_bytes": "0"})
        load.machine({"memory_kb": str(400 << 10), "cpu_usage": "250"})
        now += 3
    assert list(load.network) == [0, 10_000, 20_000] and list(load.cpu) == [100] * 3
    found = stream.shown(load)
    assert found["memory"][0] == "400 MiB" and found["traffic"][0] == "20 KiB/s" and found["cpu"][0] == "100 %"
    assert found["traffic"][1].split() == ["76,19.0", "78,10.0", "80,1.0"]
    load.traffic({"interface": "u1", "sent_bytes": "5", "received_bytes": "0"})  # a new tap under the same name
    load.machine({})
    assert load.network[-1] == 0
    now += 60
    load.machine({})
    assert load.network[-1] == 0 and load.memory[-1] == 0
