"""Both ends of a qrexec call, as codecs over a stream; standard library only, also installed in guests.

::

    program that calls                                              program that serves
    stdin stdout stderr                                             stdin stdout stderr
       │ PipeStreams │                                                 │ PipeStreams │
    ┌──┴─────────────┴──┐    one Stream: the call's data phase     ┌───┴─────────────┴──┐
    │ caller.Call       ├──────────────────────────────────────────┤ service.ServiceCall│
    └───────────────────┘   a socket, a channel's stream, or a     └────────────────────┘
                            vchan's data channel (vchan_data)

* ``caller``: the end of who calls. ``run_call`` joins a call to this program's descriptors, ``run_call_with`` to a
  program that it starts. ``service``: the end of who serves.
* ``spawn`` starts the program of a service, ``children`` hears of its end.
* ``host_service``: one call of a qube, served by a program of this host; a process of its own.
* ``queue``: callers that wait for a stream of a channel.
* ``vchan_sockets``, ``vchan_caller``, ``vchan_data``: the same over upstream's vchan sockets.

Each direction of each of the three streams of a call ends for itself, at once: the end of the service's output is
handed on when it happens, not when the call ends. What a service writes for a reader that has gone is thrown away,
while its input is carried over to its end.
"""
