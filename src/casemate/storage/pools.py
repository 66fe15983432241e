"""The pools of the store: which pool a volume lies in, opened by its driver."""

from __future__ import annotations

from collections.abc import Mapping

from casemate.host.process import Runner
from casemate.model.system import PoolConfig
from casemate.model.volumes import Volume
from casemate.settings import Settings
from casemate.storage.driver import Driver, Opening
from casemate.storage.pool import Pool
from casemate.store.store import Store
from casemate.wire.errors import PoolNotFoundError, printable


class Pools:
    """Opens each pool once. A pool object holds the locks of its volumes, so there must be only one for its files."""

    def __init__(
        self, settings: Settings, runner: Runner, store: Store, group: int | None, drivers: Mapping[str, Driver]
    ) -> None:
        """``group``: see Opening. ``drivers``: by name, as ``storage.drivers.load`` returns them."""
        self._settings = settings
        self._runner = runner
        self._store = store
        self._group = group
        self.drivers = drivers
        self._opened: dict[tuple[str, str, tuple[tuple[str, str], ...]], Pool] = {}

    def of(self, volume: Volume) -> Pool:
        """The pool of a volume. PoolNotFoundError when the store has none of that name, or this host not the driver."""
        config = self._store.snapshot().pools.get(volume.pool)
        if config is None:
            raise PoolNotFoundError(f"No such pool: {printable(volume.pool)!r}")
        return self._open(config)

    def named(self, name: str) -> Pool:
        """The pool of that name; PoolNotFoundError."""
        return self._open(self._store.snapshot().pool(name))

    async def prepare(self, config: PoolConfig) -> None:
        """See that a pool could hold volumes, before it is in the store; StorageError says why it could not."""
        directory = self._settings.state / "pools" / config.name
        opening = Opening(config.options, directory, self._runner, self._group)
        await self.drivers[config.driver].open(opening).prepare()

    async def room(self, name: str) -> tuple[int, int] | None:
        """Size and used bytes of what a pool lies on; None while that cannot be known."""
        config = self._store.snapshot().pool(name)
        # A collection from another host can have pools whose driver is not here. They are shown all the same.
        return await self._open(config).room() if config.driver in self.drivers else None

    def _open(self, config: PoolConfig) -> Pool:
        driver = self.drivers.get(config.driver)
        if driver is None:
            raise PoolNotFoundError(f"Pool {config.name} has driver {config.driver}, which this host does not have")
        key = (config.name, driver.name, driver.location(config.options))
        if key not in self._opened:
            directory = self._settings.state / "pools" / config.name
            self._opened[key] = driver.open(Opening(config.options, directory, self._runner, self._group))
        return self._opened[key]
