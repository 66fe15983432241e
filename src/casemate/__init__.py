"""Casemate: compartment VMs in the Qubes OS model on any Linux host with libvirt.

For scripts::

    import casemate

    app = casemate.Qubes()
    app["work"].start()
    print(app["work"].run(["id"]).text)

``casemate.library`` has the picture of what there is; the how-to "Scripts" has examples. The names in ``__all__`` are
public; they are imported when they are first used, because tools and guests import this package too.
"""

__version__ = "0.1.0"

_PUBLIC = {
    "Completed": "calls",
    "Device": "devices",
    "Event": "events",
    "Events": "events",
    "Qube": "qube",
    "Qubes": "qubes",
    "Volume": "volumes",
    "open_store": "stores",
}
"""Public names, and the modules of ``casemate.library`` that have them."""

__all__ = ["CasemateError", "__version__", "errors", *_PUBLIC]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate import errors as errors
    from casemate.library.calls import Completed as Completed
    from casemate.library.devices import Device as Device
    from casemate.library.events import Event as Event
    from casemate.library.events import Events as Events
    from casemate.library.qube import Qube as Qube
    from casemate.library.qubes import Qubes as Qubes
    from casemate.library.stores import open_store as open_store
    from casemate.library.volumes import Volume as Volume
    from casemate.wire.errors import CasemateError as CasemateError


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'casemate' has no attribute {name!r}")
    from importlib import import_module

    if name == "errors":
        return import_module("casemate.errors")
    module = "casemate.wire.errors" if name == "CasemateError" else f"casemate.library.{_PUBLIC[name]}"
    found: object = getattr(import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
