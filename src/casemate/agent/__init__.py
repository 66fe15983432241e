"""What runs inside a guest; standard library, wire, streams, calls, filecopy and qdb only.

::

      programs of the guest                        programs that serve calls
      qrexec-client-vm, qubesdb-*, qvm-copy           ▲ three pipes each
          │ qrexec-agent.sock   │ qubesdb.sock        │ calls.spawn, by run-as as their user
     ┌────┴─────────────────────┴─────────────────────┴────┐
     │ main.Agent: one process, one loop                   │
     │   calls.queue   qdb.server    service: which program│
     │                 qdb.mirror    sessions: who waits   │
     └──────────────────────────┬──────────────────────────┘
                                │ streams.channel
                        virtio-serial port (port.py) ── the host's link

A guest that boots to become a warm image takes no identity; one that goes on from it takes its own (``renewal``). So
does the fork of a guest that runs, before its programs go on (``freezer``).

The agent is one zipapp (``host/agent_package.py``). In a lean guest it is process 1, started by ``host/initrd/init.c``,
else a service of systemd. It owns the guest's end of the channel, the guest's copy of the database and the programs of
calls that are served. It trusts its host and no program of the guest: each connection has a deadline for its first
message, and descriptors of users never come into its process.

The interface towards a network outside, in a net qube that has a card of the host, is given its address by a program
of its own (``outside``): it asks by DHCP, and what answers is not trusted.

The other modules are tools, each a ``main(argv)`` that ``entry`` finds by name. Those that are called often have a
static program in front of them (``host/initrd/tools.c``). ``guest/`` has services, their configurations and programs,
which go into templates as files.
"""
