"""What both ends of a socket agree on: errors, names and codecs. Pure code, standard library only.

::

    names.py   errors.py                        what a name is; what can go wrong, and its name on the wire
        ^         ^
    admin.py      Admin API            daemon <-> tools, qubes
    events.py     events of it         engine -> subscribers (declared in classes; api_event.py)
    qrexec.py     qrexec               programs <-> agents, links, foreign daemons (call_data.py, vmexec.py)
    mux.py        a qube's channel     link <-> agent: many streams over one virtio-serial port
    qdb.py        QubesDB              programs <-> database
    qfile.py      file copy            sender <-> receiver
    firewall.py, menus.py, clock.py,   texts within calls
    images.py
    dhcp.py       DHCP                 a net qube's agent <-> the network outside

A codec has no I/O: it is fed bytes and gives values, or takes values and gives bytes. So the same code runs in the
daemon, in tools and in guests, and tests need no sockets. Bytes that break a protocol raise ProtocolError, texts that
are no name raise ValueInvalidError; nothing is repaired.

Modules that run in a guest import as little as they can: under emulation each import is felt at every call.
"""
