r"""The Admin API: methods, the sockets that serve them, permissions, events.

::

    tools of this host            qubes
        |                           | qrexec, after the policy has decided
    qubesd.sock                     |
    qubesd.internal.sock            |          server.py: one connection is one call, bounded in size and time
    qubesd.misc.sock                |
        v                           v
     server.py               guest_calls.py
        \______________  ___________/
                       v
                  dispatch.py ── permissions.py    form of the call, the qube it is about, the handler
                       v
                   methods/*      READ: a snapshot     WRITE: in a transaction
                       |          EXECUTE: a coroutine  STREAM: events.py, stats.py
                       v
                  context.py ── parts.py           the store, and the parts of the engine, each by a protocol

`Context` is the record of what handlers may use; ``daemon/wiring.py`` makes it. What a part of the engine must be able
to do is written in ``parts.py``, one protocol for each, so that a test can give a part of its own.

Everything is declared once, where it is done. ``method.py`` has the registry of methods, ``live.py`` asks for values
that the store does not know, ``limits.py`` finds the declared limits, and ``reference.py`` writes the pages of
``docs/reference`` from all of them.

A reply always comes. An error of ours (`CasemateError`) travels as it is, with its name on the wire. Any other
exception is a fault of the daemon: it is logged under an id, and only the id travels. To a qube, what does not exist
and what may not be seen are the same denial.
"""
