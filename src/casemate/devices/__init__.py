"""Classes of devices: what of the host can be given to a running qube, one module per class.

A class declares itself (name, options, the kernel's events that concern it) and brings a provider, which does the work.
The engine knows no class by name; it finds a device, keeps two qubes from getting one thing, announces what happens,
and carries out assignments at a start::

    api/methods/devices ── text ⇄ DeviceRef ──▶ engine/devices  (locks, policy of a qube, events, starts)
                                                     │ Provider: list, resources, attached, attach, detach, release
                         ┌───────────────────────────┼──────────────────┐
                      block.py                    usb.py              pci.py (lists only)
                         └─────── disks.py ──────────┘
                                     │ lends the node to the machine's user, plugs the disk in
                    host/kernel_devices (/sys, /proc, /dev)     host/hypervisor (libvirt)

Who has which device is asked of the hypervisor each time. Nothing is remembered that a crash could lose.

A module here is found by being here. A package of somebody else names its class as an entry point::

    [project.entry-points."casemate.devices"]
    camera = "casemate_camera:DEVICE_CLASS"

and runs ``tests/contract/test_device_class.py`` against it (see that file).
"""

from __future__ import annotations

from collections.abc import Mapping

from casemate.devices.device_class import DeviceClass
from casemate.host import plugins

GROUP = "casemate.devices"


def built_in() -> list[DeviceClass]:
    """The classes that come with Casemate."""
    return list(plugins.built_in(__path__, __name__, "DEVICE_CLASS", DeviceClass))


def load() -> Mapping[str, DeviceClass]:
    """All classes of this host by name. Ours take precedence; one that cannot be loaded is left out."""
    classes: dict[str, DeviceClass] = {}
    for one in (*built_in(), *plugins.installed(GROUP, DeviceClass)):
        classes.setdefault(one.name, one)
    return dict(sorted(classes.items()))
