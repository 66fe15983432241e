"""Byte streams between descriptors and a qube's channel: one event loop, one contract, one ``join``.

Everything that moves bytes in a link, in a guest's agent and in the tools stands on this package. It needs the
standard library alone and imports little of it, because it is also installed in guests, where each import is felt.

::

         what a stream carries (a codec or another stream) is its Handler
                │ write, space + commit, eof, abort, resume     ▲ buffer + filled, on_data, on_eof,
                ▼                                               │ on_room, on_abort, on_closed
        ┌────────────────┐   ┌────────────────┐   ┌────────────────┐
        │  SocketStream  │   │   PipeStream   │   │   MuxStream    │      streams of one kind each
        └───────┬────────┘   └───┬────────┬───┘   └───────┬────────┘
                │ fd             │ fd     │ fd            │ one of many on
                │                │        │       ┌───────┴────────┐
                │                │        │       │    Channel     │      wire.mux on a port or a socket
                │                │        │       └───────┬────────┘
        ┌───────┴────────────────┴────────┴───────────────┴────────┐
        │                           Loop                           │      epoll(7), timers, one thread
        └──────────────────────────────────────────────────────────┘

* ``stream``: the contract (``Stream`` and ``Handler``). ``tests/contract/test_streams.py`` holds every kind to it.
* ``socket_stream``, ``pipe_stream``, ``mux_stream``: the kinds. ``channel``: the mux on a descriptor and its bounds.
* ``join``: makes two streams one, each direction with an end of its own.
* ``loop``: the event loop. ``deadlines``: many time-outs of one length. ``listener``: accepting connections, and the
  first message of each. ``messages``: a socket that carries whole qrexec messages instead of bytes.
* ``half_frame``, ``frame_budget``: what a peer may do with frames, in time and in number. ``descriptor_stream``: what
  the two kinds on descriptors share. ``exactly``: so many bytes of a socket, ``ready``: which of some descriptors can
  be read, both for programs that just wait.
  ``long_address``: sockets with long paths.

Rules that hold for every kind:

* **Half-close.** The two directions end by themselves: ``eof`` ends what we send, ``on_eof`` says that the peer sends
  no more. When both have ended and all is sent, the stream closes and says so once (``on_closed``).
* **Window.** What waits to be sent is bounded: ``room`` tells how much more may be written, ``on_room`` tells when
  there is room again. What comes in is bounded by the handler's ``room``: a descriptor whose handler has none is not
  read; a peer on the channel may send at most one window more.
* **Reader gone.** Output that nobody reads any more is thrown away. The other direction is carried to its end.
* **Abort.** ``abort`` lets go at once, without a call to the handler. When the peer does it, ``on_abort`` is called.
* **Owner.** A stream owns its descriptors and closes each exactly once.
"""
