"""Makes the world fit the store after a daemon was killed: adopts qubes that run, clears what was half done."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping

from casemate.engine.create import Creator
from casemate.engine.disposables import Disposables
from casemate.engine.lifecycle import Lifecycle
from casemate.engine.machine import TARGETS
from casemate.host import card_records
from casemate.host.hypervisor import Hypervisor, MachineInfo, PowerState
from casemate.model.domain import Domain
from casemate.settings import Settings
from casemate.storage.pools import Pools
from casemate.store.store import Store
from casemate.wire.errors import CasemateError

log = logging.getLogger(__name__)


async def reconcile(
    settings: Settings,
    store: Store,
    hypervisor: Hypervisor,
    pools: Pools,
    lifecycle: Lifecycle,
    creator: Creator,
    disposables: Disposables,
) -> None:
    """Runs once, before the daemon serves anybody. What goes wrong with one qube is logged and stops no other."""
    await creator.clean_up()
    running = await _running_machines(store, hypervisor)
    for domain in store.snapshot().domains.values():
        if domain.klass in ("AdminVM", "RemoteVM"):
            continue
        info = running.get(domain.name)
        try:
            if info is not None and await lifecycle.adopt(domain, info):
                continue
            if _has_left_overs(settings, pools, domain):
                await lifecycle.clear(domain)
            await disposables.remove_halted(domain.name)
        except CasemateError as error:
            log.error("%s: %s", domain.name, error)
    _remove_unknown_directories(settings, store)


async def _running_machines(store: Store, hypervisor: Hypervisor) -> Mapping[str, MachineInfo]:
    """Machines that run, by the name of their qube. Machines of ours that no qube of the store has are removed."""
    names = {domain.uuid: domain.name for domain in store.snapshot().domains.values()}
    running = {}
    for info in await hypervisor.list():
        name = names.get(info.uuid)
        if name is None:
            log.warning("ending machine %s, which the store does not know", info.name)
            await hypervisor.destroy(info.uuid)
            await hypervisor.undefine(info.uuid)
        elif info.state is not PowerState.HALTED:
            running[name] = info
    return running


def _has_left_overs(settings: Settings, pools: Pools, domain: Domain) -> bool:
    """True when something of a start is still there, though the qube does not run."""
    run = settings.qube_run(domain.name)
    if any(path.exists() for path in (run, run.with_suffix(".up"), run.with_suffix(".link"))):
        return True
    volumes = (volume for volume in domain.volumes.values() if volume is not None and volume.name in TARGETS)
    return any(pools.of(volume).has_left_overs(volume) for volume in volumes)


def _remove_unknown_directories(settings: Settings, store: Store) -> None:
    """Run-time directories and marks of qubes that were removed while no daemon ran. What is known of their cards stays
    until the cards are back (``CardUplinks.reclaim``)."""
    known = set(store.snapshot().domains)
    directory = settings.run / "qubes"
    for path in directory.iterdir() if directory.is_dir() else []:
        if path.name.partition(".")[0] not in known and path.suffix != card_records.SUFFIX:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
