"""QubesDB: the small database of paths and values that a running qube shares with its host.

::

     host                                                        guest
     tools ── qubesdb.sock ── LocalSession ┐        ┌ LocalSession ── qubesdb.sock ── tools
                                       Database  Database
     the daemon writes through its link ── ┤        ├
                                       HostMirror ──┴── GuestMirror
                                          a stream of the channel, records of wire.qdb

* ``tree``: the entries of one end, and which of them a guest may write.
* ``session``: ``Database`` announces each change to its sessions; ``LocalSession`` is one program's connection.
* ``mirror``: the two sessions that keep both ends the same. The guest asks for everything, then each end sends its
  changes; the host takes only what a guest may write, at a bounded rate.
* ``server``: carries sessions over streams. ``client``: the blocking client of tools.

Sessions have no I/O. They say when they take no more requests, because their answers were not read: then their stream
has no room, and the peer waits.
"""
