"""Mutants of warm images: what keeps disposables of one image apart.

That a guest renews its identity is tested on real machines only (tests/live/test_warm.py), and mutants have none.
"""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_MEMORY = "tests/component/test_guest_memory.py::"
_START = "tests/unit/test_warm_start.py::"
_KEY = "tests/unit/test_warm_image.py::"

MUTANTS = (
    Mutant(
        "image-not-sealed", "a clone cannot write its image", "src/casemate/host/guest_memory.py",
        " | fcntl.F_SEAL_WRITE", "", (f"{_MEMORY}test_nobody_can_write_an_image",),
    ),
    Mutant(
        "memory-for-all", "a qube's memory is for its launcher alone", "src/casemate/host/guest_memory.py",
        "path.chmod(0o600)", "path.chmod(0o666)",
        (f"{_MEMORY}test_the_first_who_comes_gets_the_memory_and_nobody_after_him",),
    ),
    Mutant(
        "image-of-another-size", "a clone's memory is whole", "src/casemate/host/guest_memory.py",
        "if key[-1] != size:", "if False:", (f"{_MEMORY}test_an_image_of_another_size_is_refused",),
    ),
    Mutant(
        "any-agent-is-believed", "no two guests have one identity", "src/casemate/engine/start_steps.py",
        'if expected is not None and not', 'if False and not',
        (f"{_START}test_one_that_does_not_say_so_is_ended_and_the_qube_boots",
         f"{_START}test_an_agent_that_knows_no_images_becomes_none"),
    ),
    Mutant(
        "mounted-in-the-image", "an image has no file system mounted that is another in each qube",
        "src/casemate/engine/start_steps.py", "if expected == NONE_YET and mounts_later(domain):", "if False:",
        (f"{_START}test_an_agent_that_knows_no_images_becomes_none",),
    ),
    Mutant(
        "outdated-image", "an image is of its template's present state", "src/casemate/engine/warm_image.py",
        '*(f"{name}={content}" for name, content in sorted(disks.items()))', "",
        (f"{_KEY}test_whatever_the_memory_holds_makes_another_key",),
    ),
    Mutant(
        "image-outlives-the-boot", "an image is of this host's boot", "src/casemate/engine/warm_image.py",
        "words = [shape(spec), host, command,", "words = [shape(spec), command,",
        (f"{_KEY}test_whatever_the_memory_holds_makes_another_key",),
    ),
    Mutant(
        "image-of-an-old-template", "an image is of its template's present state", "src/casemate/engine/warm_images.py",
        "if any(self._pools.of(volume).is_outdated(volume) for volume in _of_the_image(domain)):", "if False:",
        (f"{_START}test_an_image_whose_template_changed_meanwhile_is_not_kept",),
    ),
    Mutant(
        "layer-of-an-image-unchecked", "S3", "src/casemate/storage/drivers/qcow2.py",
        "        check_file(run, base if volume.snap_on_start else None)\n", "",
        ("tests/contract/test_storage_driver.py::test_a_layer_whose_header_was_changed_becomes_no_part_of_an_image",),
    ),
    Mutant(
        "fork-not-sealed", "a fork cannot write what others share", "src/casemate/host/guest_memory.py",
        "            memory.copy_to(fd)\n            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)\n",
        "            memory.copy_to(fd)\n", (f"{_MEMORY}test_nobody_can_write_what_forks_share",),
    ),
    Mutant(
        "layer-of-a-fork-unchecked", "S3", "src/casemate/storage/drivers/qcow2.py",
        "        check_file(kept, below[0] if below else None)\n", "",
        ("tests/contract/test_storage_driver.py::test_a_layer_whose_header_was_changed_becomes_no_part_of_an_image",),
    ),
    Mutant(
        "forks-of-forks-without-end", "chains of layers are bounded", "src/casemate/storage/drivers/qcow2.py",
        "if len(below) >= len(_PINS):", "if False:",
        ("tests/contract/test_storage_driver.py::test_the_layer_of_a_machine_that_goes_on_is_copied_for_forks",),
    ),
    Mutant(
        "own-pages-not-copied", "a fork has what the qube has", "src/casemate/host/memory_map.py",
        "        if self.private:\n", "        if False:\n",
        ("tests/component/test_memory_map.py::test_a_copy_has_what_the_process_sees",),
    ),
    Mutant(
        "running-cannot-go-on", "a qube goes on in every case", "src/casemate/host/libvirt_machines.py",
        "            if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:\n                domain.resume()\n",
        "            domain.resume()\n",
        ("tests/component/test_libvirt_machines.py::test_machine_outlives_its_owner_and_is_found_again",),
    ),
    Mutant(
        "snapshot-without-disks", "what is kept stays", "src/casemate/engine/warm_images.py",
        "for key in (*self._images, *kept)}", "for key in self._images}",
        ("tests/unit/test_snapshots.py::test_its_disks_are_not_taken_for_what_a_killed_daemon_left",),
    ),
    Mutant(
        "snapshot-dropped-meanwhile", "nothing goes on from half a snapshot", "src/casemate/engine/snapshots.py",
        "        async with self._locks[name]:\n            snapshot = self._named(name)\n            gone",
        "        if True:\n            snapshot = self._named(name)\n            gone",
        ("tests/unit/test_snapshots.py::test_it_is_not_dropped_while_something_goes_on_from_it",),
    ),
    Mutant(
        "memory-of-another", "a machine gets its own memory", "src/casemate/host/guest_memory.py",
        "return os.dup(forked)", "return forked", (f"{_MEMORY}test_nobody_can_write_what_forks_share",),
    ),
)  # fmt: skip
