"""Behaviours of a real server that the fake has, and wrong assumptions about it that the product had, with their tests.

`BEHAVIOURS` are those of the fake server, each read from the real one's sources. `ASSUMPTIONS` are what this package
once took a server for; each names the tests of the product that show the right handling in each version. Tests are
named ``file::function``; `tests.kubeflow.test_behaviours` holds that all of them exist.
"""

from __future__ import annotations

from typing import NamedTuple

FAKE, RULES, REAL, SHOWN = "test_fake", "test_fake_rules", "test_real_server", "test_shown"


class Behaviour(NamedTuple):
    """A behaviour of the server.

    Attributes:
        name: What the server does.
        source: Where its sources say so, as in `tests.kubeflow.fake`.
        tests: Tests of the fake that show it.
    """

    name: str
    source: str
    tests: tuple[str, ...]


class Assumption(NamedTuple):
    """A wrong assumption.

    Attributes:
        right: What holds instead.
        tests: Tests of the product on each version of the server.
        plain: Tests of the product without a server, so that its version makes no difference.
    """

    right: str
    tests: tuple[str, ...]
    plain: tuple[str, ...] = ()


def _of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}::test_{name}" for name in names)


BEHAVIOURS: dict[int, Behaviour] = {
    1: Behaviour(
        "Columns end at 255 characters, experiments at 128, and utf8mb3 stores no character beyond the first plane",
        "apiserver/model/run.go:207-211, client_manager.go:342-347, client/sql.go:28",
        _of(FAKE, "a_row_that_does_not_fit_is_500_after_its_workflow_started",
            "a_pipeline_with_a_character_that_utf8mb3_lacks_is_not_stored",
            "the_name_of_an_experiment_ends_at_128_characters_and_ignores_case"),
    ),
    2: Behaviour(
        "The workflow is made before the row, and a workflow without a row is deleted after its grace",
        "apiserver/resource/resource_manager.go:742-772, 1570-1600",
        _of(FAKE, "a_second_run_of_one_id_is_500_and_its_workflow_runs_on",
            "a_workflow_without_a_run_is_deleted_after_its_grace"),
    ),
    3: Behaviour(
        "A terminated run is CANCELING, and then FAILED",
        "apiserver/storage/run_store.go:823, common/util/workflow.go:314-318",
        _of(FAKE, "a_terminated_run_is_canceling_and_then_failed"),
    ),
    4: Behaviour(
        "Tasks that were not reached are absent, and omitted ones have no state",
        "common/util/workflow.go:906-918, argo dag.go:199-224",
        _of(FAKE, "stages_that_were_not_reached_are_absent_and_followers_have_no_state"),
    ),
    5: Behaviour(
        "Nodes are called executor, root, x-driver and, since 2.17, x(0), and no task may share a name with them",
        "v2/compiler/argocompiler, workflow-controller-configmap-patch.yaml:49-59",
        _of(FAKE, "names_of_nodes") + _of(REAL, "names_that_are_argos_own"),
    ),
    6: Behaviour(
        "Tasks have ids of nodes in place of pods' names, and no error",
        "common/util/workflow.go:391-408, 906-918",
        _of(FAKE, "tasks_have_ids_of_nodes_in_place_of_pods_and_no_error"),
    ),
    7: Behaviour(
        "The API server's log route answers 200 with an error, and the UI's host has another route",
        "apiserver/server/run_log_server.go:61, frontend/server/app.ts",
        _of(FAKE, "the_api_servers_log_route_answers_200_with_an_error", "the_uis_host_has_another_route"),
    ),
    8: Behaviour(
        "Artifacts are uploaded below the pipeline root, and recorded with metadata of known types",
        "v2/component/launcher_v2.go:805-822, v2/objectstore/config.go:101-104, v2/metadata/converter.go",
        _of(FAKE, "an_artifact_outside_the_pipeline_root_fails_a_stage_that_succeeded")
        + _of(SHOWN, "the_launcher_refuses", "the_launcher_cannot_bring_an_input_of_a_foreign_uri",
              "kfp_shows_parameters_artifacts_and_their_lineage"),
    ),
    9: Behaviour(
        "Drivers are pods of their own, which take time and fail with a reason that only their logs have",
        "v2/driver/root_dag.go, v2/driver/container.go, argo operator.go (inferFailedReason)",
        _of(FAKE, "the_first_driver_fails_with_a_reason_that_only_its_log_has",
            "a_driver_is_a_pod_that_takes_its_time", "a_driver_fails_on_a_quantity_that_kubernetes_cannot_read"),
    ),
    10: Behaviour(
        "Retries: OnError since 2.17, lost pods unasked, a longest duration, whole factors",
        "argo operator.go:1028-1125, 2133, argo/util/intstr/parametrizable.go:12-45",
        _of(FAKE, "a_command_that_fails_is_tried_again_until_the_policy_became_onerror",
            "a_pod_that_is_lost_is_tried_again_unasked_since_2_17",
            "the_longest_duration_and_the_factor_of_retries"),
    ),
    11: Behaviour(
        "A pod imports what its image has, or what its command installs; an image that is not there waits",
        "sdk/python/kfp/dsl/component_factory.py:503-586",
        _of(RULES, "a_pod_imports_what_its_image_has", "packages_that_a_command_installs_are_there")
        + _of(FAKE, "an_image_without_kfp_fails_and_one_that_is_not_there_waits"),
    ),
    12: Behaviour(
        "Sizes: a pod's template, a workflow, a request, the nodes that are reported and joined",
        "argo common.go:280, workflowpod.go:462-541, packer.go:15-20, apiserver/config/config.json",
        _of(FAKE, "a_long_template_needs_a_right_that_argo_does_not_have",
            "a_workflow_of_more_than_a_mebibyte_fails_and_a_larger_one_is_refused",
            "compressed_nodes_are_not_reported", "a_run_with_too_many_nodes_cannot_be_read"),
    ),
    13: Behaviour(
        "Settings of pods are known, or acted on, since a version; Kubernetes refuses wrong ones",
        "kubernetes_platform/proto, v2/driver/k8s.go, argocompiler/container.go:285, 445-447",
        _of(FAKE, "a_setting_is_known_since_a_version", "settings_that_a_server_takes_and_ignores",
            "a_pod_that_kubernetes_refuses_is_an_error_of_its_node"),
    ),
    14: Behaviour(
        "Labels of pods, drivers' pods, pods that go with their workflow, pods that are not made",
        "2.5.0 argocompiler/container.go:276-289, 447; TTL 3600 s in 2.17",
        _of(FAKE, "labels_of_pods", "pods_go_with_their_workflow",
            "a_quota_leaves_a_run_without_a_pod_and_without_an_end"),
    ),
    15: Behaviour(
        "Filters are unescaped twice and ignore case; operations, fields and orders by kind; tokens hold the filter",
        "apiserver/server/list_request_util.go, filter/filter.go, list/list.go, model (APIToModelFieldMap)",
        _of(FAKE, "a_filter_is_unescaped_twice_and_ignores_case", "a_page_token_belongs_to_its_filter")
        + _of(RULES, "each_operation_of_a_filter", "filters_that_are_refused",
              "fields_by_which_a_kind_of_row_is_filtered_and_sorted", "orders_that_are_refused",
              "a_page_token_holds_filter_order_and_next_row", "sizes_of_pages"),
    ),
    16: Behaviour(
        "Multi-user mode wants a user, a namespace and a right; a service account must exist",
        "apiserver/resource/resource_manager.go (IsAuthorized)",
        _of(FAKE, "multi_user_mode_wants_a_namespace_and_a_right", "a_service_account_that_is_not_there")
        + _of(RULES, "statuses_of_multi_user_mode"),
    ),
    17: Behaviour(
        "Statuses, codes and bodies of refusals: of the API server, its gateway, and what is in front of them",
        "common/util/error.go, resource_manager.go:638-675, 747, grpc-gateway's runtime",
        _of(FAKE, "a_refused_pipeline_is_500_and_starts_nothing")
        + _of(RULES, "statuses_and_bodies_of_refusals", "the_gateways_own_refusals",
              "uploads_and_logs_have_bodies_of_their_own",
              "answers_of_what_is_in_front_of_the_server"),
    ),
    18: Behaviour(
        "SIGTERM reaches a stage, or its launcher dies first and it is killed after its grace",
        "argo exec_control.go:57-66",
        _of(FAKE, "a_stage_without_sigterm_is_killed_after_its_grace"),
    ),
    19: Behaviour(
        "A run's state is stored before its tasks",
        "apiserver/server/report_server.go",
        _of(FAKE, "a_runs_state_is_stored_before_its_tasks"),
    ),
    20: Behaviour(
        "A run's id ends at 191 characters",
        "apiserver/model/run.go:207",
        _of(FAKE, "a_row_that_does_not_fit_is_500_after_its_workflow_started"),
    ),
    21: Behaviour(
        "A login in front: all parts of its cookie until they expire, or a token; an authority of its own",
        "kubeflow/manifests common/oauth2-proxy/base/oauth2_proxy.cfg",
        _of(FAKE, "the_proxy_wants_all_parts_of_its_cookie_until_they_expire",
            "a_host_with_a_certificate_of_its_own_authority"),
    ),
    22: Behaviour(
        "Stages have none of root's capabilities since 2.16",
        "v2/driver/security_context.go",
        _of(FAKE, "a_stage_without_capabilities"),
    ),
    23: Behaviour(
        "A run that is being terminated, or has ended, is not terminated again: 400",
        "apiserver/storage/run_store.go:823",
        _of(FAKE, "a_terminated_run_is_canceling_and_then_failed"),
    ),
    24: Behaviour(
        "A run has more fields than were sent, and empty ones are left out",
        "apiserver/server/api_converter.go:1565-1660",
        _of(FAKE, "a_run_that_is_told_has_more_than_was_sent")
        + _of("test_behaviours", "a_run_of_the_same_name_without_a_description_is_not_taken"),
    ),
    25: Behaviour(
        "Faults of the database and of proxies, before and after something happened",
        "resource_manager.go:742-772; nginx's limit of a body",
        _of("test_random_runs", "a_random_run")
        + _of(REAL, "a_run_that_was_not_stored_is_not_started_a_second_time",
              "a_request_that_a_proxy_does_not_pass_on_is_told_at_once"),
    ),
}  # fmt: skip

