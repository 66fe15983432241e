"""The events of the Admin API, one class each: to make an object of a class is the only way to name an event.

A class says which names its event has on the wire, whom it is about, and by its fields which details come with it.
Whoever announces one makes an object and hands it to the engine's bus, or to `Subscriptions`; ``frames()`` is what
subscribers get (``api_event.py``). The reference page of events is written from the classes. Names and details are
those of Qubes OS.

::

    store's changes ──> api/events.py ─┐
    engine ──> Bus ────────────────────┼──> ApiEvent ──> frames() ──> subscribers
    api handlers ──────────────────────┘

This module is for the daemon alone. Clients and guests get `Event`, the plain frame of ``wire/admin.py``, because they
may meet names that they do not know.
"""

from __future__ import annotations

from casemate.wire.admin import CONNECTED
from casemate.wire.api_event import QubeEvent, SystemEvent

# ------------------------------------------------------------------------------------------------- subscription


class Connected(SystemEvent, names=CONNECTED):
    """First of all, also after the daemon was replaced: what was known before may be stale."""

    group = "Subscription"


# ----------------------------------------------------------------------------------------------------- settings


class _Settings(QubeEvent):
    group = "Settings"


class PropertySet(_Settings, names="property-pre-set:* property-set:*", star="name"):
    """A property was set. About the system, the subject is empty."""

    about = "qube or system"
    name: str
    newvalue: str
    oldvalue: str | None = None


class PropertyReset(
    _Settings, names="property-pre-reset:* property-pre-del:* property-reset:* property-del:*", star="name"
):
    """A property has its default again. About the system, the subject is empty."""

    about = "qube or system"
    name: str
    oldvalue: str | None = None


class PropertyChanged(_Settings, names="property-reset:*", star="name"):
    """A property has another value because what it depends on changed.

    The icon changes with the label, a default with the system's property, the machine's values at start and stop.
    """

    name: str


class FeatureSet(_Settings, names="domain-feature-pre-set:* domain-feature-set:*", star="feature"):
    """A feature was set."""

    feature: str
    value: str
    oldvalue: str | None = None


class FeatureRemoved(_Settings, names="domain-feature-pre-delete:* domain-feature-delete:*", star="feature"):
    """A feature was removed."""

    feature: str


class TagAdded(_Settings, names="domain-tag-add:*", star="tag"):
    """A tag was added to the qube."""

    tag: str


class TagRemoved(_Settings, names="domain-tag-delete:*", star="tag"):
    """A tag was removed from the qube."""

    tag: str


class FirewallChanged(_Settings, names="firewall-changed"):
    """The firewall's rules were set, or are to be read again."""


# ----------------------------------------------------------------------------------------------- life of a qube


class _Life(QubeEvent):
    group = "Life of a qube"


class _Collection(SystemEvent):
    group = "Life of a qube"


class DomainAdded(_Collection, names="domain-add"):
    """A qube was created."""

    vm: str


class DomainCreatedOnDisk(_Life, names="domain-create-on-disk"):
    """The volumes of a new qube exist too."""


class DomainPreDelete(_Collection, names="domain-pre-delete"):
    """A qube is being removed."""

    vm: str


class DomainRemoved(_Collection, names="domain-delete"):
    """A qube was removed."""

    vm: str


class DomainPreStart(_Life, names="domain-pre-start"):
    """A start begins. `mem_required` is in bytes; `start_guid` is the same in all events of one start."""

    start_guid: str
    mem_required: int


class DomainPreSpawn(_Life, names="domain-pre-spawn"):
    """The qube's machine is about to be created."""

    start_guid: str


class DomainSpawn(_Life, names="domain-spawn"):
    """The qube's machine was created, and is still paused."""

    start_guid: str


class DatabaseCreated(_Life, names="domain-qdb-create"):
    """The qube's QubesDB is served."""


class DomainStart(_Life, names="domain-start"):
    """The qube's agent answers: the qube can be used."""

    start_guid: str


class DomainStartFailed(_Life, names="domain-start-failed"):
    """A start was given up; all that it had done was undone."""

    reason: str


class DomainPrePaused(_Life, names="domain-pre-paused"):
    """The qube's processors are about to be stopped."""


class DomainPaused(_Life, names="domain-paused"):
    """The qube's processors were stopped."""


class DomainPreUnpaused(_Life, names="domain-pre-unpaused"):
    """The qube's processors are about to run, also within a start."""


class DomainUnpaused(_Life, names="domain-unpaused"):
    """The qube's processors run, also within a start."""


class DomainPreShutdown(_Life, names="domain-pre-shutdown"):
    """The qube is asked to shut down."""

    force: bool


class DomainShutdownFailed(_Life, names="domain-shutdown-failed"):
    """The qube did not shut down."""

    reason: str


class DomainStopped(_Life, names="domain-stopped"):
    """The qube's machine has ended."""


