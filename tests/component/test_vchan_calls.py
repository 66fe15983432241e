"""Calls over vchan: our daemon and our agent, each against another implementation and against each other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.component.vchan_place import ME, VchanPlace
from tests.fakes import foreign_qrexec as foreign

DATA = random.Random(7).randbytes(1_500_000)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[VchanPlace]:
    made = VchanPlace(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("version", [2, 3, 4])
def test_a_foreign_agent_serves_a_call_of_a_foreign_client(place: VchanPlace, version: int) -> None:
    place.daemon("5:work")
    agent = foreign.Agent(place.vchan, 5, version)
    agent.start()
    found = place.client("work").call("DEFAULT:QUBESRPC echo dom0", DATA)
    assert (found.status, found.stdout) == (3, DATA)
    assert found.stderr == b"user:QUBESRPC echo+ dom0\n"
    agent.close()


@pytest.mark.parametrize("version", [2, 3, 4])
def test_our_agent_serves_a_foreign_daemon(place: VchanPlace, version: int) -> None:
    place.service("echo", "cat; echo $QREXEC_REMOTE_DOMAIN:$QREXEC_SERVICE_FULL_NAME >&2; exit 7")
    place.agent(5)
    daemon = foreign.Daemon(place.vchan, 5, version)
    assert daemon.agent_version == 4
    found = daemon.call(f"{ME}:QUBESRPC echo+a dom0", DATA)
    assert (found.status, found.stdout, found.stderr) == (7, DATA, b"dom0:echo+a\n")


def test_a_call_from_qube_to_qube(place: VchanPlace) -> None:
    place.service("echo", "cat; echo $QREXEC_REMOTE_DOMAIN >&2; exit 7")
    place.policy()
    place.daemon("5:work::" + ME, "6:vault::" + ME)
    place.agent(5)
    place.agent(6)
    place.up("work")
    place.up("vault")
    for _ in range(20):
        found = place.client_vm(5).call("vault", "echo", DATA[:100_000])
        assert (found.status, found.stdout, found.stderr) == (7, DATA[:100_000], b"work\n")


def test_many_calls_at_once(place: VchanPlace) -> None:
    place.service("echo", "exec cat")
    place.policy()
    place.daemon("5:work::" + ME, "6:vault::" + ME)
    place.agent(5)
    place.agent(6)
    client = place.client("vault")
    place.up("work")

    def one(number: int) -> bool:
        data = DATA[: number * 10]
        if number % 2:
            found = client.call("DEFAULT:QUBESRPC echo dom0", data)
        else:
            found = place.client_vm(5).call("vault", "echo", data)
        return (found.status, found.stdout) == (0, data)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(300)))