ASSUMPTIONS: dict[str, Assumption] = {
    "W1": Assumption("A model keeps the URI that the launcher uploads to",
                     _of(REAL, "a_model_keeps_the_uri_that_the_launcher_uploads_to")),
    "W2": Assumption("Names and descriptions fit into the server's columns",
                     _of(REAL, "many_stages_with_long_and_unusual_names_fit_into_the_servers_columns",
                         "one_stage_with_a_very_long_name")),
    "W2b": Assumption("Characters that the database lacks are refused before anything is sent",
                      _of(REAL, "a_character_that_the_database_lacks_is_refused_before_anything_is_sent")),
    "W3": Assumption("A 500 that is a refusal is not repeated",
                     _of(REAL, "a_refusal_is_told_at_once_and_not_repeated",
                         "a_run_that_was_not_stored_is_not_started_a_second_time")),
    "W4": Assumption("A run that was terminated elsewhere is cancelled, though the server calls it failed",
                     _of(REAL, "a_run_that_is_terminated_in_the_ui_is_cancelled_though_the_server_calls_it_failed")),
    "W5": Assumption("Logs come by the UI's route or the API server's, and an error is no log",
                     _of(REAL, "a_log_that_is_nowhere_is_not_an_error_text",
                         "the_log_and_the_end_of_a_killed_pod_without_kubernetes")),
    "W6": Assumption("There is no default image, and a pod that lacks a package says so",
                     _of("test_behaviours", "a_stage_without_an_image_is_refused_before_anything_is_sent",
                         "a_pod_whose_image_lacks_a_package_tells_which")),
    "W7a": Assumption("Failed commands are retried in their pod",
                      _of(REAL, "a_command_that_fails_is_tried_again_in_its_pod")),
    "W7b": Assumption("The window of retries holds every try",
                      (), _of("test_placement", "the_window_of_retries_holds_every_try")),
    "W7c": Assumption("Factors of retries are whole numbers",
                      (), _of("test_placement", "a_factor_that_argo_cannot_read_is_refused")),
    "W7d": Assumption("A stage is tried as often as its settings say",
                      _of(REAL, "a_command_is_tried_as_often_as_its_settings_say")),
    "W8": Assumption("A login is a whole Cookie header, in parts",
                     _of("test_behaviours", "a_stage_runs_behind_a_login_with_a_cookie_in_parts")),
    "W9": Assumption("Stages without a node were not run, which is no failure of theirs",
                     _of(REAL, "a_stage_that_never_started_is_not_told_as_failed",
                         "a_run_whose_first_driver_fails_tells_why")),
    "W10": Assumption("Names of tasks are not those of Argo's nodes", _of(REAL, "names_that_are_argos_own")),
    "W11": Assumption("A workflow does not grow with the square of its stages",
                      _of(REAL, "stages_of_one_run_fit_into_a_workflow"),
                      _of(SHOWN, "the_pipeline_of_many_stages_stays_within_argos_limits")),
    "W12": Assumption("A specification fits into Argo's template, or goes by the remote",
                      _of(REAL, "a_large_specification_fits_into_argos_template",
                          "many_outputs_go_to_later_stages_by_the_remote")),
    "W13": Assumption("A pod belongs to the stage of its node", _of(REAL, "a_pod_belongs_to_its_stage")),
    "W14": Assumption("A service account that is missing, or powerless, is named",
                      _of(REAL, "a_service_account_that_is_not_there_is_named",
                          "a_first_driver_without_rights_or_metadata_tells_why")),
    "W15": Assumption("Dispatchers on different machines start one workflow",
                      _of(REAL, "dispatchers_at_once_start_one_workflow")),
    "W16": Assumption("Filters are escaped once more, and names compared without case",
                      _of(REAL, "an_experiment_with_an_unusual_name_is_found_again",
                          "an_experiment_whose_name_differs_in_case_is_the_same")),
    "W17": Assumption("Settings of pods are refused where the server, its drivers or Kubernetes would",
                      _of("test_pod_versions",
                          "a_setting_that_the_server_lacks_is_refused_before_anything_is_sent",
                          "a_server_knows_and_acts_on_all_that_is_sent")),
    "W18": Assumption("Many stages are split into several runs",
                      _of(REAL, "stages_in_several_runs", "five_hundred_stages_of_one_batch")),
    "W19": Assumption("Tasks are awaited that are stored later than their run's state",
                      _of(REAL, "a_run_whose_tasks_are_stored_later_than_its_state")),
    "W20": Assumption("A result belongs to its attempt",
                      _of(REAL, "the_failure_of_an_earlier_attempt_is_not_told_for_a_killed_one")),
    "W21": Assumption("A pod that cannot be made ends the wait for it",
                      _of(REAL, "a_pod_that_kubernetes_does_not_make")),
}  # fmt: skip
