"""Calls through the broker: limits, disposables, relays, the trace, the policy daemon's socket."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli.calling import warn_of_policy
from casemate.qrexec import broker as brokering
from casemate.qrexec import calls as calling
from casemate.qrexec import listener as listening
from casemate.qrexec.call_sockets import policy_state
from casemate.qrexec.decide import Permissions
from casemate.qrexec.policy_socket import parse_request
from casemate.wire.errors import CallRefusedError, ProtocolError
from tests.builders import within
from tests.fakes.broker import ALLOW, DENY, POLICY, UUID, Peer, World, answer, run


def test_a_watcher_sees_every_step_and_every_cause(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        watcher = await Peer.at(world.settings.trace_socket)
        assert (await watcher.read())["phase"] == "watching"

        async def steps(service: str, target: str, expected: bytes) -> list[str]:
            assert await world.call(service, target) == expected
            found: list[str] = []
            while True:
                step = await watcher.read()
                assert (step["source"], step["service"]) == ("work", service) and step["at"] >= 0
                found.append(f"{step['phase']} {step.get('cause') or step.get('final') or step.get('status') or ''}")
                if step["phase"] == "ended":
                    return [one.strip() for one in found]

        allowed = ["asked", "decided vault", "started vault", "connected", "ended 3"]
        assert await steps("ok", "vault", ALLOW) == allowed
        assert await steps("nothing", "vault", DENY) == ["asked", "refused policy", "ended"]
        assert await steps("no.Tell", "vault", DENY) == ["asked", "refused policy", "ended"]
        assert await steps("ask.Vault", "vault", DENY) == ["asked", "asking", "refused ask denied", "ended"]
        assert await steps("fails", "fails", DENY) == ["asked", "decided fails", "refused start failed", "ended"]
        assert await steps("ok", "fails", DENY) == ["asked", "decided fails", "refused start failed", "ended"]
        assert await steps("ok", "dvm", DENY) == ["asked", "decided dvm", "started dvm", "refused unreachable", "ended"]
        world.file.write_text("broken")
        assert await steps("ok", "vault", DENY) == ["asked", "refused broken policy", "ended"]
        with await world.connect("ok", refused="rate"):
            step = await watcher.read()
            assert (step["phase"], step["cause"]) == ("refused", "rate")

    run(work, tmp_path)


def test_a_target_that_does_not_answer_is_shown_and_its_caller_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(brokering, "SILENCE_SECONDS", 0.05)

    async def work(world: World) -> None:
        caplog.set_level("INFO")
        watcher = await Peer.at(world.settings.trace_socket)
        await watcher.read()
        world.silent["vault"] = "its memory is full"
        with await world.connect("ok") as connection:
            assert await answer(connection) == ALLOW
            phases = [(await watcher.read())["phase"] for _ in range(4)]
            assert phases == ["asked", "decided", "started", "connected"]
            step = await watcher.read()
            assert (step["phase"], step["why"]) == ("silent", "vault does not answer: its memory is full")
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        assert "vault does not answer" in caplog.text
        assert (await watcher.read())["phase"] == "ended"
        world.silent.clear()
        with await world.connect("ok") as connection:
            assert await answer(connection) == ALLOW
            await asyncio.sleep(0.2)
        phases = [(await watcher.read())["phase"] for _ in range(5)]
        assert phases == ["asked", "decided", "started", "connected", "ended"]

    run(work, tmp_path)


def test_reports_of_tools_are_taken_only_while_somebody_watches(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        place = world.settings.run / "reports.sock"
        assert not place.exists()
        watcher = await Peer.at(world.settings.trace_socket)
        await watcher.read()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as tool:
            for body in ({"id": "t1", "phase": "asked", "source": "dom0"}, {"other": 1}, {"id": ["x"]}):
                tool.sendto(json.dumps(body).encode(), str(place))
            tool.sendto(b"garbage", str(place))
            tool.sendto(b'{"id": "t1", "phase": "ended"}', str(place))
        assert await watcher.read() == {"id": "t1", "phase": "asked", "source": "dom0"}
        assert await watcher.read() == {"id": "t1", "phase": "ended"}
        watcher.close()
        await world.until(lambda: not place.exists())

    run(work, tmp_path)


def test_a_qube_has_only_so_many_calls_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "OPEN_OF_ONE", 3)

    async def work(world: World) -> None:
        connections = [await world.connect("ok") for _ in range(3)]
        for connection in connections:
            loop, ready = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(connection, ready.set)
            await ready.wait()
            loop.remove_reader(connection)
        assert await world.call("ok") == DENY
        connections.pop().close()
        await world.until(lambda: world.calls._open.get("work") == len(connections))
        assert await world.call("ok") == ALLOW
        for connection in connections:
            connection.close()

    run(work, tmp_path)


def test_a_link_that_floods_the_broker_gets_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MAX_WAITING", 4)
    monkeypatch.setattr(brokering, "CALLS_PER_SECOND", 0.001)
    monkeypatch.setattr(brokering, "CALL_BURST", 3.0)

    async def work(world: World) -> None:
        connections, loop = [], asyncio.get_running_loop()
        for _ in range(6):  # says nothing
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(
                connection, str(world.settings.qube_run("work") / "broker.sock")
            )
            connections.append(connection)
        loop = asyncio.get_running_loop()
        for connection in connections[4:]:
            assert await within(5, loop.sock_recv(connection, 1)) == b""  # sent away at once
        for connection in connections:
            connection.close()
        await world.until(lambda: not world.listener._waiting)
        assert [await world.call("ok") for _ in range(5)] == [ALLOW] * 3 + [DENY] * 2

    run(work, tmp_path)


def test_a_request_that_is_too_long_is_refused(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        for more, expected in ((0, ALLOW), (listening.MAX_REQUEST, DENY)):
            with await world.connect("ok", padding="x" * more) as connection:
                assert await answer(connection) == expected

    run(work, tmp_path)


def test_a_call_that_is_not_set_up_in_time_is_refused_and_the_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brokering, "SETUP_SECONDS", 0.1)

    async def work(world: World) -> None:
        world.starting.clear()
        assert await world.call("slow") == DENY
        world.starting.set()
        assert await world.call("slow") == ALLOW

    run(work, tmp_path)


def test_a_disposable_goes_with_its_call_whenever_the_caller_goes(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        assert await world.call("ok", "@dispvm:dvm") == ALLOW
        assert await world.removed.get() == "vault"
        world.starting.clear()
        connection = await world.connect("ok", "@dispvm:dvm")
        await world.until(lambda: world.made == 2)
        connection.close()  # it is being made, and has no name yet
        await world.until(lambda: not world.calls._open)
        world.starting.set()
        assert await within(5, world.removed.get()) == "vault"

    run(work, tmp_path)


@given(st.binary(max_size=200) | st.lists(st.sampled_from([
    b"source=work", b"source=dom0", b"intended_target=", b"intended_target=@dispvm:d", b"service_and_arg=a+b", b"x=y",
    b"just_evaluate=yes", b"assume_yes_for_ask=maybe", b"requested_source=r", b"", b"=", b"\xff",
]), max_size=7).map(lambda lines: b"\n".join(lines) + b"\n\n"))  # fmt: skip
def test_requests_to_the_policy_are_understood_or_refused(data: bytes) -> None:
    try:
        found = parse_request(data)
    except ProtocolError:
        return
    lines = data[:-2].split(b"\n")
    assert len(lines) == len({line.partition(b"=")[0] for line in lines})
    assert found.source in ("work", "@adminvm") and found.service == "a"


def test_a_rule_for_all_services_gives_no_power_over_the_target(tmp_path: Path) -> None:
    """Only a rule that names a service of the Admin API, or sends it to the host, lets a qube call it."""

    async def work(world: World) -> None:
        permissions = Permissions(world.policy, world.info)
        start = ("work", "admin.vm.Start", "", "vault")
        for rule in ("* * work vault allow", "* * work @anyvm allow", "* * @anyvm @anyvm allow target=vault"):
            world.file.write_text(rule)
            assert await world.call("admin.vm.Start") == DENY
            assert await world.call("policy.Get") == DENY
            assert not permissions.allows(*start), rule
            assert await world.call("test.Other") == ALLOW
            assert b"test.Other" in await world.heard.get(), "another service is the qube's own"
        assert world.on_host == [] and world.heard.empty(), "neither this host nor the qube has heard of the others"
        for rule in ("admin.vm.Start * work vault allow", "* * work vault allow target=@adminvm"):
            world.file.write_text(rule)
            assert await world.call("admin.vm.Start") == ALLOW
            assert world.on_host.pop() == start and permissions.allows(*start), rule

    run(work, tmp_path)


def test_a_call_to_a_remote_qube_goes_to_its_relay(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        assert await world.call("far+x", "away") == ALLOW
        heard = await world.heard.get()
        assert b"DEFAULT:QUBESRPC my.Ssh+theirs+far+x work\0" in heard

    run(work, tmp_path)


def test_a_broken_policy_raises_an_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the log, in the host's status, and on stderr of each tool of this host that makes a call."""

    async def work(world: World) -> None:
        assert policy_state(world.policy) == "8 rules"
        world.file.write_text("ok * work vault allow\nnonsense")
        await world.until(lambda: "THE POLICY IS BROKEN" in caplog.text)
        assert "30-user.policy:2: a rule is" in caplog.text
        assert policy_state(world.policy).startswith("BROKEN, every call is denied: 30-user.policy:2: ")
        warn_of_policy(world.settings)
        assert "every call of a qube is denied: 30-user.policy:2: a rule is" in capsys.readouterr().err
        world.file.write_text(POLICY)
        assert await world.call("ok") == ALLOW
        await world.until(lambda: not world.settings.policy_alarm.exists())
        warn_of_policy(world.settings)
        assert capsys.readouterr().err == ""

    run(work, tmp_path)


