"""Mutants of starts and stops, and of what a restarted daemon does."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_STEPS = "tests/unit/test_start_steps.py::"
_FAILED = (f"{_STEPS}test_a_start_that_fails_at_its_last_step_leaves_nothing",)
_LIFECYCLE = "src/casemate/engine/lifecycle.py"
_START = "src/casemate/engine/start_steps.py"
_PRELOADS = "src/casemate/engine/preloads.py"
_WAITING = "tests/unit/test_preloads.py::"
_RECONCILE = "src/casemate/engine/reconcile.py"

MUTANTS = (
    Mutant(
        "missed-end", "a machine that ended is taken down", "src/casemate/engine/figures.py",
        "                        self._missed(name)", "                        pass",
        (f"{_STEPS}test_a_machine_whose_end_nobody_told_of_is_taken_down",),
    ),
    Mutant(
        "halted-by-figures", "a machine that ended is taken down", "src/casemate/engine/states.py",
        "if old is not None and info.state is not PowerState.HALTED:", "if old is not None:",
        (f"{_STEPS}test_figures_of_a_machine_that_has_ended_halt_no_qube",),
    ),
    Mutant(
        "failed-step-stays", "a step that failed half-way is taken down itself", "src/casemate/engine/steps.py",
        "undo.push_async_callback(step.down, start.domain)\n"
        "            begin = time.monotonic()\n"
        "            await step.up(start)\n",
        "begin = time.monotonic()\n"
        "            await step.up(start)\n"
        "            undo.push_async_callback(step.down, start.domain)\n",
        (f"{_STEPS}test_a_step_that_fails_half_way_is_taken_down_itself_and_those_after_it_are_not_touched",),
    ),
    Mutant(
        "failed-start-stays", "a start that failed is taken back", "src/casemate/engine/steps.py",
        "undo.push_async_callback(step.down, start.domain)", "pass", _FAILED,
    ),
    Mutant(
        "volumes-stay", "VolumesStep.down", _START,
        "                await self._pools.of(volume).stop(volume)", "                pass", _FAILED,
    ),
    Mutant(
        "directory-stays", "DirectoryStep.down", _START,
        "shutil.rmtree(self._settings.qube_run(domain.name), ignore_errors=True)", "pass", _FAILED,
    ),
    Mutant(
        "machine-stays", "MachineStep.down", _START,
        "await self._hypervisor.destroy(domain.uuid)", "pass", _FAILED,
    ),
    Mutant(
        "link-stays", "LinkStep.down", _START,
        "await self._links.stop(domain.name)", "pass", _FAILED,
    ),
    Mutant(
        "call-socket-stays", "LinkStep.down", _START,
        "await self._calls.close(domain.name)", "pass", _FAILED,
    ),
    Mutant(
        "devices-stay-lent", "Devices.down", "src/casemate/engine/devices.py",
        "            provider.release(machine)", "            pass",
        (f"{_STEPS}test_a_qube_that_has_ended_has_no_right_left_to_any_device",),
    ),
    Mutant(
        "open-directory-of-sockets", "V2", _START,
        "directory.mkdir(mode=0o700)", "directory.mkdir(mode=0o755)",
        (f"{_STEPS}test_only_a_qubes_user_reaches_its_sockets",),
    ),
    Mutant(
        "absent-volume-is-used", "law 7", _START,
        "if volume is None or name not in TARGETS:", "if name not in TARGETS:",
        ("tests/component/laws/test_law7_none_is_absent.py::test_a_start_and_a_stop_skip_what_is_none",),
    ),
    Mutant(
        "absent-volume-is-stopped", "law 7", _START,
        "if volume is not None and name in TARGETS:", "if name in TARGETS:",
        ("tests/component/laws/test_law7_none_is_absent.py::test_a_start_and_a_stop_skip_what_is_none",),
    ),
    Mutant(
        "one-user-for-all", "V2", "src/casemate/engine/accounts.py",
        "users[1 + domain.qid % (len(users) - 2)]", "users[1]",
        (f"{_STEPS}test_each_qube_has_a_user_of_its_own_and_all_have_one_group",),
    ),
    Mutant(
        "end-unnoticed", "a machine that ends is cleaned up after", _LIFECYCLE,
        "if event.kind in (EventKind.STOPPED, EventKind.CRASHED):", "if event.kind is EventKind.CRASHED:",
        (f"{_STEPS}test_a_machine_that_ends_takes_all_steps_down",), slow=True,
    ),
    Mutant(
        "ended-start-mark-stays", "a mark says that a machine's start was finished", _LIFECYCLE,
        "self._bus.say(ev.DomainStopped(name))\n            self._marks.remove(name)",
        "self._bus.say(ev.DomainStopped(name))",
        (f"{_STEPS}test_a_machine_that_ends_takes_all_steps_down",),
    ),
    Mutant(
        "unfinished-start-adopted", "a mark says that a machine's start was finished", _LIFECYCLE,
        "if not self._marks.exists(name):\n                return False", "",
        (f"{_STEPS}test_the_next_daemon_takes_down_a_start_that_was_not_finished",),
    ),
    Mutant(
        "left-overs-stay", "what a killed daemon left is cleared", _RECONCILE,
        "await lifecycle.clear(domain)", "pass",
        (f"{_STEPS}test_the_next_daemon_takes_down_a_start_that_was_not_finished",),
    ),
    Mutant(
        "unknown-machine-stays", "a machine that no qube has is ended", _RECONCILE,
        "await hypervisor.destroy(info.uuid)", "pass",
        (f"{_STEPS}test_the_next_daemon_ends_machines_that_no_qube_has",),
    ),
    Mutant(
        "unknown-machine-stays-defined", "a machine that no qube has is ended", _RECONCILE,
        "await hypervisor.undefine(info.uuid)", "pass",
        (f"{_STEPS}test_the_next_daemon_ends_machines_that_no_qube_has",),
    ),
    Mutant(
        "unknown-directory-stays", "run-time files of removed qubes go", _RECONCILE,
        "if path.name.partition(\".\")[0] not in known and", "if False and",
        (f"{_STEPS}test_the_next_daemon_removes_directories_of_qubes_that_are_gone",),
    ),
    Mutant(
        "running-qube-removed", "only a halted qube is removed", "src/casemate/engine/create.py",
        "            decide(Command.REMOVE, name, self._states.of(name))\n", "",
        (f"{_STEPS}test_a_qube_that_runs_is_not_removed",
         "tests/unit/test_power_table.py::test_refused_as_the_table_says[remove]"),
    ),
    Mutant(
        "journal-trusts-itself", "the store decides what a killed daemon left", "src/casemate/engine/create.py",
        "if stored is not None and str(stored.uuid) == entry.uuid:\n            return", "",
        ("tests/unit/test_creation_journal.py::test_volumes_of_a_qube_that_the_store_has_stay",),
    ),
    Mutant(
        "journal-unread", "what a killed daemon left is removed", "src/casemate/engine/create.py",
        "            await self._pools.of(volume).stop(volume)\n"
        "            await self._pools.of(volume).remove(volume)",
        "            pass",
        ("tests/unit/test_creation_journal.py::test_volumes_that_no_qube_has_are_removed",),
    ),
    Mutant(
        "operations-at-once", "law 1", "src/casemate/engine/operations.py",
        "self.lock = asyncio.Lock()", "self.lock = asyncio.Semaphore(2)",
        ("tests/component/laws/test_law5_no_child_needs_its_callers_lock.py"
         "::test_operation_locks_exclude_and_are_forgotten",),
    ),
    Mutant(
        "damaged-firewall-allows", "a damaged file is an error", "src/casemate/engine/qube_files.py",
        "raise StoreError(f\"{self._path(uuid, 'firewall.xml')}: {error}\") from error", "return [dict(ALLOW_ALL)]",
        ("tests/unit/test_qube_files.py::test_a_damaged_firewall_file_is_no_hole_in_the_wall",),
    ),
    Mutant(
        "long-notes-are-cut", "a damaged file is an error", "src/casemate/engine/qube_files.py",
        "if len(data) > limit:\n            raise StoreError(f\"{path} is longer than {limit} bytes\")", "",
        ("tests/unit/test_qube_files.py::test_a_file_that_is_too_long_is_not_cut",),
    ),
    Mutant(
        "expired-rule-allows", "a rule of the firewall ends when it says", "src/casemate/engine/qube_files.py",
        "for rule in known[1] if \"expire\" not in rule or int(rule[\"expire\"]) > now]", "for rule in known[1]]",
        ("tests/unit/test_qube_files.py::test_rules_come_back_and_expire",),
    ),
    Mutant(
        "disposable-of-another-network", "a disposable has the network of its template", "src/casemate/model/system.py",
        "{**inherited, **(properties or {})}", "(properties or {})",
        ("tests/unit/test_inheritance.py::test_a_disposable_has_the_network_of_its_template",),
    ),
    Mutant(
        "disposable-opens-elsewhere", "a child's reach is within its parent's", "src/casemate/model/classes.py",
        '"default_dispvm": Computed(lambda d: d.stored("template"), "its template"),', "",
        ("tests/unit/test_inheritance.py::test_what_a_disposable_opens_is_like_itself",),
    ),
    Mutant(
        "outdated-settings", "a disposable that waits is what a fresh one would be", _PRELOADS,
        "if domain.features.get(preloading.COMPLETED) != preloading.made_of(domain):", "if False:",
        (f"{_WAITING}test_an_outdated_one_is_neither_given_away_nor_kept",),
    ),
    Mutant(
        "outdated-volumes", "a disposable that waits is what a fresh one would be", _PRELOADS,
        'return any(self._is_outdated(name, volume) for volume in ("root", "private"))', "return False",
        (f"{_WAITING}test_an_outdated_one_is_neither_given_away_nor_kept",),
    ),
    Mutant(
        "outdated-while-it-starts", "a disposable is of its template's present state", _PRELOADS,
        "if self._has_outdated_disks(name):  # its", "if False:  # its",
        (f"{_WAITING}test_one_whose_template_changes_while_it_starts_is_not_given_away",),
    ),
    Mutant(
        "given-away-twice", "a disposable is one caller's", _PRELOADS,
        "mine = [name for name in preloading.listed(template) if name not in self._taken]",
        "mine = preloading.listed(template)",
        (f"{_WAITING}test_two_who_ask_at_once_get_two",),
    ),
    Mutant(
        "half-given-away-stays", "what a killed daemon left is removed", _PRELOADS,
        "return not disposable.is_preload or self._states.of(disposable.name) is PowerState.PAUSED", "return True",
        (f"{_WAITING}test_the_next_daemon_finds_them_and_removes_what_is_half_done",),
    ),
    Mutant(
        "memory-of-others", "memory is left for others", _PRELOADS,
        "elif self._free_memory() - preloading.threshold(system) < template.memory:", "elif False:",
        (f"{_WAITING}test_memory_is_left_for_others",),
    ),
)  # fmt: skip
