"""The manager page's real server on a real daemon without machines, asked as a browser asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casemate.web import connections, rendering, stream
from casemate.web.actions import MAX_ACTIONS
from casemate.web.live import Row
from casemate.wire.events import DeviceListChange
from tests.builders import short_directory, wait_for
from tests.fakes.daemon import FakeDaemon, running
from tests.fakes.web import Page, page


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    with short_directory() as directory, running(directory) as found:
        qubes = found.client()
        qubes.create("TemplateVM", "deb", "black")
        for name, label in (("work", "blue"), ("vault", "gray")):
            qubes.create("AppVM", name, label, "deb")
        yield found


@pytest.fixture
def web(daemon: FakeDaemon) -> Iterator[Page]:
    with page(daemon.socket.parents[1]) as found:
        yield found


def until(messages: Iterator[dict[str, Any]], name: str, *words: str) -> str:
    """The row of a qube once it has all these words."""
    for message in messages:
        row = message["rows"].get(name, "")
        if row and all(word in row for word in words):
            return str(row)
    raise AssertionError("the stream ended")


# ------------------------------------------------------------------------------------------------------------ the door


def test_every_answer_has_the_headers_of_safety(web: Page) -> None:
    paths = ["/", "/static/casemate.js", "/view/qubes", "/nowhere", "/static/nothing"]
    answers = [web.ask("GET", path) for path in paths]
    answers.append(web.ask("GET", "/view/qubes", headers=web.headers(authorization=None)))
    answers.append(web.ask("GET", "/view/qubes", headers=web.headers(host="evil.example")))
    assert [answer[0] for answer in answers] == [200, 200, 200, 404, 404, 401, 421]
    for _, headers, _ in answers:
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "script-src 'self'" in policy
        assert "unsafe" not in policy and "http" not in policy and "*" not in policy
        assert headers["cross-origin-resource-policy"] == headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert not [name for name in headers if name.startswith("access-control-")], "no other origin may read"
        assert "set-cookie" not in headers and "server" not in headers


def test_what_needs_no_token_tells_nothing(web: Page) -> None:
    opened = web.headers(authorization=None, sec_fetch_site="none", sec_fetch_mode="navigate", origin=None,
                         sec_fetch_dest="document", x_casemate=None)  # fmt: skip
    status, _, text = web.ask("GET", "/", headers=opened)
    assert status == 200 and not re.search(r"\bwork\b", text) and web.token not in text
    assert (
        "<script>" not in text and " style=" not in text and " on" not in text.split("<body>")[0].split("content=")[0]
    )


def test_another_process_has_another_token(daemon: FakeDaemon, web: Page) -> None:
    with page(daemon.socket.parents[1]) as other:
        assert other.token != web.token and len(web.token) >= 43
        assert web.ask("GET", "/view/qubes", headers=web.headers(authorization=f"Bearer {other.token}"))[0] == 401


def test_the_page_listens_on_loopback_alone(web: Page) -> None:
    with contextlib.closing(socket.socket()) as probe:
        probe.connect(("127.0.0.1", web.port))
    found = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {words[1] for words in found if words[3] == "0A" and words[1].endswith(f":{web.port:04X}")}
    assert listening == {f"0100007F:{web.port:04X}"}


def test_a_read_only_page_refuses_changes_and_has_no_buttons(daemon: FakeDaemon) -> None:
    with page(daemon.socket.parents[1], "--read-only") as web:
        assert web.ask("POST", "/qubes/work/do/start")[0] == 403
        with web.stream() as messages:
            assert "<button" not in until(messages, "work", "Halted")
        assert not daemon.parts.machines


def test_long_bodies_and_heads_are_refused(web: Page) -> None:
    headers = web.headers()
    headers["content-type"] = "application/x-www-form-urlencoded"
    assert web.ask("POST", "/qubes/work/do/start", "a=1", headers)[0] == 202, "a short one is read"
    assert web.ask("POST", "/qubes/work/do/start", "a=" + "1" * 200_000, headers)[0] == 413
    for wrong in ("a=1&a=2", "a&b", "\N{SNOWMAN}=1"):
        assert web.ask("POST", "/qubes/work/do/start", wrong, headers)[0] == 409
    with contextlib.closing(socket.create_connection(("127.0.0.1", web.port), timeout=30)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_five_hundred_connections_are_bounded_and_go_away(web: Page) -> None:
    """Who only connects takes no descriptors for ever; a browser that was there goes on."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(500):
            with contextlib.suppress(OSError):
                held.append(stack.enter_context(socket.create_connection(("127.0.0.1", web.port), timeout=30)))
        files = Path(f"/proc/{web.process.pid}/fd")
        wait_for(lambda: len(os.listdir(files)) < connections.MAX_CONNECTIONS + 40, 20)
        # Those that were kept end too, as they ask for nothing.
        wait_for(lambda: len(os.listdir(files)) < 40, connections.REQUEST_SECONDS * 3)
    assert web.ask("GET", "/view/qubes")[0] == 200


