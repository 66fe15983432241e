"""casemated, the daemon: settings, the wiring of all parts, the main loop.

::

    main ── one lock per state directory, log, signals
      └── Daemon (wiring.py)
            build()  makes every part, with what it uses         no side effects
            begin()  adopts what an earlier daemon left          before anybody is served
            serve    API sockets, call sockets, leases; Follower watches the store's file
            end()    in the opposite order; qubes and their links go on

Tools start the daemon when they need it. It may be killed at any instant: machines and links are processes of their
own, and the next daemon takes them over (engine/reconcile.py). So nothing that matters may be in its memory alone.
"""
