"""A start from a warm image: what an agent must say, and what happens when the image is of no use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casemate.daemon.wiring import Parts
from casemate.engine.warm_image import BUILDING, WarmImage
from casemate.host.hypervisor import PowerState
from casemate.model.domain import Domain
from casemate.model.volumes import Volume
from casemate.wire.errors import HypervisorError, StartError
from tests.fakes.engine import Engine


def run(directory: Path, work: Callable[[Engine, Parts], object]) -> None:
    async def scenario() -> None:
        engine = Engine(directory)
        parts = await engine.daemon()
        async with asyncio.timeout(60):
            await work(engine, parts)  # type: ignore[misc]
        await parts.listener.close_all()

    asyncio.run(scenario())


def give_image(parts: Parts, directory: Path) -> list[str]:
    """Let every start find an image, until it is dropped; what was dropped is in the list."""
    dropped: list[str] = []

    async def find(_domain: Domain) -> WarmImage | None:
        return None if dropped else WarmImage("abc", directory, "deb", (), 0.0, 0.0, 0)

    async def drop(key: str) -> bool:
        dropped.append(key)
        return True

    parts.images.find = find  # type: ignore[method-assign]
    parts.images.drop = drop  # type: ignore[method-assign]
    return dropped


def say(engine: Engine, agent: dict[str, Any]) -> None:
    """Let agents answer with this."""

    async def ask(_name: str, _timeout: float, **_request: object) -> dict[str, Any]:
        return {"ready": True, "agent": agent}

    engine.links.ask = ask  # type: ignore[assignment, method-assign]


def test_an_agent_that_took_an_identity_of_its_own_is_believed(tmp_path: Path) -> None:
    async def work(engine: Engine, parts: Parts) -> None:
        dropped = give_image(parts, tmp_path)
        say(engine, {"identity": "renewed"})
        await parts.lifecycle.start("work")
        assert not dropped and parts.context.states.of("work") is PowerState.RUNNING

    run(tmp_path, work)


@pytest.mark.parametrize("agent", [{}, {"identity": "own"}, {"identity": "none"}, {"identity": ["renewed"]}])
def test_one_that_does_not_say_so_is_ended_and_the_qube_boots(tmp_path: Path, agent: dict[str, Any]) -> None:
    async def work(engine: Engine, parts: Parts) -> None:
        dropped = give_image(parts, tmp_path)
        say(engine, agent)
        await parts.lifecycle.start("work")
        assert dropped == ["abc"], "the image is of no use to anybody else either"
        assert parts.context.states.of("work") is PowerState.RUNNING

    run(tmp_path, work)


def test_a_qube_that_can_neither_go_on_nor_boot_leaves_nothing(tmp_path: Path) -> None:
    async def work(engine: Engine, parts: Parts) -> None:
        dropped = give_image(parts, tmp_path)
        engine.links.silent.add("work")
        with pytest.raises(StartError, match="did not answer"):
            await parts.lifecycle.start("work")
        assert dropped == ["abc"] and engine.left() == set()

    run(tmp_path, work)


def test_an_agent_that_knows_no_images_becomes_none(tmp_path: Path) -> None:
    """It would have drawn its random numbers already, and every guest of the image would draw the same."""

    async def work(engine: Engine, parts: Parts) -> None:
        with engine.store.write() as transaction:
            transaction.system.domains["work"].features[BUILDING] = "1"
        # The second has taken no identity, but has mounted the private disk: another qube's would be written over.
        for agent in ({"boot_id": "x"}, {"identity": "none"}, {"identity": "private is mounted"}):
            say(engine, agent)
            with pytest.raises(StartError, match="knows no warm images"):
                await parts.lifecycle.start("work")
            assert engine.left() == set()
        say(engine, {"identity": "none, private later"})
        await parts.lifecycle.start("work")

    run(tmp_path, work)


@pytest.mark.parametrize("outdated", [True, False])
def test_an_image_whose_template_changed_meanwhile_is_not_kept(tmp_path: Path, outdated: bool) -> None:
    """Its disks are the old ones, while its key would be that of the new."""
    kept: list[str] = []

    class Pool:
        """A pool in which the source of a volume was replaced, or was not."""

        def is_outdated(self, volume: Volume) -> bool:
            return outdated and volume.name == "root"

        async def keep_for_image(self, volume: Volume, _image: str) -> None:
            kept.append(volume.name)

    async def work(engine: Engine, parts: Parts) -> None:
        async def key(_domain: Domain) -> str:
            return "abc"

        async def save(_uuid: object, directory: Path) -> None:
            for name in ("memory", "state"):
                (directory / name).touch()

        parts.images.key = key  # type: ignore[method-assign]
        parts.images._pools.of = lambda _volume: Pool()  # type: ignore[assignment, method-assign, return-value]
        parts.hypervisor.save_image = save  # type: ignore[method-assign]
        qube = engine.store.snapshot().domains["work"]
        if outdated:
            with pytest.raises(HypervisorError, match="changed while the image was made"):
                await parts.images.save(qube)
            assert not kept and not parts.images.list()
        else:
            image = await parts.images.save(qube)
            assert kept == ["root", "volatile"] and parts.images.list() == [image]

    run(tmp_path, work)