def test_streams_are_bounded(web: Page) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(stream.MAX_STREAMS):
            until(stack.enter_context(web.stream()), "work", "Halted")
        assert web.ask("GET", "/events")[0] == 503
    wait_for(lambda: not _refused(web), 20)


def _refused(web: Page) -> bool:
    try:
        with web.stream():
            return False
    except AssertionError:
        return True


# ---------------------------------------------------------------------------------------------------------------- live


def test_the_stream_has_all_rows_then_only_what_changed(daemon: FakeDaemon, web: Page) -> None:
    with web.stream() as messages:
        first = next(message for message in messages if not message["lost"])
        assert first["rows"].keys() == {"dom0", "deb", "work", "vault"}
        daemon.client().set("work", "label", "red")
        second = next(messages)
        assert second["rows"].keys() == {"work"} and "label red" in second["rows"]["work"] and not second["whole"]
        daemon.client().create("AppVM", "mail", "green", "deb")
        assert "Halted" in until(messages, "mail")
        daemon.client().remove("mail")
        assert next(message for message in messages if message["gone"])["gone"] == ["mail"]


def test_a_browser_that_comes_back_gets_what_it_missed(daemon: FakeDaemon, web: Page) -> None:
    with web.stream() as messages:
        last = next(message for message in messages if not message["lost"])["id"]
    daemon.client().set("vault", "label", "orange")
    daemon.client().remove("work")
    with web.stream(last) as messages:
        rows: dict[str, str] = {}
        gone: list[str] = []
        for message in messages:
            assert not message["whole"]
            rows |= message["rows"]
            gone += message["gone"]
            if rows and gone:
                break
    assert rows.keys() == {"vault"} and "label orange" in rows["vault"] and gone == ["work"]
    for wrong in ("0-5", "x", f"{last.partition('-')[0]}-99999999999", "-" * 100):
        with web.stream(wrong) as messages:
            assert next(messages)["whole"], wrong


def test_a_start_that_takes_its_time_holds_nothing_up(daemon: FakeDaemon, web: Page) -> None:
    gate = asyncio.Event()
    real = daemon.parts.power.start

    async def slow(name: str) -> None:
        await gate.wait()
        await real(name)

    daemon.parts.power.start = slow  # type: ignore[method-assign]
    with web.stream() as messages:
        until(messages, "work", "Halted", "Start work")
        begin = time.monotonic()
        assert web.ask("POST", "/qubes/work/do/start")[0] == 202
        assert "<button" not in until(messages, "work", "starting")
        assert web.ask("GET", "/view/qubes")[0] == 200
        assert time.monotonic() - begin < 20 and not daemon.parts.machines
        daemon.loop.call_soon_threadsafe(gate.set)
        assert "Shut down work" in until(messages, "work", ">Running<")


def test_buttons_do_what_they_say(daemon: FakeDaemon, web: Page) -> None:
    with web.stream() as messages:
        until(messages, "work", "Start work")
        for verb, state in (("start", "Running"), ("pause", "Paused"), ("unpause", "Running"), ("shutdown", "Halted")):
            assert web.ask("POST", f"/qubes/work/do/{verb}")[0] == 202
            until(messages, "work", f">{state}<")
        daemon.client().call("admin.vm.Start", "", "work")
        first = daemon.parts.machines["work"].xid
        assert web.ask("POST", "/qubes/work/do/restart")[0] == 202
        wait_for(lambda: "work" in daemon.parts.machines and daemon.parts.machines["work"].xid != first, 20)
        assert web.ask("POST", "/qubes/work/do/kill")[0] == 202
        wait_for(lambda: "work" not in daemon.parts.machines, 20)
        until(messages, "work", ">Halted<", "Start work")


