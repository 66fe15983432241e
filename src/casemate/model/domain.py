"""Domain: a qube of any class; all its properties are declared here, once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Self
from uuid import UUID

from casemate.model import addresses
from casemate.model.changes import Change, PropertySet, VolumeChanged
from casemate.model.defaults import Computed, FromSystem, FromTemplate
from casemate.model.devices import Assignments
from casemate.model.features import Features
from casemate.model.kinds import (
    Bool,
    Choice,
    DomainRef,
    Identity,
    Int,
    LabelRef,
    Name,
    OptionalInt,
    OptionalText,
    Stored,
    Text,
)
from casemate.model.properties import Holder, Property, Role, Setting
from casemate.model.state import State
from casemate.model.tags import Tags
from casemate.model.volumes import VOLUME_NAMES, Volume, VolumeRule
from casemate.wire.errors import VolumeNotFoundError, printable

if TYPE_CHECKING:
    from casemate.model.system import System

_KERNEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}"
_KEYBOARD = r"[a-z0-9_-]{1,32}\+[A-Za-z0-9_-]{0,32}\+[A-Za-z0-9_:,-]{0,64}"
_MAC = r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}"
_IPV4 = r"(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}"
_IPV6 = r"[0-9a-f:]{2,39}"
_USER = r"[a-z_][a-z0-9_-]{0,31}"
_WORD = r"[A-Za-z0-9._-]*"


class Domain(Holder):
    """A qube, in any class.

    References read as qubes (``domain.netvm``), are kept by name and follow the system the qube is in.
    """

    class_name: ClassVar[str]
    """The name of the class on the wire and in the store."""
    layout: ClassVar[Mapping[str, VolumeRule]] = MappingProxyType({})
    """The volumes that a new qube of this class gets."""
    icon_stem: ClassVar[str] = "appvm"
    template_roles: ClassVar[Role] = Role(0)
    """What a qube must be able to, to be a template of this class."""

    # identity
    name = Property(Name(), setting=Setting.ONCE, doc="Name of the qube.")
    qid = Property(Int(high=65535), setting=Setting.ONCE, doc="Number of the qube; never reused.")
    uuid = Property(Identity(), setting=Setting.ONCE, doc="UUID of the qube, that of its machine too.")
    label = Property(LabelRef(), doc="Colour that tells how far the qube is trusted.")
    klass = Property(
        Text(),
        setting=Setting.READ_ONLY,
        default=Computed(lambda d: d.class_name, "fixed"),
        doc="Class of the qube.",
    )
    icon = Property(
        Text(),
        setting=Setting.READ_ONLY,
        default=Computed(lambda d: d._icon(), "from class and label"),
        doc="Name of the icon.",
    )
    include_in_backups = Property(Bool(), default=True, doc="Whether a backup takes this qube unless told otherwise.")

    # everything configured here
    updateable = Property(
        Bool(),
        role=Role.MANAGED,
        setting=Setting.READ_ONLY,
        default=Computed(lambda d: d._values.get("template") is None, "True where there is no template"),
        doc="Whether software is updated in this qube itself.",
        absent=False,
    )
    default_dispvm = Property(
        DomainRef(optional=True),
        role=Role.MANAGED,
        default=FromSystem("default_dispvm"),
        absent=None,
        doc="Template of the disposables that this qube opens.",
    )
    devices_denied = Property(
        Text(r"([a-z*?][0-9a-f*?]{6})*", what="list of 7-character device interfaces", limit=4096),
        role=Role.MANAGED,
        default="",
        absent="",
        doc="Interfaces of devices that may not be attached.",
    )
    keyboard_layout = Property(
        Text(_KEYBOARD, what="keyboard layout 'layout+variant+options'"),
        role=Role.MANAGED,
        default="us++",
        absent="us++",
        doc="Keyboard layout, three parts joined with '+'.",
    )
    maxmem = Property(
        Int(unit="MiB"),
        role=Role.MANAGED,
        default=FromTemplate(0),
        absent=0,
        doc="Memory up to which the qube may grow; 0 where memory is not balanced.",
    )

    # runs on this host
    memory = Property(
        Int(1, 1 << 24, "MiB"), role=Role.LOCAL, default=FromTemplate(400), doc="Memory the qube starts with."
    )
    vcpus = Property(Int(1, 512), role=Role.LOCAL, default=FromTemplate(2), doc="Number of virtual processors.")
    stubdom_mem = Property(
        OptionalInt(1, 1 << 24, "MiB"), role=Role.LOCAL, default=None, absent=None, doc="Memory of a stub domain."
    )
    virt_mode = Property(
        Choice("pvh", "hvm", "pv"), role=Role.LOCAL, default=FromTemplate("pvh"), doc="How the machine is virtualised."
    )
    kernel = Property(
        OptionalText(_KERNEL_NAME, limit=63, what="name of a kernel"),
        role=Role.LOCAL,
        absent=None,
        default=FromTemplate(FromSystem("default_kernel")),
        doc="Kernel of the host that the qube boots; empty to boot from its own disk.",
    )
    kernelopts = Property(
        Text(limit=512, what="kernel options"),
        role=Role.LOCAL,
        default=FromTemplate("swiotlb=2048"),
        absent="",
        doc="Options for the kernel's command line.",
    )
    bootmode = Property(
        Text(_WORD, limit=128, what="boot mode"),
        role=Role.LOCAL,
        default=Computed(
            lambda d: d.features.check("boot-mode.active", template=True) or "default",
            "feature boot-mode.active, else default",
        ),
        doc="Which of the boot modes that the template offers is used.",
    )
    appvm_default_bootmode = Property(
        Text(_WORD, limit=128, what="boot mode"),
        role=Role.TEMPLATE,
        default=Computed(
            lambda d: d.features.get("boot-mode.appvm-default") or "default",
            "feature boot-mode.appvm-default, else default",
        ),
        doc="Boot mode of the qubes based on this template.",
    )
    debug = Property(Bool(), role=Role.LOCAL, default=False, absent=False, doc="Whether to start in debug mode.")
    autostart = Property(Bool(), role=Role.LOCAL, default=False, absent=False, doc="Start with the host.")
    installed_by_rpm = Property(
        Bool(), role=Role.LOCAL, default=False, absent=False, doc="Whether the host's package manager owns the qube."
    )
    provides_network = Property(
        Bool(), role=Role.LOCAL, default=False, absent=False, doc="Whether other qubes may use this one as net qube."
    )
    default_user = Property(
        Text(_USER, limit=32, what="user name", empty=False),
        role=Role.LOCAL,
        default=FromTemplate("user"),
        doc="User that runs what is started in the qube.",
    )
    qrexec_timeout = Property(
        Int(1, 86400, "seconds"),
        role=Role.LOCAL,
        default=FromTemplate(FromSystem("default_qrexec_timeout")),
        doc="How long the qube's agent may take to connect.",
    )
    shutdown_timeout = Property(
        Int(1, 86400, "seconds"),
        role=Role.LOCAL,
        default=FromTemplate(FromSystem("default_shutdown_timeout")),
        doc="How long an orderly shutdown may take.",
    )
    backup_timestamp = Property(
        OptionalInt(), role=Role.LOCAL, default=None, absent=None, doc="When the qube was last backed up (epoch)."
    )
    guivm = Property(
        DomainRef(optional=True),
        role=Role.LOCAL,
        default=FromSystem("default_guivm"),
        absent=None,
        doc="Qube that shows this one's windows.",
    )
    audiovm = Property(
        DomainRef(optional=True),
        role=Role.LOCAL,
        default=FromSystem("default_audiovm"),
        absent=None,
        doc="Qube that plays this one's sound.",
    )
    management_dispvm = Property(
        DomainRef(optional=True),
        role=Role.LOCAL,
        default=FromTemplate(FromSystem("management_dispvm")),
        absent=None,
        doc="Template of the disposable that manages this qube.",
    )

    # network
    netvm = Property(
        DomainRef(optional=True),
        role=Role.LOCAL,
        default=FromSystem("default_netvm"),
        absent=None,
        doc="Qube that provides network to this one; empty for none.",
    )
    mac = Property(
        Text(_MAC, limit=17, what="MAC address", empty=False),
        role=Role.LOCAL,
        default="00:16:3e:5e:6c:00",
        doc="MAC address that the qube sees.",
    )
    ip = Property(
        OptionalText(_IPV4, limit=15, what="IPv4 address"),
        role=Role.LOCAL,
        absent=None,
        default=Computed(addresses.ip, "from the qid"),
        doc="IPv4 address.",
    )
    ip6 = Property(
        OptionalText(_IPV6, limit=39, what="IPv6 address"),
        role=Role.LOCAL,
        absent=None,
        default=Computed(addresses.ip6, "from the qid where feature ipv6 is on"),
        doc="IPv6 address.",
    )
    gateway = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        absent=None,
        default=Computed(addresses.gateway, "the address, of a net qube"),
        doc="Address for the qubes served.",
    )
    gateway6 = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        absent=None,
        default=Computed(addresses.gateway6, "the address, of a net qube"),
        doc="IPv6 address for the qubes served.",
    )
    visible_ip = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        absent=None,
        default=Computed(addresses.visible_ip, "feature net.fake-ip, else the address"),
        doc="IPv4 address as the qube sees it.",
    )
    visible_ip6 = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        absent=None,
        default=Computed(lambda d: d.ip6, "the address"),
        doc="IPv6 address as the qube sees it.",
    )
    visible_gateway = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        absent=None,
        default=Computed(addresses.visible_gateway, "feature net.fake-gateway, else the net qube's"),
        doc="Gateway as the qube sees it.",
    )
    visible_gateway6 = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        absent=None,
        default=Computed(addresses.visible_gateway6, "the net qube's"),
        doc="IPv6 gateway as the qube sees it.",
    )
    visible_netmask = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        absent=None,
        default=Computed(addresses.visible_netmask, "feature net.fake-netmask, else one host"),
        doc="Netmask as the qube sees it.",
    )
    dns = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        absent=None,
        default=Computed(addresses.dns, "fixed, for a qube with a network"),
        doc="Name servers.",
    )

    # the running machine: the answers of one that is halted
    xid = Property(
        Int(-1),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        default=-1,
        absent=-1,
        doc="Id of the running machine; -1 while halted.",
    )
    stubdom_xid = Property(
        Int(-1), role=Role.LOCAL, setting=Setting.READ_ONLY, default=-1, absent=-1, doc="Id of a stub domain; -1."
    )
    stubdom_uuid = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        default=None,
        absent=None,
        doc="UUID of a stub domain.",
    )
    start_time = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        default=None,
        absent=None,
        doc="When the machine was started (epoch); empty while halted.",
    )

    # classes with a template, disposables, qubes elsewhere
    template = Property(DomainRef(), role=Role.BASED, absent=None, doc="Template that this qube is based on.")
    template_for_dispvms = Property(
        Bool(), role=Role.DISPOSABLE_BASE, default=False, absent=False, doc="Whether disposables can be based on this."
    )
    auto_cleanup = Property(
        Bool(), role=Role.DISPOSABLE, default=False, absent=False, doc="Whether the qube is removed when it stops."
    )
    dispid = Property(
        OptionalInt(0, 65535),
        role=Role.DISPOSABLE,
        setting=Setting.ONCE,
        default=None,
        absent=None,
        doc="Number of the disposable.",
    )
    is_preload = Property(
        Bool(),
        role=Role.DISPOSABLE,
        setting=Setting.READ_ONLY,
        default=False,
        absent=False,
        doc="Whether the disposable waits for its first use.",
    )
    relayvm = Property(
        DomainRef(optional=True), role=Role.REMOTE, default=None, absent=None, doc="Qube that relays calls there."
    )
    transport_rpc = Property(
        OptionalText(limit=255, what="service"),
        role=Role.REMOTE,
        default=None,
        absent=None,
        doc="Service of the relay that carries the calls.",
    )
    remote_name = Property(
        OptionalText(limit=63, what="name"), role=Role.REMOTE, default=None, absent=None, doc="The qube's name there."
    )

    def __init__(self, system: System, values: Mapping[str, Stored], state: State | None = None) -> None:
        """A qube of ``system`` with these stored values; use ``System.add`` to make one."""
        self._system = system
        self._state = State(type(self), dict(values)) if state is None else state

    @classmethod
    def of_state(cls, system: System, state: State) -> Self:
        """The qube that a state describes, in a system; the state may be shared with other systems."""
        return cls(system, {}, state)

    @property
    def state(self) -> State:
        """What the qube is made of; only read."""
        return self._state

    @property
    def _values(self) -> dict[str, Stored]:  # type: ignore[override]
        return self._state.values

    def __repr__(self) -> str:
        return f"<{self.class_name} {self._state.values.get('name')}>"

    @property
    def system(self) -> System:
        """The system this qube belongs to."""
        return self._system

    def title(self) -> str:
        return self.name

    def subject(self) -> str | None:
        return self.name

    def base(self) -> Domain | None:
        return self.template

    def record(self, change: Change) -> None:
        self._system.record(change)
        self.own()
        if isinstance(change, PropertySet) and change.name == "template":
            self._reset_texts()

    def own(self) -> None:
        """Make sure that this qube's state is in no other system, because it is about to change."""
        if self._system.domains.is_shared(self):
            self._state = self._state.copy()
            self._system.domains.took(self)
        self._state.text = None

    def _reset_texts(self) -> None:
        """Size and source of some volumes of others follow from this qube: their texts do not hold any more."""
        for domain in self._system.domains.values():
            if any(one.snap_on_start for one in domain.configured_volumes()):
                domain.own()

    def _icon(self) -> str:
        stem = "servicevm" if self.features.get("servicevm") else self.icon_stem
        return f"{stem}-{self.stored('label')}"

    @property
    def features(self) -> Features:
        """The qube's features."""
        return Features(self)

    @property
    def tags(self) -> Tags:
        """The qube's tags."""
        return Tags(self)

    @property
    def devices(self) -> Assignments:
        """The devices that the qube is to get."""
        return Assignments(self)

    @property
    def templates(self) -> Iterator[Domain]:
        """The template, its template, and so on."""
        domain = self.template
        for _ in range(8):
            if domain is None:
                return
            yield domain
            domain = domain.template

    def connected_vms(self) -> list[Domain]:
        """The qubes that get their network from this one, by name."""
        return sorted((d for d in self._system.domains.values() if d.netvm is self), key=lambda d: d.name)

    @property
    def volumes(self) -> Mapping[str, Volume | None]:
        """The qube's volumes by name; None for a volume that it does not have."""
        return MappingProxyType({name: self._volume(name) for name in VOLUME_NAMES})

    def volume(self, name: str) -> Volume:
        """The volume of that name; raises VolumeNotFoundError."""
        found = self._volume(name) if name in VOLUME_NAMES else None
        if found is None:
            raise VolumeNotFoundError(f"{self.name}: no volume {printable(name, 80)!r}")
        return found

    def _volume(self, name: str) -> Volume | None:
        volume = self._state.volumes.get(name)
        if volume is None or not volume.snap_on_start:
            return volume
        base = self.template
        origin = None if base is None else base._volume(name)
        if origin is None:
            return volume
        source = origin.source if origin.snap_on_start else origin.vid
        size = volume.size if volume.save_on_stop else origin.size
        # A snapshot lies where its source lies: no driver can take one of another pool's volume.
        return replace(volume, source=source, size=size, pool=origin.pool)

    def set_volume(self, volume: Volume) -> None:
        """Replace the configuration of one volume, or add it."""
        if volume.name not in VOLUME_NAMES:
            raise VolumeNotFoundError(f"{self.name}: no volume {printable(volume.name, 80)!r}")
        self.record(VolumeChanged(self.name, volume.name))
        self._state.volumes[volume.name] = volume
        self._reset_texts()

    def configured_volumes(self) -> Collection[Volume]:
        """The volumes as they were configured, without what follows from the template."""
        return self._state.volumes.values()

    def load_state(
        self, features: Mapping[str, str], tags: Iterator[str] | set[str], volumes: Mapping[str, Volume]
    ) -> None:
        """Take over what a store read; announces nothing."""
        self._state.features = dict(features)
        self._state.tags = set(tags)
        self._state.volumes = dict(volumes)

    @property
    def uuid_text(self) -> str:
        """The UUID in its 36-character form."""
        return str(self.uuid)


NIL = UUID(int=0)
"""The UUID of the admin qube."""
