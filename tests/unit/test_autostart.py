"""Qubes that start with the host do so once a boot, and one that cannot start keeps no other from it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from casemate.daemon.autostart import Autostart
from casemate.wire.errors import StartError
from tests.builders import settings_in, small_system


class Host:
    """A boot id in a file, and a record of starts; ``broken`` qubes cannot start."""

    def __init__(self, directory: Path) -> None:
        self.settings = settings_in(directory)
        self.settings.run.mkdir()
        self.boot_id = directory / "boot_id"
        self.boot_id.write_text("first\n")
        self.system = small_system()
        for name in ("work", "net"):
            self.system.domains[name].autostart = True
        self.started: list[str] = []
        self.broken: set[str] = set()
        self.hold = asyncio.Event()
        self.hold.set()

    async def start(self, name: str) -> None:
        await self.hold.wait()
        self.started.append(name)
        if name in self.broken:
            raise StartError(f"Cannot start {name}")

    def autostart(self) -> Autostart:
        return Autostart(self.settings, lambda: self.system, self.start, self.boot_id)


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0)


def test_qubes_start_at_the_first_start_of_the_daemon_after_each_boot(tmp_path: Path) -> None:
    async def main() -> None:
        host = Host(tmp_path)
        host.broken = {"net"}
        first = host.autostart()
        first.begin()
        await until(lambda: host.started == ["net", "work"])
        await first.close()
        for _ in range(2):  # daemons that replace it
            again = host.autostart()
            again.begin()
            await again.close()
        assert host.started == ["net", "work"]
        host.boot_id.write_text("second\n")
        host.autostart().begin()
        await until(lambda: host.started == ["net", "work"] * 2)

    asyncio.run(main())


def test_a_daemon_that_ends_starts_no_more(tmp_path: Path) -> None:
    async def main() -> None:
        host = Host(tmp_path)
        host.hold.clear()
        one = host.autostart()
        one.begin()
        await asyncio.sleep(0)
        await one.close()
        host.hold.set()
        await asyncio.sleep(0)
        assert host.started == []
        assert (host.settings.run / "boot-id").read_text() == "first\n", "a start that fails is not tried for ever"

    asyncio.run(main())


def test_a_host_without_boot_ids_starts_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        host = Host(tmp_path)
        host.boot_id.unlink()
        one = host.autostart()
        one.begin()
        await one.close()
        assert host.started == [] and "no qube is started by itself" in caplog.text

    asyncio.run(main())