class DomainShutdown(_Life, names="domain-shutdown"):
    """All that belonged to the machine that ended was cleaned up."""


class PreloadStart(_Life, names="domain-preload-dispvm-start"):
    """Disposables of this template are started before they are asked for, after `delay` seconds."""

    reason: str
    delay: float | None = None


class PreloadUsed(_Life, names="domain-preload-dispvm-used"):
    """A disposable of this template that waited was given away; the next is started after `delay` seconds."""

    dispvm: str
    delay: float


# -------------------------------------------------------------------------------------------- volumes and pools


class _Volumes(QubeEvent):
    group = "Volumes and pools"


class _Pools(SystemEvent):
    group = "Volumes and pools"


class BackupProgress(SystemEvent, names="backup-progress"):
    """A backup by a profile goes on; ``progress`` is a share in percent."""

    group = "Backups"
    backup_profile: str
    progress: str


class TemplateBuildProgress(SystemEvent, names="template-build-progress"):
    """The build of a template goes on or has ended; ``progress`` is the share of its steps that have ended, in percent.
    `admin.casemate.template.Builds` tells more."""

    group = "Templates"
    template: str
    progress: str


class VolumeImportBegin(_Volumes, names="domain-volume-import-begin"):
    """Data for a volume is coming in; `size` in bytes as announced."""

    volume: str
    size: int


class VolumeImportEnd(_Volumes, names="domain-volume-import-end"):
    """The data was put in place (`success` is True), or dropped."""

    volume: str
    success: bool


class PoolAdded(_Pools, names="pool-add"):
    """A storage pool was added."""

    pool: str


class PoolRemoved(_Pools, names="pool-pre-delete pool-delete"):
    """A storage pool was removed."""

    pool: str


# ------------------------------------------------------------------------------------------------------ devices


class _Devices(QubeEvent):
    """``devclass`` is the class of the device, which is in the name of the event alone."""

    group = "Devices"
    star = "devclass"
    unsaid = frozenset({"devclass"})
    devclass: str


class DeviceAdded(_Devices, names="device-added:*"):
    """The qube (dom0: this host) offers one more device."""

    device: str


class DeviceRemoved(_Devices, names="device-removed:*"):
    """The qube no longer offers the device at that port."""

    port: str


class DeviceListChange(_Devices, names="device-list-change:*"):
    """The list of devices that the qube offers changed."""


class DeviceAssigned(_Devices, names="device-pre-assign:* device-assign:*"):
    """A device was assigned to the qube: it gets the device at its start."""

    device: str
    options: dict[str, str]


class DeviceAssignmentChanged(_Devices, names="device-assignment-changed:*"):
    """The mode of an assignment changed."""

    device: str


class DeviceUnassigned(_Devices, names="device-unassign:*"):
    """An assignment was removed."""

    device: str


class DevicePreAttach(_Devices, names="device-pre-attach:*"):
    """A device is about to be attached to the running qube."""

    device: str
    options: dict[str, str]


class DeviceAttach(_Devices, names="device-attach:*"):
    """A device was attached to the running qube."""

    device: str
    options: dict[str, str]


class DevicePreDetach(_Devices, names="device-pre-detach:*"):
    """A device is about to be detached from the running qube."""

    port: str


class DeviceDetach(_Devices, names="device-detach:*"):
    """A device was detached from the running qube."""

    port: str


# --------------------------------------------------------------------------------------- what a qube says of itself


class _Guest(QubeEvent):
    group = "What a qube says of itself"


class FeaturesRequest(_Guest, names="features-request"):
    """The qube asks for features. Those that were taken over are announced as features that were set."""

    untrusted_features: str


class TemplatePostInstall(_Guest, names="template-postinstall"):
    """The template has said for the first time that it can be called."""


# --------------------------------------------------------------------------------------------------- statistics


class Statistics(QubeEvent, names="vm-stats"):
    """Every `stats_interval` seconds, only on the stream of `admin.vm.Stats`.

    Memory in KiB, `cpu_time` in milliseconds since the start, `cpu_usage` in per cent of all the qube's processors.
    """

    group = "Statistics"
    memory_kb: int
    memory_assigned_total: int
    memory_assigned_usable: int
    memory_with_swap_used: int
    cpu_time: int
    cpu_usage: int
    online_vcpus: int


class NetworkStatistics(QubeEvent, names="vm-network-stats"):
    """As often, and on the same stream: one event for each network interface that the host has for the qube.

    `interface` is the name of its tap. Bytes and packets since the tap was made, as the qube sees it: it `sent` or
    `received` them. `dropped` are packets that the host's guard did not let pass, `causes` how many of them by cause,
    such as `spoof=2 firewall=7`. Not an event of Qubes OS.
    """

    group = "Statistics"
    interface: str
    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int
    dropped: int
    causes: str
