"""Mutants of the product: each turns off what it does about one behaviour of a real server.

As a plugin of pytest (``-p tests.kubeflow.mutants``) its import puts the mutant that `VARIABLE` names in place, before
any test is imported. The host of pods (`tests.kubeflow.fake.forks`) does the same, since a part of the product runs in
pods.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

VARIABLE = "DVKF_MUTANT"
_KUBEFLOW = "dvkf_prefect.kubeflow"


class Mutant(NamedTuple):
    """A change of the product.

    Attributes:
        changes: What is replaced, as ``module:name`` or ``module:class.name`` below ``dvkf_prefect.kubeflow``, and the
            function of it that returns its replacement.
        test: The test that fails with it.
    """

    changes: tuple[tuple[str, Callable[[Any], Any]], ...]
    test: str


def _always(value: Any) -> Callable[[Any], Any]:
    """Return a replacement by a function that returns one value."""
    return lambda old: lambda *arguments, **options: value


def _value(value: Any) -> Callable[[Any], Any]:
    return lambda old: value


def _located(describe: Any) -> Any:
    """Set the URI of an artifact to its content on the remote."""

    def described(artifacts: Any, *arguments: Any, **options: Any) -> None:
        describe(artifacts, *arguments, **options)
        for artifact in artifacts.values():
            artifact.uri = artifact.metadata.get("location", artifact.uri)

    return described


def _by_plain_names(old: Any) -> Any:
    """Take names of nodes without the numbers that they have since 2.17."""

    def task_of(node: str) -> tuple[str, bool]:
        match = re.search(r"\.root\.([a-z0-9-]+?)(-driver)?(\.|$)", node)
        return (match[1], bool(match[2])) if match else ("", False)

    return task_of


def _kept_results(delete: Any) -> Any:
    """Keep the result of an earlier attempt."""
    return lambda self, keys: delete(self, [key for key in keys if not key.endswith("/result.json")])


def _called_by_id(node: Any) -> Any:
    """Take the id of a node for the name of its pod."""

    def named(workflow: str, values: Any) -> Any:
        found = node(workflow, values)
        return replace(found, pod=str(values["id"])) if found.pod else found

    return named


def _terminated_plainly(terminate: Any) -> Any:
    return lambda self, run_id: self.call("POST", f"/apis/v2beta1/runs/{run_id}:terminate")


def _plainly(equals: Any) -> Any:
    """Escape a filter once, as other parameters of a query."""
    from urllib.parse import unquote

    return lambda **values: unquote(equals(**values))


def _with_all_fields(listed: Any) -> Any:
    """Read a field of each run that the server leaves out if it is empty."""

    def read(self: Any, path: str, key: str, query: Any) -> Any:
        for each in listed(self, path, key, query):
            yield each if key != "runs" else {**each, "description": each["description"]}

    return read


def _one(name: str, change: Callable[[Any], Any], test: str) -> Mutant:
    return Mutant(((name, change),), test)


_REAL = "test_real_server::test_"
MUTANTS: dict[str, Mutant] = {
    "W1": _one("pod.describe:describe", _located,
               f"{_REAL}a_model_keeps_the_uri_that_the_launcher_uploads_to[s3://lake/data-2.17]"),
    "W2": _one("cluster.submit:fit", lambda old: lambda text, length=255: text,
               f"{_REAL}many_stages_with_long_and_unusual_names_fit_into_the_servers_columns[2.17]"),
    "W2b": _one("cluster.submit:check_pipeline", _always(None),
                f"{_REAL}a_character_that_the_database_lacks_is_refused_before_anything_is_sent[2.17]"),
    "W3": _one("cluster.start:_PASSING", _value(re.compile("")),
               f"{_REAL}a_refusal_is_told_at_once_and_not_repeated[2.17]"),
    "W4": _one("cluster.watch:Watch._was_stopped", lambda old: lambda self, state: bool(self._why),
               f"{_REAL}a_run_that_is_terminated_in_the_ui_is_cancelled_though_the_server_calls_it_failed[False-2.17]"),
    "W5": _one("cluster.api:_is_error", _always(False), f"{_REAL}a_log_that_is_nowhere_is_not_an_error_text[2.17]"),
    "W6": _one("cluster.submit:check_images", _always(None),
               "test_behaviours::test_a_stage_without_an_image_is_refused_before_anything_is_sent[2.17]"),
    "W7a": _one("pod.attempts:Attempts.wait_after", _always(None),
                f"{_REAL}a_command_that_fails_is_tried_again_in_its_pod[2.17]"),
    "W7b": _one("compile.pod_settings:Retry.window", _always(3600),
                "test_placement::test_the_window_of_retries_holds_every_try[2-6h-64800]"),
    "W7c": _one("compile.pod_values:Factor", _value(float),
                "test_placement::test_a_factor_that_argo_cannot_read_is_refused[1.5]"),
    "W7d": _one("pod.attempts:Attempts.exhausted", _value(property(lambda self: False)),
                f"{_REAL}a_command_is_tried_as_often_as_its_settings_say[2.14]"),
    "W8": _one("cluster.login:Login.cookies", lambda old: lambda self: {"authservice_session": self.cookie},
               "test_behaviours::test_a_stage_runs_behind_a_login_with_a_cookie_in_parts[2.17]"),
    "W9": _one("cluster.watch:Watch._not_started", lambda old: lambda self, stage, run: self._lost(stage, run),
               f"{_REAL}a_stage_that_never_started_is_not_told_as_failed[2.17]"),
    "W10": _one("compile.compile:_RESERVED", _value(frozenset()), f"{_REAL}names_that_are_argos_own[2.17]"),
    "W11": _one("compile.compile:_WORKFLOW_LIMIT", _value(1 << 30),
                "test_shown::test_the_pipeline_of_many_stages_stays_within_argos_limits[100-False]"),
    "W12": Mutant((("compile.compile:_TASK_LIMIT", _value(1 << 30)),
                   ("compile.compile:_TEMPLATE_LIMIT", _value(1 << 30))),
                  f'{_REAL}a_large_specification_fits_into_argos_template["-2.17]'),
    "W13": Mutant((("cluster.pods:task_of", _by_plain_names), ("cluster.workflow:task_of", _by_plain_names)),
                  f"{_REAL}a_pod_belongs_to_its_stage[b-2.17]"),
    "W14": _one("cluster.workflow:Workflow.reason", _always(""),
                f"{_REAL}a_service_account_that_is_not_there_is_named[2.17]"),
    "W15": Mutant((("exchange.claims:Claim.take", _always(None)),
                   ("exchange.claims:Claim.held", _value(property(lambda self: True))),
                   ("exchange.claims:Claim.sending", _always(None)), ("exchange.claims:Claim.release", _always(None))),
                  f"{_REAL}dispatchers_at_once_start_one_workflow[2.17]"),
    "W16": _one("cluster.api:equals", _plainly, f"{_REAL}an_experiment_with_an_unusual_name_is_found_again[a+b-2.17]"),
    "W17": _one("cluster.submit:check_version", _always(None),
                "test_pod_versions::test_a_setting_that_the_server_lacks_is_refused_before_anything_is_sent[2.14]"),
    "W18": _one("cluster.chain:split", lambda old: lambda specs, edges, most: [list(specs)],
                f"{_REAL}stages_in_several_runs[2.17]"),
    "W19": _one("cluster.watch:Watch._awaited", _always(False),
                f"{_REAL}a_run_whose_tasks_are_stored_later_than_its_state[2.17]"),
    "W20": _one("dvkf_prefect.data.remotes.folder:FolderStorage.delete", _kept_results,
                f"{_REAL}the_failure_of_an_earlier_attempt_is_not_told_for_a_killed_one[2.17]"),
    "W21": _one("cluster.watch:kind_of", _always(""), f"{_REAL}a_pod_that_kubernetes_does_not_make[False-2.17]"),
    "B6": _one("cluster.workflow:_node", _called_by_id,
               f"{_REAL}the_log_and_the_end_of_a_killed_pod_without_kubernetes[True-2.17]"),
    "B9": _one("cluster.watch:Watch._driver_said", lambda old: lambda self, workflow, task="": workflow.reason(task),
               f"{_REAL}a_first_driver_without_rights_or_metadata_tells_why[broken1-Unavailable-2.17]"),
    "B16": _one("cluster.api:in_namespace", _always({}), "test_behaviours::test_a_stage_runs_in_a_profile[2.17]"),
    "B18": _one("pod.pod:stop", _always(None),
                "test_behaviours::test_a_stage_that_gets_sigterm_writes_that_it_was_stopped[2.17]"),
    "B21": _one("cluster.api:trust", lambda old: lambda ca_file, verify=True: verify,
                "test_fake::test_a_host_with_a_certificate_of_its_own_authority"),
    "B22": _one("compile.components:install_in_own_environment", _always(None),
                "test_images::test_packages_are_installed_where_a_container_without_rights_may_write"),
    "B23": _one("cluster.api:KfpApi.terminate", _terminated_plainly,
                "test_behaviours::test_a_run_that_has_ended_is_terminated_without_an_error[2.17]"),
    "B24": _one("cluster.api:KfpApi.listed", _with_all_fields,
                "test_behaviours::test_a_run_of_the_same_name_without_a_description_is_not_taken[2.17]"),
    "B25": _one("cluster.start:_NOT_STORED", _value("\0"),
                f"{_REAL}a_run_that_was_not_stored_is_not_started_a_second_time[2.17]"),
}  # fmt: skip
# Mutants of each behaviour of the server that the product handles.
OF_BEHAVIOURS = {
    1: "W2", 2: "W15", 3: "W4", 4: "W9", 5: "W10", 6: "B6", 7: "W5", 8: "W1", 9: "B9", 10: "W7a", 11: "W6", 12: "W12",
    13: "W17", 14: "W13", 15: "W16", 16: "B16", 17: "W3", 18: "B18", 19: "W19", 20: "W2", 21: "B21", 22: "B22",
    23: "B23", 24: "B24", 25: "B25",
}  # fmt: skip


def place_of(place: str) -> tuple[Any, str]:
    """Return the module or class, and the name in it, of ``module:name`` or ``module:class.name``."""
    module, _, path = place.partition(":")
    *owners, last = path.split(".")
    whole = module if module.startswith("dvkf_prefect") else f"{_KUBEFLOW}.{module}"
    owner: Any = importlib.import_module(whole)
    for each in owners:
        owner = getattr(owner, each)
    return owner, last


def apply(name: str) -> None:
    """Put a mutant in place in this process."""
    for place, change in MUTANTS[name].changes:
        owner, last = place_of(place)
        setattr(owner, last, change(getattr(owner, last)))


if os.environ.get(VARIABLE):
    apply(os.environ[VARIABLE])
