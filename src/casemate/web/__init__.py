"""The manager page: ``casemate-web``, a process of its own that shows qubes to a browser on this host.

::

    browser                             casemate-web                                            casemated
    casemate.js ── GET /view/… ──▶ guard ── pages ─────────── renders ──┐
       │   ▲                        │         │                         ▼
       │   └──── rows, loads ◀── stream ◀── live (rows, versions) ◀── admin_api ── events, lists ──▶ qubesd.sock
       └── POST /qubes/NAME/VERB ──▶ guard ── actions ──────────────▲ one connection for each call

It is an ordinary client of the Admin API: it imports ``client``, ``settings`` and ``wire`` and nothing of the daemon's
side. What one module does:

* ``start`` says what is missing where the three packages of Python that the page needs are not there.
* ``server`` opens a loopback port, prints the address with the token, and runs uvicorn until it is interrupted;
  ``connections`` bounds how many connections there are and how long one may wait before it asks.
* ``guard`` stands before everything else and decides by the head of a request alone: host, origin, token, rate. It
  knows nothing of qubes, so that no page can forget to ask.
* ``admin_api`` sends calls and reads events without blocking the one event loop.
* ``live`` keeps the rows of the table. A row that changed gets a new version number; a browser's ``stream`` remembers
  the version that it has sent. So a browser that reads slowly gets the newest state and no queue can grow.
  ``loads`` has what running qubes take of the host.
* ``actions`` starts and stops qubes as tasks of their own: a request that asks for one is answered at once.
* ``rendering`` makes HTML: every text is escaped, and text that comes from a qube is shown as such.
* ``pages`` has the addresses, and those that the modules of pages bring: ``qubes_page`` (``saved_views``),
  ``host_page`` (status, pools, ``event_log``), ``network_page`` (``network_picture``), ``policy_page``
  (``call_trace``), ``templates_page``, ``disposables_page``, ``devices_page``, ``backups_page`` (``backup_tools``) and
  ``first_run``. The package
  ``qube`` has the pages of single qubes. Pages are given a ``site``, ask for many qubes by ``inventory``, read forms by
  ``forms``, and have ``long_calls`` made.

A page may have parts that change while somebody looks: elements with the address of what they show and a topic. The
stream says which topics have news (``Live.tell``), and the browser asks for those parts anew. So a part that changes a
hundred times a second is sent three times, and a page that nobody looks at costs nothing. A page with forms follows
topics as a whole: it is fetched again and made equal to the answer, and what a person is typing stays (``refresh.js``).

No build step: ``static`` has style sheets and ES modules with one role each, which ``casemate.js`` joins; ``templates``
has the HTML. The modules replace elements by what the server has rendered and know nothing of qubes' properties. Why no
cookie is used, and what else keeps other programs and web sites out, is in docs/explanation/security.md (rows W).
"""
