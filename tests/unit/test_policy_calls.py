"""The life of a call: questions to a person, limits, causes of refusals, watchers; on the real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.host.process import Runner
from casemate.qrexec import ask as asking
from casemate.qrexec import broker as brokering
from casemate.qrexec import calls as calling
from casemate.qrexec import listener as listening
from casemate.qrexec.ask import Prompters
from casemate.qrexec.broker import Broker
from casemate.qrexec.call_sockets import CallSockets, policy_state
from casemate.qrexec.calls import Calls
from casemate.qrexec.evaluate import QubeInfo, SystemInfo
from casemate.qrexec.files import PolicyFiles
from casemate.qrexec.listener import CallListener
from casemate.qrexec.policy_socket import parse_request
from casemate.wire.errors import CallRefusedError, ProtocolError, StartError
from tests.builders import settings_in

UUID = "00000000-0000-4000-8000-00000000000"
POLICY = """
ask.Vault  *  work  vault      ask
ask.Many   *  work  @default   ask default_target=vault
ask.Many   *  work  @anyvm     ask default_target=dvm
ok         *  work  @anyvm     allow notify=yes
far        *  work  away       allow
no.Tell    *  work  vault      deny notify=no
slow       *  work  vault      allow
fails      *  work  fails      allow
"""


class World:
    """A broker with its sockets, over qubes that exist only by name; what it asks others to do is real sockets too."""

    def __init__(self, directory: Path, seconds: float = 5.0) -> None:
        self.settings = settings_in(directory)
        for path in (self.settings.policy_dir, self.settings.policy_run_dir):
            path.mkdir(mode=0o700, parents=True)
        self.file = self.settings.policy_dir / "30-user.policy"
        self.file.write_text(POLICY)
        self.qubes = [
            QubeInfo("dom0", "AdminVM", "00000000-0000-0000-0000-000000000000", power_state="Running"),
            QubeInfo("work", "AppVM", UUID + "1", icon="appvm-blue", power_state="Running"),
            QubeInfo("vault", "AppVM", UUID + "2", icon="appvm-black", power_state="Running"),
            QubeInfo("dvm", "AppVM", UUID + "3", template_for_dispvms=True),
            QubeInfo("fails", "AppVM", UUID + "4"),
            QubeInfo("hidden", "AppVM", UUID + "5", internal=True),
            QubeInfo("relay", "AppVM", UUID + "6", power_state="Running"),
            QubeInfo("away", "RemoteVM", UUID + "7", relayvm="relay", transport_rpc="my.Ssh", remote_name="theirs"),
        ]
        self.policy = PolicyFiles(self.settings.policy_dir, self.settings.policy_run_dir)
        self.calls = Calls()
        self.prompters = Prompters(self.settings.state / "prompter", Runner(), seconds)
        self.call_sockets = CallSockets(self.settings, self.policy, self.info, self.prompters, self.calls)
        self.listener = CallListener(self.settings)
        self.broker = Broker(
            self.settings, self.listener, self.policy, self.info,
            SimpleNamespace(is_running=self._is_running, start=self._start),
            SimpleNamespace(create=self._make, end=self._remove), self._never,
            self.prompters.ask, self.calls, self.prompters.notify,
        )  # fmt: skip
        self.starting = asyncio.Event()
        self.starting.set()
        self.removed: asyncio.Queue[str] = asyncio.Queue()
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._servers: list[asyncio.Server] = []

    def info(self) -> SystemInfo:
        return SystemInfo.fixed(self.qubes)

    async def _start(self, name: str) -> None:
        await self.starting.wait()
        if name == "fails":
            raise StartError("no memory")

    async def _make(self, template: str) -> str:
        await self.starting.wait()
        return "vault"  # a link listens there

    async def _remove(self, name: str) -> None:
        self.removed.put_nowait(name)

    def _is_running(self, name: str) -> bool:
        return name in ("vault", "relay") and self.starting.is_set()

    async def _never(self, *_: object) -> Any:
        raise AssertionError("not asked for here")

    async def __aenter__(self) -> World:
        await self.call_sockets.open()
        for name in ("work", "vault", "relay"):
            self.settings.qube_run(name).mkdir(parents=True)
        await self.listener.open("work")
        for name in ("vault", "relay"):
            self._servers.append(await asyncio.start_unix_server(self._link, self.settings.link_socket(name)))
        return self

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.put_nowait(await reader.read(4096))
        await reader.read()
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        await self.call_sockets.close()
        await self.listener.close_all()
        await self.broker.close()

    async def connect(self, service: str, target: str = "vault", **more: object) -> socket.socket:
        """The call as a link asks for it."""
        loop = asyncio.get_running_loop()
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        await loop.sock_connect(connection, str(self.settings.qube_run("work") / "broker.sock"))
        await loop.sock_sendall(connection, json.dumps({"service": service, "target": target, **more}).encode() + b"\n")
        return connection

    async def call(self, service: str, target: str = "vault") -> bytes:
        """The answer's bytes; an allowed call ends at once with status 3."""
        with await self.connect(service, target) as connection:
            return await answer(connection)


