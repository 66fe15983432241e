"""qrexec over vchan's unix sockets, for agents, clients and daemons that know upstream's protocol.

::

     clients (qrexec-client)      policy daemon             Admin API
          │ clients.DaemonSocket      │ decision                │ admin_api
     ┌────┴───────────────────────────┴─────────────────────────┴───┐
     │ daemon: casemate-qrexecd, one process for all domains        │
     │   domain.Domain, one each: its agent, clients, ports         │──── registry: which domains there are
     └────┬─────────────────────────────────────────────────────────┘
          │ control channel, one per domain (calls.vchan_sockets, port 512)
     ┌────┴────────────────┐   data channel of a call    ┌──────────────────────┐
     │ agent of a domain   ├─────────────────────────────┤ agent, client or     │
     │ (ours or another's) │   (calls.vchan_data, 513…)  │ service at the other │
     └─────────────────────┘                             │ end of the call      │
                                                         └──────────────────────┘

The daemon decides and says where a data channel is to be; it never sees the data of a call. ``call.Served`` serves the
calls of a process, of the daemon's host services and of our agent alike. ``ports`` says which port numbers are in use:
a port rests after a call, because a late peer of the old call must not meet the new one.
"""
