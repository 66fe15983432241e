"""What is done to qubes: start and stop, create and remove, volumes, devices, disposables. Asynchronous.

There is no engine object. ``daemon/wiring.py`` makes the parts and hands each what it uses; the Admin API and the
broker get the parts that they ask of, as small protocols. What each part owns, and nobody else changes::

    Power ──▶ Lifecycle ──▶ steps: volumes, directory, machine, devices, link, agent
      │           │             each takes itself up, and down again after any crash (steps.py)
      │           ├── StartMarks        RUN/qubes/NAME.up: a start was finished
      │           └── who waits for a qube to halt; clean-ups under way
      ▼
    States          what every qube is doing: one table, in memory, rebuilt from libvirt
    OperationLocks  one start, stop, creation or removal of a qube at a time
    Bus             events to whoever subscribed (wire/events.py has the events)

    Creator ──▶ OperationJournal   STATE/intents: creations and removals that are not complete
    Disposables                    names in quarantine; ends a disposable when its machine halts
      ▲── LeaseServer              ends one when the tool that asked for it is gone
      ▲── Preloads                 starts some before they are asked for, and gives them away
      │     └── Wanted           how many of which: what a person says, else what was used lately
      ├── WarmBuilds ──▶ WarmImages  guests that have booted, which disposables go on from (warm_image.py: their key)
      └── Forks                    copies of running guests, until the disposables that go on from them have started
            └── Snapshots          those that are kept under a name (fork_settings.py: what goes on takes over besides)
    commits.after_each             acts after each commit to the store, whoever made it
    Volumes                        nothing of its own: images in pools, sizes in the store
    Backups ──▶ BackupJob          backups under way; the process that makes each (backup_jobs.py, backup_contents.py)
    TemplateBuilds ──▶ Templates   builds of templates that are under way, and how the last ones ended
    Devices                        what the host's devices were at the last look
    Links                          the link processes, one per running qube
    Accounts, AccelerationProbe    under which user a qube runs; whether KVM works here

Rules that hold in the whole package:

* A qube's operation lock comes first, then the store, never back. Two operation locks are taken in order of names.
* Nothing slow happens inside a transaction of the store; volumes are made before it and removed after it.
* The way back is registered before the step is taken. ``Step.down`` is idempotent and works when another daemon took
  the step. ``reconcile`` runs once at the daemon's start: it adopts machines whose start was finished and takes the
  steps of all others down.
* Hypervisor, links and pools are asked what is true. What is remembered is only what they cannot know.
"""