async def answer(connection: socket.socket) -> bytes:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, ready.set)
    await ready.wait()
    loop.remove_reader(connection)
    data, fds, _flags, _address = socket.recv_fds(connection, 4096, 1)
    for fd in fds:
        os.close(fd)
    if fds:
        await loop.sock_sendall(connection, b"exit 3\n")
    return data


class Peer:
    """The other end of a line socket: a prompter, a watcher."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def at(cls, path: Path) -> Peer:
        return cls(*await asyncio.open_unix_connection(path))

    async def read(self) -> dict[str, Any]:
        line = await asyncio.wait_for(self.reader.readline(), 10)
        return json.loads(line) if line else {}

    def write(self, **body: object) -> None:
        self.writer.write(json.dumps(body).encode() + b"\n")

    def close(self) -> None:
        self.writer.close()


DENY, ALLOW = b'{"result": "deny"}\n', b'{"result": "allow"}\n'


def run(work: Callable[[World], Awaitable[None]], tmp_path: Path, **options: float) -> None:
    async def body() -> None:
        async with World(tmp_path, **options) as world:
            await work(world)

    asyncio.run(asyncio.wait_for(body(), 30))


def test_a_question_and_its_answer(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        for target, reply, expected in (
            ("vault", "allow:vault", ALLOW),
            ("vault", "deny", DENY),
            ("vault", "allow:dvm", DENY),  # not in the list
            ("vault", "allow:", DENY),
            ("vault", "yes", DENY),
            ("hidden", "allow:hidden", DENY),
        ):
            service = "ask.Vault" if target == "vault" else "ask.Many"
            call = asyncio.create_task(world.call(service, target))
            question = await prompter.read()
            assert question["ask"]["source"] == "work" and question["ask"]["service"] == service
            if target == "vault":
                assert question["ask"] == {
                    "source": "work", "service": "ask.Vault", "argument": "+", "targets": ["vault"],
                    "default_target": "", "icons": {"work": "appvm-blue", "vault": "appvm-black"},
                }  # fmt: skip
            prompter.write(id=question["id"], answer=reply)
            assert await call == expected, reply

    run(work, tmp_path)


def test_the_list_of_targets(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        call = asyncio.create_task(world.call("ask.Many", ""))
        question = (await prompter.read())["ask"]
        # Neither the caller nor hidden qubes; the one far away, as it has a relay; the default is the rule's.
        assert question["targets"] == ["@dispvm:dvm", "away", "dvm", "fails", "relay", "vault"]
        assert question["default_target"] == "vault"
        prompter.close()
        assert await call == DENY

    run(work, tmp_path)


def test_without_a_prompter_or_in_silence_the_answer_is_no(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        assert await world.call("ask.Vault") == DENY
        prompter = await Peer.at(world.settings.prompt_socket)
        assert await world.call("ask.Vault") == DENY  # after 0.2 s
        question = await prompter.read()
        assert await prompter.read() == {"withdrawn": question["id"]}
        prompter.write(id=question["id"], answer="allow:vault")  # too late
        call = asyncio.create_task(world.call("ask.Vault"))
        again = await prompter.read()
        prompter.write(id=question["id"], answer="allow:vault")  # an answer to another question
        assert await call == DENY and again["id"] != question["id"]

    run(work, tmp_path, seconds=0.2)


@pytest.mark.parametrize("how", ["killed", "garbage", "long", "object"])
def test_a_prompter_that_breaks_means_no(tmp_path: Path, how: str) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        call = asyncio.create_task(world.call("ask.Vault"))
        question = await prompter.read()
        if how == "killed":
            prompter.writer.transport.abort()
        elif how == "garbage":
            prompter.writer.write(b"\xff\xfe allow:vault\n")
        elif how == "long":
            prompter.writer.write(b"x" * (asking.MAX_LINE + 1) + b"\n")
        else:
            prompter.write(id=[question["id"]], answer={"allow": "vault"})
        assert await call == DENY
        assert how == "killed" or not await prompter.read()

    run(work, tmp_path)


def test_questions_wait_for_their_turn_and_are_few(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        calls = [asyncio.create_task(world.call(f"ask.Many+{n}", "vault")) for n in range(asking.PENDING_OF_ONE)]
        first = await prompter.read()
        await asyncio.sleep(0.05)
        assert await world.call("ask.Many+9", "vault") == DENY  # one too many
        assert await world.call("ask.Many+0", "vault") == DENY
        shown = [first]
        for number in range(len(calls)):
            prompter.write(id=shown[-1]["id"], answer="allow:vault")
            if number + 1 < len(calls):
                shown.append(await prompter.read())
        assert {one["ask"]["argument"] for one in shown} == {"+0", "+1", "+2", "+3"}
        assert await asyncio.gather(*calls) == [ALLOW] * 4

    run(work, tmp_path)


def test_what_has_changed_meanwhile_counts(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)

        async def asked(change: Callable[[], object]) -> bytes:
            call = asyncio.create_task(world.call("ask.Vault"))
            while "id" not in (question := await prompter.read()):
                assert question["notify"]["resolution"] == "deny"
            change()
            prompter.write(id=question["id"], answer="allow:vault")
            return await call

        assert await asked(lambda: None) == ALLOW
        assert await asked(lambda: world.file.write_text("ask.Vault * work vault allow")) == ALLOW
        for text in ("ask.Vault * work vault deny", "nonsense", "ask.Vault * work vault allow target=relay", ""):
            world.file.write_text(POLICY)
            assert await asked(lambda text=text: world.file.write_text(text)) == DENY, text
        world.file.write_text(POLICY)
        assert await asked(lambda: world.qubes.pop(2)) == DENY

    run(work, tmp_path)


def test_a_caller_that_goes_away_withdraws_its_question(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        connection = await world.connect("ask.Vault")
        question = await prompter.read()
        connection.close()
        assert await prompter.read() == {"withdrawn": question["id"]}

    run(work, tmp_path)


def test_a_program_as_prompter(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        program = world.settings.state / "prompter"

        async def answered(script: str, mode: int = 0o755) -> bytes:
            program.write_text("#!/bin/sh\n" + script)
            program.chmod(mode)
            return await world.call("ask.Vault")

        assert await answered('grep -q \'"targets": ."vault".\' && echo allow:vault') == ALLOW
        assert await answered("echo deny") == DENY
        assert await answered("echo allow:vault; exit 1") == DENY
        assert await answered("printf 'allow:vault\\nallow:vault\\n'") == DENY
        assert await answered("printf 'allow:vau'") == DENY
        assert await answered(":") == DENY
        assert await answered("echo allow:vault", 0o777) == DENY
        assert await answered("echo allow:vault", 0o644) == DENY

    run(work, tmp_path)


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
        while place.exists():
            await asyncio.sleep(0.01)

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
        await asyncio.sleep(0.05)
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
            assert await asyncio.wait_for(loop.sock_recv(connection, 1), 5) == b""  # sent away at once
        for connection in connections:
            connection.close()
        async with asyncio.timeout(10):
            while world.listener._waiting:
                await asyncio.sleep(0.01)
        assert [await world.call("ok") for _ in range(5)] == [ALLOW] * 3 + [DENY] * 2

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
        await asyncio.sleep(0.05)
        connection.close()  # it is being made, and has no name yet
        await asyncio.sleep(0.05)
        world.starting.set()
        assert await asyncio.wait_for(world.removed.get(), 5) == "vault"

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


def test_a_call_to_a_remote_qube_goes_to_its_relay(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        assert await world.call("far+x", "away") == ALLOW
        heard = await world.heard.get()
        assert b"DEFAULT:QUBESRPC my.Ssh+theirs+far+x work\0" in heard

    run(work, tmp_path)


def test_the_user_is_told_but_not_flooded(tmp_path: Path) -> None:
    async def work(world: World) -> None:
        prompter = await Peer.at(world.settings.prompt_socket)
        await asyncio.sleep(0.05)
        assert await world.call("ok+a") == ALLOW
        assert await prompter.read() == {"notify": {
            "resolution": "allow", "source": "work", "service": "ok", "argument": "+a", "target": "vault",
            "suppressed": 0,
        }}  # fmt: skip
        assert await world.call("ok", "fails") == DENY
        assert (await prompter.read())["notify"]["resolution"] == "fail"
        await world.call("no.Tell")
        for _ in range(20):
            assert await world.call("nothing") == DENY
        told = 0
        with pytest.raises(TimeoutError):
            while True:
                assert (await asyncio.wait_for(prompter.read(), 0.2))["notify"]["service"] == "nothing"
                told += 1
        assert told == asking.NOTES_AT_ONCE - 2

    run(work, tmp_path)


def test_a_broken_policy_raises_an_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(world: World) -> None:
        assert policy_state(world.policy) == "8 rules"
        world.file.write_text("ok * work vault allow\nnonsense")
        for _ in range(100):
            await asyncio.sleep(0.02)
            if "THE POLICY IS BROKEN" in caplog.text:
                break
        assert "30-user.policy:2: a rule is" in caplog.text
        assert policy_state(world.policy).startswith("BROKEN, every call is denied: 30-user.policy:2: ")
        world.file.write_text(POLICY)
        assert await world.call("ok") == ALLOW

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
