"""The methods of the Admin API, one module for each noun: a method belongs to the API because it is in this package.

::

    server.py ─┐                       ┌── domains.py  power.py  properties.py  features.py  tags.py  labels.py
               ├─ dispatch.py ── METHODS── volumes.py  pools.py  devices.py  firewall.py  notes.py  backup.py
    guest_     │     │          (by    └── system.py   host.py   policy.py
    calls.py ──┘     │          name)  INTERNAL ── internal.py        MISC ── misc.py
                     v
             handler(context, system, dest, arg, payload, …)    gets what its signature names

A handler is registered by the ``method`` decorator, which says what the method is called and how the handler runs
(`Access`). Its signature is the form of the call: a parameter that it does not have must be empty. Its docstring is the
row of the method on the reference page, the docstring of its module is the text above the rows. So a new method is one
function, and a new noun is one file.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from casemate.api.method import INTERNAL, METHODS, MISC

__all__ = ["INTERNAL", "METHODS", "MISC", "MODULES"]

MODULES = tuple(import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))
"""The modules of this package, in order of names. Importing them registers their methods, so that the registries are
complete for whoever takes them from here."""