def test_a_failure_is_told_to_all_who_look(daemon: FakeDaemon, web: Page) -> None:
    daemon.parts.power.broken.add("work")
    with web.stream() as one, web.stream() as other:
        until(one, "work", "Halted")
        until(other, "work", "Halted")
        assert web.ask("POST", "/qubes/work/do/start")[0] == 202
        for messages in (one, other):
            told = next(message for message in messages if message["notices"])
            assert told["notices"] == ["Start work: Cannot start work: it is broken"]


def test_what_is_asked_for_is_bounded(daemon: FakeDaemon, web: Page) -> None:
    gate = asyncio.Event()

    async def slow(_: str) -> None:
        await gate.wait()

    daemon.parts.power.start = slow  # type: ignore[method-assign]
    statuses = [web.ask("POST", "/qubes/work/do/start")[0] for _ in range(MAX_ACTIONS + 2)]
    assert statuses == [202] * MAX_ACTIONS + [503, 503]
    daemon.loop.call_soon_threadsafe(gate.set)


def test_wrong_words_are_answered_with_what_is_wrong(web: Page) -> None:
    assert web.ask("POST", "/qubes/work/do/explode")[0] == 404
    status, _, text = web.ask("POST", "/qubes/a%20b/do/start")
    assert status == 409 and "name" in text
    assert web.ask("GET", "/qubes/work/do/start")[0] == 405


def test_the_page_recovers_when_the_daemon_is_gone_and_back() -> None:
    with short_directory() as directory:
        with running(directory) as daemon:
            daemon.client().create("TemplateVM", "deb", "black")
            daemon.client().create("AppVM", "work", "blue", "deb")
            with contextlib.ExitStack() as stack:
                web = stack.enter_context(page(directory))
                messages = stack.enter_context(web.stream())
                until(messages, "work", "label blue")
                held = stack.pop_all()
        with held:
            assert next(message for message in messages if message["lost"])["lost"]
            with running(directory) as daemon:
                daemon.client().set("work", "label", "red")
                daemon.client().create("AppVM", "mail", "green", "deb")
                found: dict[str, str] = {}
                for message in messages:
                    found |= message["rows"]
                    if not message["lost"] and "mail" in found and "label red" in found.get("work", ""):
                        break
                else:
                    raise AssertionError("the stream ended")


def test_nobody_looks_and_the_daemon_is_followed_no_longer(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, for its clock: a page that was closed costs the daemon nothing."""
    from casemate.web import live
    from casemate.web.admin_api import AdminApi

    monkeypatch.setattr(live, "IDLE_SECONDS", 0.3)

    async def check() -> None:
        found = live.Live(AdminApi(daemon.client().transport))
        with found.used():
            while found.lost:
                await found.newer(found.since(0).version, 20)
            assert daemon.context.events and len(daemon.context.events) >= 1
        async with asyncio.timeout(20):
            assert found._task is not None
            await found._task
        assert len(asyncio.all_tasks()) == 1, "nothing reads from the daemon any more"
        with found.used():  # and somebody looks again
            while found.lost:
                await found.newer(found.since(0).version, 20)
        await found.close()

    asyncio.run(check())


def test_many_changes_at_once_come_in_few_messages(daemon: FakeDaemon, web: Page) -> None:
    """At most ten a second, whatever the daemon says, and the last state is in them."""
    with web.stream() as messages:
        until(messages, "work", "Halted")
        stop = threading.Event()

        def storm() -> None:
            while not stop.is_set():
                daemon.loop.call_soon_threadsafe(
                    lambda: [daemon.parts.bus.say(DeviceListChange("work", "block")) for _ in range(50)]
                )
                daemon.client().set("work", "memory", str(400 + time.monotonic_ns() % 1000))

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            begin = time.monotonic()
            count = 0
            while time.monotonic() - begin < 2:
                next(messages)
                count += 1
            took = time.monotonic() - begin
        finally:
            stop.set()
            thread.join()
        assert 2 <= count <= 10 * took + 2
        daemon.client().set("work", "memory", "777")
        until(messages, "work", "777 MiB")


# ---------------------------------------------------------------------------------------------------- what qubes say


def test_text_of_others_is_escaped(web: Page) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&\u202e"
    status, _, text = web.ask("POST", "/qubes/work/do/" + "%3Cimg%3E")
    assert status == 404 and "<img>" not in text
    row = Row("a", evil, "Halted", evil, "#000000", evil, evil, "1", False)
    for html in (rendering.row(row, False), rendering.row(row, True)):
        assert "<img" not in html and "&lt;img" in html
    shown = rendering.said(evil)
    assert "<img" not in shown and "&lt;img" in shown and "\u202e" not in shown and 'class="said"' in shown
