"""The client library of the Admin API: blocking, standard library only, quick to import.

::

    tool ──> Qubes (qubes.py)              one method for each thing that tools do, texts and numbers in and out
     |         v
     |       Transport (transport.py)      one connection for each call; starts the daemon where none listens
     |         v
     |       qubesd.sock                   wire/admin.py has the bytes
     v
    open_stream (calling.py)               a call into a qube, over its link's socket; Disposable for one block

``restore.py`` makes qubes of a backup, by ``new_qubes.py``, which touches no other; ``paranoid.py`` has the backup read
in a disposable, over ``service_stream.py``.

``device_lines.py`` has the lines and arguments of the methods for devices, ``network_tree.py`` the order in which the
network of qubes is shown.

Most of the time of a tool is its imports. So nothing here imports asyncio, pathlib, json or typing before it is needed,
and settings keep paths as text.

`Transport` starts the daemon on demand, as gpg-agent is started: if nobody listens on the socket, it takes a lock, so
that tools that are started together start one daemon, spawns it, and waits until it listens or ends. Errors that the
daemon reports are raised as their own classes (``wire/errors.py``); `DaemonAccessError` is raised where no reply came.
"""
