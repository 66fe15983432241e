"""Calls between qubes: the policy that allows them, and the broker that sets them up.

A qube's agent asks its link for a call; the link asks here. Nobody here is in the data path: after ``allow`` the two
links talk through a socket that was passed to the caller's link::

    caller's link ──broker.sock──▶ CallListener ──▶ Broker ──▶ decide ──▶ evaluate (pure)
         ▲  one line of JSON                          │           │           ├── rules ◀── parser ◀── files ◀── watch
         │                                            │           │           └── system: qubes as the policy sees them
         │                                            │           └── ask: a person, if a rule says so
         │                                            ├── starts the target, makes a disposable (the engine's parts)
         └──── allow + descriptor of the target's link ┘

    on the host's side (call_sockets): prompt.sock for who answers questions, trace.sock for who watches,
    policy.sock for qrexec daemons of others (policy_socket).

* *Who asks* is known from the socket: each running qube has one, in a directory that only its link can search. Nothing
  that a qube sends says who it is.
* *Everything fails closed.* A policy that cannot be read, an answer that does not come, a request that is not
  understood: the call is denied. The caller is told only that; log and trace say why.
* *Decisions are pure.* ``evaluate`` maps (policy, system, call) to Allow, Ask or Deny and touches nothing; ``explain``
  and ``lint`` say why a rule decides and which rules never can. They are what tools use without a daemon.
* *Bounded.* Unread requests, open calls, questions, log lines and notices are counted per qube (docs/reference/limits).
"""
