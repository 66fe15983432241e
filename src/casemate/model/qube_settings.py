"""The properties of qubes that refer to no other qube: what is configured, and what the running machine says.

Each is declared once, here, in ``network.py`` (addresses) or in ``domain.py`` (references to other qubes). Its role
says which classes have it; ``absent`` is what reading the attribute gives on a qube of another class.
"""

from __future__ import annotations

from casemate.model.defaults import Computed, Default, FromSystem, FromTemplate, Live, Never, Source
from casemate.model.features import PRELOADED, Features
from casemate.model.kinds import Bool, Choice, Int, OptionalInt, OptionalText, Text
from casemate.model.properties import Property, Role, Setting
from casemate.model.qube import Qube

KERNEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}"
_KEYBOARD = r"[a-z0-9_-]{1,32}\+[A-Za-z0-9_-]{0,32}\+[A-Za-z0-9_:,-]{0,64}"
_USER = r"[a-z_][a-z0-9_-]{0,31}"
_WORD = r"[A-Za-z0-9._-]*"

MACHINE_PROPERTIES = ("xid", "stubdom_xid", "start_time")
"""What is announced as changed when a machine starts and when it ends, in the order of Qubes OS."""

_NO_STUB = "there are no stub domains, as QEMU runs on the host"
_ONE_KERNEL = "a kernel of the host has one way to boot"


def _flag(doc: str, role: Role = Role.LOCAL, kept: str = "") -> Property[bool]:
    """A switch that is off unless somebody turns it on."""
    return Property(Bool(), role=role, default=False, absent=False, doc=doc, kept=kept)


def _is_preload(disposable: QubeSettings) -> bool:
    template = disposable.base()
    return template is not None and disposable.name in template.state.features.get(PRELOADED, "").split()


def _seconds(default: str, doc: str) -> Property[int]:
    """A time limit whose default is the template's, else a global property."""
    return Property(Int(1, 86400, "seconds"), role=Role.LOCAL, default=FromTemplate(FromSystem(default)), doc=doc)


def _boot_mode(role: Role, default: Default, doc: str) -> Property[str]:
    return Property(Text(_WORD, limit=128, what="boot mode"), role=role, default=default, doc=doc, kept=_ONE_KERNEL)


class QubeSettings(Qube):
    """What a qube is, what it runs with, and what its machine is doing."""

    # identity
    klass = Property(
        Text(), setting=Setting.READ_ONLY, default=Computed(lambda d: d.class_name, "fixed"), doc="Class of the qube."
    )
    icon = Property(
        Text(),
        setting=Setting.READ_ONLY,
        default=Computed(lambda d: d.icon_name(), "from class and label"),
        doc="Name of the icon.",
    )
    include_in_backups = Property(
        Bool(), default=True, doc="Whether a backup includes this qube unless told otherwise."
    )

    # everything configured here
    updateable = Property(
        Bool(),
        role=Role.MANAGED,
        setting=Setting.READ_ONLY,
        default=Computed(lambda d: d.base() is None, "True where there is no template"),
        doc="Whether software is updated in this qube itself.",
        absent=False,
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
        kept="windows of qubes are not shown yet",
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
    vcpus = Property(
        Int(1, 512),
        role=Role.LOCAL,
        default=FromTemplate(2),
        doc="Number of virtual processors. Where qubes are emulated (no KVM) a qube has one unless this is set.",
    )
    stubdom_mem = Property(
        OptionalInt(1, 1 << 24, "MiB"),
        role=Role.LOCAL,
        default=None,
        absent=None,
        doc="Memory of a stub domain.",
        kept=_NO_STUB,
    )
    virt_mode = Property(
        Choice("pvh", "hvm", "pv"),
        role=Role.LOCAL,
        default=FromTemplate("pvh"),
        doc="How the machine is virtualised.",
        kept="all machines are built the same way",
        while_halted=True,
    )
    kernel = Property(
        OptionalText(KERNEL_NAME, limit=63, what="name of a kernel"),
        role=Role.LOCAL,
        absent=None,
        default=FromTemplate(FromSystem("default_kernel")),
        doc="Kernel of the host that the qube boots, one of the volumes of pool linux-kernel.",
    )
    kernelopts = Property(
        Text(limit=512, what="kernel options"),
        role=Role.LOCAL,
        default=FromTemplate("swiotlb=2048"),
        absent="",
        doc="Options for the kernel's command line.",
    )
    bootmode = _boot_mode(
        Role.LOCAL,
        Computed(
            lambda d: Features(d).check("boot-mode.active", template=True) or "default",
            "feature boot-mode.active, else default",
        ),
        "Which of the boot modes that the template offers is used.",
    )
    appvm_default_bootmode = _boot_mode(
        Role.TEMPLATE,
        Computed(
            lambda d: Features(d).get("boot-mode.appvm-default") or "default",
            "feature boot-mode.appvm-default, else default",
        ),
        "Boot mode of the qubes based on this template.",
    )
    debug = _flag("Whether to start in debug mode.")
    autostart = _flag("Start with the host: when the daemon runs for the first time after the host booted.")
    installed_by_rpm = _flag(
        "Whether the host's package manager owns the qube.", kept="templates do not come as packages of the host"
    )
    provides_network = _flag("Whether other qubes may use this one as net qube.")
    default_user = Property(
        Text(_USER, limit=32, what="user name", empty=False),
        role=Role.LOCAL,
        default=FromTemplate("user"),
        doc="User that runs what is started in the qube.",
    )
    qrexec_timeout = _seconds("default_qrexec_timeout", "How long the qube's agent may take to connect.")
    shutdown_timeout = _seconds("default_shutdown_timeout", "How long an orderly shutdown may take.")
    backup_timestamp = Property(
        OptionalInt(),
        role=Role.LOCAL,
        default=None,
        absent=None,
        doc="When the qube was last backed up (epoch).",
    )

    # the running machine
    xid = Property(
        Int(-1),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        default=Live(Source.MACHINE, -1),
        absent=-1,
        doc="Id of the running machine; -1 while halted.",
    )
    start_time = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        default=Live(Source.MACHINE, None),
        absent=None,
        doc="When the machine was started (seconds since the epoch); empty while halted.",
    )
    stubdom_xid = Property(
        Int(-1),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        default=Never(-1, _NO_STUB),
        absent=-1,
        doc="Id of a stub domain.",
    )
    stubdom_uuid = Property(
        OptionalText(),
        role=Role.LOCAL,
        setting=Setting.READ_ONLY,
        default=Never(None, _NO_STUB),
        absent=None,
        doc="UUID of a stub domain.",
    )

    # disposables, qubes elsewhere
    template_for_dispvms = _flag("Whether disposables can be based on this.", Role.DISPOSABLE_BASE)
    auto_cleanup = _flag("Whether the qube is removed when it stops.", Role.DISPOSABLE)
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
        default=Computed(_is_preload, "whether its template lists it"),
        absent=False,
        doc="Whether the disposable waits for its first use.",
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
