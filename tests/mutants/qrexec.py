"""Mutants of the policy, the broker and the Admin API."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_CALLS = "tests/unit/test_policy_calls.py::"
_POWER = (f"{_CALLS}test_a_rule_for_all_services_gives_no_power_over_the_target",)
_DECIDE = "src/casemate/qrexec/decide.py"
_EVALUATE = "src/casemate/qrexec/evaluate.py"
_BROKER = "src/casemate/qrexec/broker.py"
_LISTENER = "src/casemate/qrexec/listener.py"

MUTANTS = (
    Mutant(
        "given-up-calls-stay", "what a guest gives up takes no memory", "src/casemate/link/guest_calls.py",
        "    def on_abort(self, why: str) -> None:\n        self._queue.remove(self)\n",
        "    def on_abort(self, why: str) -> None:\n        pass\n",
        ("tests/component/test_call_reports.py::test_a_call_that_is_given_up_while_it_waits_asks_nobody",),
    ),
    Mutant(
        "calls-not-paced", "limit of calls: calls that a qube may ask for in the long run",
        "src/casemate/link/guest_calls.py", "        if self._tokens < 1:\n            return False\n", "",
        ("tests/component/test_call_reports.py::test_a_qube_that_asks_too_often_waits",),
    ),
    Mutant(
        "closed-while-watched", "a descriptor is let go of before it is closed", "src/casemate/qrexec/listener.py",
        "            await asyncio.wait({task})\n", "",
        ("tests/unit/test_call_listener.py::test_a_file_that_gets_the_number_of_a_closed_socket_is_watched",),
    ),
    Mutant(
        "wildcard-rule-gives-power", "only a rule that names it allows a call of the Admin API", _DECIDE,
        'return decision.target in ("@adminvm", "dom0") or decision.rule.service is not None', "return True", _POWER,
    ),
    Mutant(
        "wildcard-rule-reaches-the-qube", "only a rule that names it allows a call of the Admin API", _BROKER,
        "if is_ours is False:", "if False:", _POWER,
    ),
    Mutant(
        "permission-by-any-rule", "only a rule that names it allows a call of the Admin API", _DECIDE,
        "return isinstance(found, Allow) and is_api_call(service, found) is True", "return isinstance(found, Allow)",
        _POWER,
    ),
    Mutant(
        "broken-policy-allows", "a policy that cannot be read allows nothing", _DECIDE,
        "return Deny(str(error), cause=BROKEN_POLICY)",
        "return evaluate(files.load({p: None for p in files.directory.iterdir() if 'broken' in p.name}), info, source,"
        " service, argument, target)",
        (f"{_CALLS}test_a_broken_policy_raises_an_alarm", f"{_CALLS}test_a_watcher_sees_every_step_and_every_cause"),
    ),
    Mutant(
        "answer-outlives-its-policy", "what has changed while a person was asked counts", _DECIDE,
        "now = decide_now(files, info(), source, service, argument, target)", "now = answer",
        ("tests/unit/test_policy_prompts.py::test_what_has_changed_meanwhile_counts",),
    ),
    Mutant(
        "answer-to-another-target", "what has changed while a person was asked counts", _DECIDE,
        "if now.target != answer.target:", "if False:",
        ("tests/unit/test_policy_prompts.py::test_what_has_changed_meanwhile_counts",),
    ),
    Mutant(
        "qube-calls-itself", "nobody calls itself", _EVALUATE,
        "return qube is not None and qube.name == other.name", "return False",
        ("tests/unit/test_policy.py::test_nobody_calls_itself",),
    ),
    Mutant(
        "tag-fits-the-keyword", "rules for a class or a tag do not fit @adminvm", _EVALUATE,
        "return self.qube.keyword_words if self.by_keyword else self.qube.target_words",
        "return self.qube.target_words",
        ("tests/unit/test_policy.py::test_target_tokens",),
    ),
    Mutant(
        "relay-as-the-rules-user", "user= does not change the relay's user", _EVALUATE,
        "return relay, Allow(relay.name, None, rule", "return relay, Allow(relay.name, rule.user, rule",
        ("tests/unit/test_policy_reference.py::test_decisions_are_those_of_the_reference",),
    ),
    Mutant(
        "include-removed-under-a-file", "a change of the policy is checked with the run-time directory",
        "src/casemate/qrexec/files.py",
        "if path in self._instead:\n                raise", "if False:\n                raise",
        ("tests/unit/test_policy_tools.py::test_a_change_must_fit_the_files_of_the_run_time_directory",),
    ),
    Mutant(
        "request-answered-twice", "a waiting request is answered once", "src/casemate/vchan/domain.py",
        "            self.answered(request)\n        else:", "            pass\n        else:",
        ("tests/component/test_vchan_requests.py::test_a_client_answers_a_waiting_request_once",), slow=True,
    ),
    Mutant(
        "reason-told-to-a-qube", "why a service of this host cannot be served stays on this host",
        "src/casemate/vchan/call.py",
        "        elif self._log is None:\n            refuse(", "        elif True:\n            refuse(",
        ("tests/component/test_vchan_requests.py::test_a_request_that_cannot_be_served",), slow=True,
    ),
    Mutant(
        "any-qube-as-template", "disposables are made of templates of disposables alone", _EVALUATE,
        "return template is not None and template.template_for_dispvms", "return template is not None",
        ("tests/unit/test_policy.py::test_requests_for_disposables",),
    ),
    Mutant(
        "names-can-be-probed", "a qube that does not exist counts as no target", _EVALUATE,
        "if found is None:\n        return DEFAULT", "if found is None:\n        return target",
        ("tests/unit/test_policy.py::test_a_call_without_target_goes_nowhere_by_itself",),
    ),
    Mutant(
        "autostart-ignored", "autostart=no", _EVALUATE,
        "if not rule.autostart and not request.info.is_running(runs):", "if False:",
        ("tests/unit/test_policy.py::test_autostart",),
    ),
    Mutant(
        "hidden-qube-shown", "internal qubes are not offered", _EVALUATE,
        "        if qube.internal:\n            continue\n", "",
        ("tests/unit/test_policy_prompts.py::test_the_list_of_targets",
         "tests/unit/test_policy_reference.py::test_decisions_are_those_of_the_reference"),
    ),
    Mutant(
        "policy-of-everybody", "a policy file that everybody may write says nothing", "src/casemate/qrexec/files.py",
        "if directory.stat().st_mode & stat.S_IWOTH:", "if False:",
        ("tests/unit/test_policy_files.py::test_what_everybody_may_write_is_no_policy",),
    ),
    Mutant(
        "broker-unlimited", "limit: calls that a link asks for", _BROKER,
        "if request.refused or not self._rate.allows(request.source):", "if request.refused:",
        (f"{_CALLS}test_a_link_that_floods_the_broker_gets_no_further",),
    ),
    Mutant(
        "requests-unlimited", "limit: requests of a link", _LISTENER,
        "if self._waiting.get(name, 0) >= MAX_WAITING:", "if False:",
        (f"{_CALLS}test_a_link_that_floods_the_broker_gets_no_further",),
    ),
    Mutant(
        "long-request", "limit: length of a request", _LISTENER,
        "if not more or len(data) > MAX_REQUEST:", "if not more:",
        (f"{_CALLS}test_a_request_that_is_too_long_is_refused",),
    ),
    Mutant(
        "set-up-for-ever", "limit: time to set a call up", _BROKER,
        "timeout=SETUP_SECONDS, return_when", "timeout=None, return_when",
        (f"{_CALLS}test_a_call_that_is_not_set_up_in_time_is_refused_and_the_start_goes_on",), slow=True,
    ),
    Mutant(
        "disposable-stays", "a disposable goes with its call", _BROKER,
        "            if disposable is not None:\n                await self._disposables.end(disposable)\n"
        "        return None",
        "            pass\n        return None",
        (f"{_CALLS}test_a_disposable_goes_with_its_call_whenever_the_caller_goes",), slow=True,
    ),
    Mutant(
        "api-socket-for-all", "V1", "src/casemate/api/server.py",
        "before = os.umask(0o177)", "before = os.umask(0)",
        ("tests/unit/test_api.py::test_the_socket_is_its_owners_alone",),
    ),
    Mutant(
        "host-socket-for-qubes", "V1", "src/casemate/api/permissions.py",
        "if request.source != ADMIN:", "if False:",
        ("tests/unit/test_api.py::test_every_method_says_what_it_does_and_asks_for_permission_first",),
    ),
    Mutant(
        "host-socket-for-all-users", "V1", "src/casemate/api/permissions.py",
        "if uid not in (0, os.geteuid()):", "if False:",
        ("tests/unit/test_api.py::test_a_peer_is_root_or_the_daemons_own_user",),
    ),
    Mutant(
        "too-many-connections", "limit: connections to the API", "src/casemate/api/server.py",
        "if len(self._server.connections) > self._server.max_connections:", "if False:",
        ("tests/unit/test_api.py::test_too_many_connections_are_told_so",),
    ),
    Mutant(
        "refusals-differ", "a qube cannot tell a missing qube from a hidden one", "src/casemate/api/dispatch.py",
        "error = PermissionDeniedError()", "pass",
        ("tests/unit/test_api.py::test_a_qube_is_not_told_what_is_missing",),
    ),
    Mutant(
        "fault-tells-all", "a fault of ours travels as an id", "src/casemate/api/dispatch.py",
        'InternalError(f"Internal error {ident}; the daemon\'s log says more")', "InternalError(str(error))",
        ("tests/unit/test_api.py::test_a_fault_of_ours_travels_as_an_id",),
    ),
)  # fmt: skip
