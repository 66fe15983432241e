"""The public library: what ``import casemate`` gives to scripts.

::

    import casemate

    app = casemate.Qubes()                     qubes.py      one daemon; iterate over it, ask it for a qube by name
      app["work"]               -> Qube        qube.py       properties are attributes; start, shutdown, run, remove
        .run(["id"])            -> Completed   calls.py      a call into the qube over its link
        .features .tags                        settings.py   a mapping and a set
        .volumes["private"]     -> Volume      volumes.py
        .devices["block"]       -> Devices     devices.py
        .firewall               -> Firewall    firewall.py
      app.snapshots()           -> Snapshot    running qubes as they were, kept under names
      app.events()              -> Events      events.py     an iterator that can be closed
    casemate.open_store()       -> Store       of ``casemate.store``: the collection of qubes on disk, in this process
    casemate.errors                            every exception, also by the names that the Admin API sends

The objects hold names only. Each access is one call of the Admin API, so what is read is what is true now, and another
process may change it between two calls. `Qubes.inventory` reads much about many qubes in one call.

What is named in ``casemate.__all__`` follows semantic versioning: within one major version nothing of it is taken away
or changes its meaning. Everything else below ``casemate`` is internal. The modules are imported when they are first
used, so that tools, links and agents, which import other parts of ``casemate``, do not pay for them.
"""