def test_the_policy_daemons_socket(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        async def asked(text: str) -> str:
            reader, writer = await asyncio.open_unix_connection(world.settings.policy_socket)
            writer.write(text.encode())
            found = (await reader.read()).decode()
            writer.close()
            return found

        def lines(**more: str) -> str:
            fields = {"source": "work", "intended_target": "vault", "service_and_arg": "ok+a"} | more
            return "".join(f"{key}={value}\n" for key, value in fields.items() if value) + "\n"

        assert await asked(lines()) == (
            f"result=allow\nuser=DEFAULT\ntarget=vault\nrequested_target=vault\nautostart=True\ntarget_uuid=uuid:{UUID}2\n"
        )
        assert await asked(lines(service_and_arg="other")) == "result=deny\n"
        assert "service=my.Ssh+theirs+far+" in await asked(lines(service_and_arg="far", intended_target="away"))
        assert await asked(lines(service_and_arg="ask.Vault")) == "result=deny\n"  # there is nobody to ask
        assert await asked(lines(service_and_arg="ask.Vault", just_evaluate="yes")) == "result=deny\n"
        assert "target=vault" in await asked(lines(service_and_arg="ask.Vault", assume_yes_for_ask="yes"))
        # Only a relay speaks for its remote qubes.
        assert await asked(lines(source="relay", requested_source="away")) == "result=deny\n"
        world.file.write_text("ok * away vault allow target=dom0 user=root")
        assert await asked(lines(source="relay", requested_source="away")) == (
            "result=allow\nuser=root\ntarget=dom0\nrequested_target=vault\nautostart=True\npolicy_source=away\n"
        )
        assert await asked(lines(source="vault", requested_source="away")) == "result=deny\n"
        for text in (
            lines(domain_id="1"), lines() [:-1] + "source=work\n\n", lines(source=""), lines(just_evaluate="1"),
            lines(service_and_arg="+x"), lines(service_and_arg="a/b"), lines(intended_target="a b"), "x\n\n", "\n\n",
            lines(source="wo\u0440k"),
        ):  # fmt: skip
            assert await asked(text) == "", text

    run(work, tmp_path)


def test_the_sockets_are_our_own(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        for path in (world.settings.prompt_socket, world.settings.trace_socket, world.settings.policy_socket):
            assert path.stat().st_mode & 0o777 == 0o600

    run(work, tmp_path)


def test_refusals_have_a_cause() -> None:
    assert CallRefusedError("x").cause == "refused" and str(CallRefusedError("x", "busy")) == "x"
