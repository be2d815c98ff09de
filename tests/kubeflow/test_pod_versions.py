"""Settings of pods and the versions of the server that act on them."""

from __future__ import annotations

import dataclasses

import pytest

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.cluster.runner import KfpClusterRunner
from dvkf_prefect.kubeflow.compile.compile import PodPlan, compile_for_cluster
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, parse_defaults
from dvkf_prefect.kubeflow.compile.versions import check_version, needed_by
from dvkf_prefect.pipeline.step.spec import StepSpec

from .fake import VERSIONS, platform
from .test_placement import FULL

every_version = pytest.mark.parametrize("version", VERSIONS)
# Settings that a version lacks, and the words of the refusal.
LATER = [
    ({"node_affinity": [{"node": "a"}]}, (2, 14), "older servers ignore it. Use `node_selector`"),
    ({"security_context": {"user": 5}}, (2, 16), "Set the user in the image"),
    ({"volumes": [{"claim": "a", "mount": "/a", "sub_path": "b"}]}, (2, 16), "Mount the whole volume"),
    ({"secrets": [{"name": "a", "env": {"k": "K"}, "optional": True}]}, (2, 15), "mount the keys as files"),
    (
        {"config_maps": [{"name": "a", "env": {"k": "K"}, "optional": True}]},
        (2, 15),
        "mount the keys as files",
    ),
]


def configuration(placement: Placement) -> dict:
    plan = PodPlan(lambda task: "{}", {"a": placement}, {}, {"dvkf-run": "x"}, lambda task, text: "")
    spec = compile_for_cluster([StepSpec("a", ("true",), "")], plan, name="demo", image="other")
    return spec["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-a"]


@every_version
def test_a_server_knows_and_acts_on_all_that_is_sent(version):
    """The SDK writes ``optional: false`` of variables, for which 2.14 refuses the pipeline and 2.5 drops its labels."""
    number = tuple(map(int, version.split(".")))
    later = {need.setting.split(".")[0] for need in needed_by(parse_defaults(FULL)) if need.version > number}
    values = {key: value for key, value in FULL.items() if key not in later}
    if "volumes" in later:
        values["volumes"] = [{"claim": "scratch", "mount": "/scratch"}]
    placement = dataclasses.replace(parse_defaults(values), models=())
    check_version({"a": placement}, number)
    config = configuration(placement)
    assert not platform.unknown_field(config, number)
    assert not platform.ignored_fields(config, number)
    assert not platform.pod_problem(config, None, number)
    assert not platform.driver_problem({}, config, number)
    assert platform.metadata(config, number)["labels"]["dvkf-run"] == "x"


@pytest.mark.parametrize(("values", "since", "step"), LATER)
def test_each_setting_needs_the_version_that_acts_on_it(values, since, step):
    placement = parse_defaults(values)
    check_version({"a": placement}, since)
    check_version({"a": placement}, None)
    before = (since[0], since[1] - 1)
    with pytest.raises(ConfigError) as caught:
        check_version({"a": placement}, before)
    (key,) = values
    message = str(caught.value)
    assert f"stage 'a', setting '{key}" in message and step in message
    assert f"{since[0]}.{since[1]} is needed" in message
    config = configuration(placement)
    assert platform.unknown_field(config, before) or platform.ignored_fields(config, before)
    assert not platform.unknown_field(config, since) and not platform.ignored_fields(config, since)


@every_version
def test_a_setting_that_the_server_lacks_is_refused_before_anything_is_sent(project, kfp, settings, version):
    values = {"security_context": {"user": 5}, "secrets": [{"name": "hub", "env": {"token": "HF_TOKEN"}}]}
    kfp.secrets["hub"] = {"token": "t"}
    defaults = parse_defaults(values).over(settings.defaults)
    step = project.step("a", 'test "$HF_TOKEN" = t && echo 1 > x', outs=["x"])
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, defaults=defaults)) as runner:
        if version == "2.17":
            assert not runner.start(step).wait(60).failed
            return
        with pytest.raises(ConfigError, match=f"the server has Kubeflow Pipelines {version}; 2.16 is needed"):
            runner.start(step).wait(60)
    assert not kfp.workflows
    defaults = dataclasses.replace(defaults, security_context=None)
    with KfpClusterRunner(project.repo, dataclasses.replace(settings, defaults=defaults)) as runner:
        assert not runner.start(step).wait(60).failed
