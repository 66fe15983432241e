"""The process that holds one running qube's channel: the only one that parses bytes of that qube.

::

        casemated, tools of this host                     broker (in casemated)        programs of this host
        calls, "ready?", console                          one call socket per qube     qubesdb
              │ link.sock                                      │ broker.sock                │ qubesdb.sock
     ┌────────┴──────────┐   ┌─────────────────┐   ┌───────────┴─────────┐   ┌──────────────┴────┐
     │ requests          │   │ console         │   │ guest_calls         │   │ qdb.server        │
     │  HostRequests     │   │  Console        │   │  GuestCalls         │   │  DatabaseServer   │
     └────────┬──────────┘   └───┬─────────────┘   └───────────┬─────────┘   └──────────────┬────┘
              │   link.Link: channel, session, violations      │                            │
     ┌────────┴──────────────────┼─────────────────────────────┴────────────────────────────┴────┐
     │ streams.channel.Channel   │                                                               │
     └────────┬──────────────────┼───────────────────────────────────────────────────────────────┘
              │ channel.sock     │ console.sock
              └────── QEMU ──────┘

One link runs for each running qube, as root under the qube's own user. It outlives the daemon, so that a new daemon
finds the qube's calls going on. Everything that it keeps for its qube or owes it is bounded (``streams.channel``), and
a qube that breaks the protocol loses its channel, at first for a moment and at last until it is started anew.
"""
