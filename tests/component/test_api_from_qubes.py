"""Admin API calls of qubes: the real broker, policy and API; the test asks for calls as a link does."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from casemate.api.events import MAX_OF_ONE_QUBE, Subscriptions
from casemate.api.guest_calls import GuestCalls
from casemate.api.methods import METHODS
from casemate.model.devices import Assignment, DeviceRef
from casemate.qrexec.broker import Broker
from casemate.qrexec.decide import Permissions
from casemate.qrexec.evaluate import SystemInfo
from casemate.qrexec.files import PolicyFiles, default_policy
from casemate.qrexec.listener import CallListener
from casemate.qrexec.system import system_info
from casemate.store.store import Store
from casemate.wire.admin import EventReader, failure
from casemate.wire.call_data import CallerSide
from casemate.wire.errors import PermissionDeniedError
from casemate.wire.qrexec import DATA_STDIN, DATA_STDOUT, HEADER
from tests.builders import settings_in
from tests.fakes.parts import FakeParts

DENIED = failure(PermissionDeniedError())
REFUSED = (None, b"")
"""What a caller sees of a call that the policy, or nobody, serves: the link tells it nothing but a refusal."""

POLICY = """
admin.vm.List           *       mgmt  @adminvm    allow
admin.vm.List           *       mgmt  @tag:ours   allow target=dom0
admin.Events            *       mgmt  @adminvm    allow
admin.Events            *       mgmt  @tag:ours   allow target=dom0
admin.casemate.List     *       mgmt  @adminvm    allow
admin.casemate.List     *       mgmt  @tag:ours   allow
admin.casemate.device.Held *    mgmt  @adminvm    allow
admin.casemate.device.Held *    mgmt  @tag:ours   allow target=dom0
admin.label.List        *       mgmt  dom0        allow
admin.vm.Create.AppVM   *       mgmt  dom0        allow
admin.vm.CreateDisposable *     mgmt  dom0        allow
admin.vm.property.Get   *       mgmt  secret      deny
admin.vm.property.Get   +uuid   mgmt  mine        deny
admin.vm.property.Get   *       mgmt  @anyvm      allow target=dom0
admin.vm.property.Set   *       mgmt  @tag:ours   allow
admin.vm.feature.Set    *       mgmt  @tag:ours   allow target=dom0
admin.vm.tag.Set        *       mgmt  @tag:ours   allow target=dom0
admin.vm.volume.CloneFrom *     mgmt  @tag:ours   allow target=dom0
admin.vm.volume.CloneTo *       mgmt  @tag:ours   allow target=dom0
admin.vm.nonsense       *       mgmt  @tag:ours   allow target=dom0
admin.vm.Start          *       mgmt  @tag:ours   allow target=dom0
admin.vm.tag.List       *       mgmt  other       allow target=mine
"""


class World:
    def __init__(self, directory: Path) -> None:
        self.settings = settings_in(directory)
        self.settings.policy_dir.mkdir()
        (self.settings.policy_dir / "30-test.policy").write_text(POLICY)
        (self.settings.policy_dir / "90-default.policy").write_text(default_policy())
        self.store = Store(self.settings.store_file)
        self.parts = FakeParts(self.store)
        with self.store.write() as transaction:
            add = transaction.system.add
            add("TemplateVM", "deb", uuid=uuid4())
            for name in ("mgmt", "mine", "theirs", "secret", "other"):
                add("AppVM", name, uuid=uuid4(), template="deb")
            for name in ("mine", "deb"):
                transaction.system.domains[name].tags.add("ours")

    async def open(self) -> None:
        events = Subscriptions(self.store)

        async def refuse(*_: object) -> str:
            raise AssertionError("no other service is asked for here")

        async def on_host(stream: socket.socket, source: str, service: str, arg: str, target: str) -> None:
            await self.calls.serve(stream, source, service, arg, target)

        info: Callable[[], SystemInfo] = lambda: system_info(self.store.snapshot(), lambda name: "Halted")
        policy = PolicyFiles(self.settings.policy_dir)
        self.listener = CallListener(self.settings)
        power = SimpleNamespace(is_running=lambda name: False, start=refuse)
        disposables = SimpleNamespace(create=refuse, end=refuse)
        self.broker = Broker(self.settings, self.listener, policy, info, power, disposables, on_host)
        self.permissions = Permissions(policy, info)
        self.context = self.parts.context(events, self.permissions)
        self.calls = GuestCalls(self.context, request_seconds=0.5)
        self.listening: set[str] = set()

    @asynccontextmanager
    async def connect(self, service: str, target: str, source: str = "mgmt") -> AsyncIterator[socket.socket | None]:
        """The call stream, or None where the call is refused."""
        if source not in self.listening:
            self.settings.qube_run(source).mkdir(parents=True, exist_ok=True)
            await self.listener.open(source)
            self.listening.add(source)
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, str(self.settings.qube_run(source) / "broker.sock"))
            await loop.sock_sendall(connection, json.dumps({"service": service, "target": target}).encode() + b"\n")
            ready = asyncio.Event()
            loop.add_reader(connection, ready.set)
            await ready.wait()
            loop.remove_reader(connection)
            answer, fds, _flags, _address = socket.recv_fds(connection, 4096, 1)
            assert json.loads(answer) == {"result": "allow" if fds else "deny"}
            if not fds:
                yield None
                return
            with socket.socket(fileno=fds[0]) as stream:
                stream.setblocking(False)
                yield stream

    async def call(
        self, service: str, target: str = "dom0", payload: bytes = b"", source: str = "mgmt"
    ) -> tuple[int | None, bytes]:
        """Exit status and output; (None, b"") for a refusal."""
        async with self.connect(service, target, source) as stream:
            if stream is None:
                return REFUSED
            loop = asyncio.get_running_loop()
            try:
                for at in range(0, len(payload), 60000):
                    part = payload[at : at + 60000]
                    await loop.sock_sendall(stream, HEADER.pack(DATA_STDIN, len(part)) + part)
                await loop.sock_sendall(stream, HEADER.pack(DATA_STDIN, 0))
            except (BrokenPipeError, ConnectionResetError):
                pass
            side, out = CallerSide(), b""
            while side.exit_code is None:
                data = await loop.sock_recv(stream, 65536)
                if not data:
                    break
                out += b"".join(bytes(view) for kind, view in side.feed(data) if kind == DATA_STDOUT)
            return side.status(), out


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(world: World, test: Callable[[], Awaitable[None]]) -> None:
    async def inner() -> None:
        await world.open()
        try:
            async with asyncio.timeout(60):
                await test()
        finally:
            await world.listener.close_all()
            await world.broker.close()
            world.context.events.close()

    asyncio.run(inner())


def test_policy_decides_and_lists_show_what_may_be_seen(world: World) -> None:
    async def test() -> None:
        status, out = await world.call("admin.vm.List")
        assert status == 0 and out.startswith(b"0\0")
        assert [line.split()[0] for line in out[2:].decode().splitlines()] == ["dom0", "deb", "mgmt", "mine"]
        for target in ("mine", f"uuid:{world.store.snapshot().domains['mine'].uuid_text}"):
            status, out = await world.call("admin.vm.List", target)
            assert out.startswith(b"0\0mine class=AppVM state=Halted ")
        _, out = await world.call("admin.casemate.List", "dom0", b'{"qubes": ["mine", "secret"]}')
        assert [entry["name"] for entry in json.loads(out[2:])] == ["mine"]
        assert (await world.call("admin.label.List", "@adminvm"))[1].startswith(b"0\0red\n")
        assert await world.call("admin.vm.Start", "mine") == (0, b"0\0")
        assert "mine" in world.parts.machines
        assert await world.call("admin.vm.property.Set+memory", "mine", b"512") == (0, b"0\0")
        assert world.store.snapshot().domains["mine"].memory == 512

    run(world, test)


def test_who_has_devices_is_told_of_qubes_that_may_be_seen(world: World) -> None:
    with world.store.write() as transaction:
        for name in ("mine", "secret"):
            device = DeviceRef("block", "dom0", f"for-{name}")
            transaction.system.domains[name].devices.add(Assignment(device, "required"))

    async def test() -> None:
        _, out = await world.call("admin.casemate.device.Held", "dom0")
        assert [entry["qube"] for entry in json.loads(out[2:])] == ["mine"] and b"secret" not in out

    run(world, test)


def test_every_refusal_is_the_same(world: World) -> None:
    """Denied, unknown method, missing qube, wrong target, superfluous argument: nobody can tell one from another."""

    async def test() -> None:
        for service, target in (
            ("admin.vm.property.Get+memory", "secret"),
            ("admin.vm.property.Get+memory", "nobody"),
            ("admin.vm.property.Get+memory", "uuid:00000000-0000-0000-0000-00000000ffff"),
            ("admin.vm.property.Get+memory", "@default"),
            ("admin.vm.property.Get+uuid", "mine"),
            ("admin.vm.property.Get", "mine"),
            ("admin.vm.nonsense", "mine"),
            ("admin.nosuch.Method", "dom0"),
            ("admin.label.List+arg", "dom0"),
            ("admin.vm.Start+arg", "mine"),
            ("admin.vm.Start", "theirs"),
            ("admin.vm.Start", "nobody"),
            ("admin.vm.Start", "dom0"),
            ("admin.pool.List", "dom0"),
            ("admin.pool.Info+nosuch", "dom0"),
            ("policy.List", "dom0"),
        ):
            assert await world.call(service, target) == REFUSED, (service, target)
        for method in METHODS:
            for target in ("dom0", "theirs", "nobody", "mine"):
                assert await world.call(method, target, source="other") == REFUSED, (method, target)

    run(world, test)


def test_a_qube_that_names_itself_is_served_as_the_rules_redirect_it(world: World) -> None:
    # Denied only where the call would end at the caller itself, as upstream does.
    async def test() -> None:
        status, answer = await world.call("admin.vm.property.Get+memory", "mgmt")
        assert status == 0 and answer.startswith(b"0\0default=")

    run(world, test)


def test_what_may_not_be_seen_may_not_be_named_either(world: World) -> None:
    async def test() -> None:
        for name in (b"secret", b"nobody"):
            assert await world.call("admin.vm.property.Set+netvm", "mine", name) == (0, DENIED)
            made = await world.call(f"admin.vm.Create.AppVM+{name.decode()}", "dom0", b"name=new label=red")
            assert made == (0, DENIED)
        assert await world.call("admin.vm.Create.AppVM+deb", "dom0", b"name=new label=red") == (0, b"0\0")
        new = world.store.snapshot().domains["new"]
        assert list(new.tags) == ["created-by-mgmt"]
        for service in ("admin.vm.tag.Set+created-by-dom0", "admin.vm.feature.Set+preload-dispvm"):
            assert await world.call(service, "mine", b"" if "tag" in service else b"1") == (0, DENIED)
        token = world.context.tokens.issue("secret", "private")
        _, out = await world.call("admin.vm.volume.CloneTo+private", "mine", token.encode())
        assert out.startswith(b"2\0QubesVolumeCopyTokenNotFoundError\0")
        _, out = await world.call("admin.vm.CreateDisposable", "dom0")
        assert out.startswith(b"2\0QubesVMError\0") and b"disposables" in out

    run(world, test)


def test_events_are_of_what_may_be_seen(world: World) -> None:
    async def test() -> None:
        async with world.connect("admin.Events", "dom0") as stream:
            assert stream is not None
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stream, HEADER.pack(DATA_STDIN, 0))
            side, reader = CallerSide(), EventReader()

            async def more() -> list[tuple[str, str]]:
                data = await loop.sock_recv(stream, 65536)
                found = b"".join(bytes(view) for kind, view in side.feed(data) if kind == DATA_STDOUT)
                return [(event.subject or event.details.get("vm", ""), event.name) for event in reader.feed(found)]

            got = await more()
            for name in ("secret", "mine"):
                with world.store.write() as transaction:
                    transaction.system.domains[name].features.set("a", "b")
                    transaction.system.domains[name].tags.add("t")
            await world.parts.qubes.create("AppVM", "hidden", "red", "deb")
            await world.parts.qubes.remove("hidden")
            await world.parts.power.start("secret")
            await world.parts.power.start("mine")
            await world.parts.power.kill("mine")
            await world.parts.qubes.remove("mine")
            while got[-1:] != [("mine", "domain-delete")]:
                got += await more()
            assert got == [
                ("", "connection-established"),
                ("mine", "domain-feature-pre-set:a"),
                ("mine", "domain-feature-set:a"),
                ("mine", "domain-tag-add:t"),
                ("mine", "domain-pre-start"),
                ("mine", "domain-start"),
                ("mine", "domain-shutdown"),
                ("mine", "domain-pre-delete"),
                ("mine", "domain-delete"),
            ]

    run(world, test)


def test_a_qube_cannot_take_more_than_its_share(world: World) -> None:
    async def test() -> None:
        for payload in (b"x" * 70_000, b"x" * 300_000):
            status, out = await world.call("admin.vm.feature.Set+a", "mine", payload)
            assert (status, out[:16]) == (0, b"2\0ProtocolError\0")
        async with world.connect("admin.vm.feature.Set+a", "mine") as slow:
            assert slow is not None
            loop = asyncio.get_running_loop()
            data = b""
            while more := await loop.sock_recv(slow, 65536):  # nothing is sent: the clock ends it
                data += more
            assert b"ProtocolError" in data
        async with world.connect("admin.vm.feature.Set+a", "mine") as rude:
            assert rude is not None
            await loop.sock_sendall(rude, HEADER.pack(0x191, 4) + b"oops")
            with pytest.raises(ConnectionResetError):
                if not await loop.sock_recv(rude, 100):
                    raise ConnectionResetError
        streams = []
        for _ in range(MAX_OF_ONE_QUBE + 1):
            manager = world.connect("admin.Events", "dom0")
            stream = await manager.__aenter__()
            assert stream is not None
            await loop.sock_sendall(stream, HEADER.pack(DATA_STDIN, 0))
            streams.append((manager, stream, await loop.sock_recv(stream, 65536)))
        assert [b"connection-established" in data for *_, data in streams] == [True] * MAX_OF_ONE_QUBE + [False]
        for manager, *_ in streams:
            await manager.__aexit__(None, None, None)
        assert (await world.call("admin.label.List"))[0] == 0

    run(world, test)


def test_a_broken_policy_lets_nothing(world: World) -> None:
    async def test() -> None:
        (world.settings.policy_dir / "40-bad.policy").write_text("this is no rule\n")
        assert await world.call("admin.label.List") == REFUSED
        assert not world.permissions.allows("mgmt", "admin.vm.List", "", "mine")

    run(world, test)


def test_a_rule_that_names_another_qube_replaces_what_the_call_is_about(tmp_path: Path) -> None:
    async def body() -> None:
        world = World(tmp_path)
        await world.open()
        status, out = await world.call("admin.vm.tag.List", "other")
        assert status == 0
        assert b"ours" in out  # a tag of "mine", which "other" does not have
        await world.listener.close_all()
        await world.broker.close()

    asyncio.run(body())


def test_what_a_qube_says_of_itself_is_answered_by_a_status_and_limited(world: World) -> None:
    async def test() -> None:
        assert await world.call("qubes.NotifyUpdates", "dom0", b"3") == (0, b"")
        assert world.store.snapshot().domains["deb"].features["updates-available"] == "1"
        assert await world.call("qubes.NotifyUpdates", "dom0", b"many") == (1, b"")
        assert await world.call("internal.GetSystemInfo", "dom0") == REFUSED
        for service, target in (("qubes.NotifyUpdates", "mine"), ("qubes.NotifyUpdates+x", "dom0")):
            assert await world.call(service, target, b"3") == REFUSED
        answers = [(await world.call("qubes.NotifyUpdates", "dom0", b"0")) for _ in range(12)]
        assert answers[0] == (0, b"") and answers[-1] == REFUSED
        assert await world.call("qubes.NotifyUpdates", "dom0", b"0", source="other") == (0, b"")

    run(world, test)
