"""The changes that lead from one system to another: what to announce when another program changed the file."""

from __future__ import annotations

from collections.abc import Iterator

from casemate.model import changes as ch
from casemate.model.domain import Domain
from casemate.model.properties import Holder
from casemate.model.qube import State
from casemate.model.system import System


def changes_between(old: System, new: System) -> list[ch.Change]:
    """Additions first, then changes in place, then removals: in this order no reference points to nothing."""
    found: list[ch.Change] = []
    found += [ch.LabelAdded(name) for name in new.labels if name not in old.labels]
    found += [ch.PoolAdded(name) for name in new.pools if name not in old.pools]
    removed = []
    before = {str(state.values["name"]): state for state in old.domains.states()}
    after = {str(state.values["name"]): state for state in new.domains.states()}
    same = []
    for name, state in after.items():
        was = before.get(name)
        if was is state:
            continue
        if was is None or _is_another(was, state):
            found.append(ch.DomainAdded(name, state.klass.class_name))
        else:
            same.append(name)
    for name, was in before.items():
        now = after.get(name)
        if now is None or (now is not was and _is_another(was, now)):
            removed.append(ch.DomainRemoved(name, was.klass.class_name))
    found += _properties(old, new)
    for name in same:
        found += _domain(old.domains[name], new.domains[name])
    found += [ch.PoolChanged(n) for n, pool in new.pools.items() if n in old.pools and old.pools[n] != pool]
    found += removed
    found += [ch.PoolRemoved(name) for name in old.pools if name not in new.pools]
    found += [ch.LabelRemoved(name) for name in old.labels if name not in new.labels]
    return found


def _is_another(old: State, new: State) -> bool:
    """Whether another qube has the name now: one was removed, and one created."""
    return old.klass is not new.klass or old.values["uuid"] != new.values["uuid"]


def _properties(old: Holder, new: Holder) -> Iterator[ch.Change]:
    was, now = old.values(), new.values()
    for name in sorted({*was, *now}):
        if name in now and (name not in was or was[name] != now[name]):
            had_old, text = old.announced(name)
            yield ch.PropertySet(new.subject(), name, new.announced(name)[1], text, had_old)
        elif name not in now:
            had_old, text = old.announced(name)
            yield ch.PropertyReset(new.subject(), name, text, had_old)


def _domain(old: Domain, new: Domain) -> Iterator[ch.Change]:
    yield from _properties(old, new)
    name = new.name
    was, now = old.state, new.state
    for feature, value in sorted(now.features.items()):
        if was.features.get(feature) != value:
            yield ch.FeatureSet(name, feature, value, was.features.get(feature))
    for feature in sorted(was.features.keys() - now.features.keys()):
        yield ch.FeatureRemoved(name, feature, was.features[feature])
    for tag in sorted(now.tags - was.tags):
        yield ch.TagAdded(name, tag)
    for tag in sorted(was.tags - now.tags):
        yield ch.TagRemoved(name, tag)
    for device in sorted(now.devices):
        before, after = was.devices.get(device), now.devices[device]
        if before is None:
            yield ch.DeviceAssigned(name, device.devclass, str(device), after.options)
        elif before != after:
            yield ch.DeviceAssignmentChanged(name, device.devclass, str(device))
    for device in sorted(was.devices.keys() - now.devices.keys()):
        yield ch.DeviceUnassigned(name, device.devclass, str(device))
    for volume in sorted({*was.volumes, *now.volumes}):
        if was.volumes.get(volume) != now.volumes.get(volume):
            yield ch.VolumeChanged(name, volume)
