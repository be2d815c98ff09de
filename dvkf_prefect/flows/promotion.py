"""A flow that promotes a version of a model: gates, approval, canary, service and mirror."""

from typing import Any

from prefect import flow, pause_flow_run, suspend_flow_run
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import Field

from dvkf_prefect import (
    Approval,
    DvcRepository,
    KServeModelServer,
    KubeflowModelRegistry,
    ModelServer,
    compare_versions,
    comparison_card,
    find_block,
    promote_model,
    push_commits,
)


class Answer(RunInput):
    """Form in Prefect's UI that asks for approval."""

    approve: bool = Field(default=False, description="Promote the version.")
    person: str = Field(min_length=1, description="Your name, for the tag of the stage.")
    reason: str = Field(default="", description="Reason of the answer.")


def ask(description: str, timeout: int) -> Approval:
    """Ask for approval: suspend the run of a deployment, or let another run wait.

    Args:
        description: Markdown above the form.
        timeout: Seconds to wait for the answer.
    """
    form = Answer.with_initial_data(description=description)
    wait = suspend_flow_run if deployment.id else pause_flow_run
    try:
        answer = wait(wait_for_input=form, timeout=timeout, key="approval")
    except FlowPauseTimeout:
        return Approval(False, "no person", f"no answer in {timeout} s")
    return Approval(answer.approve, answer.person, answer.reason)


@flow(name="promote")
def promote(
    model: str,
    stage: str = "prod",
    which: str = "latest",
    gates: list[str] | None = None,
    canary: int | None = None,
    watch: float = 0.0,
    approval: bool = True,
    timeout: int = 24 * 3600,
    reason: str = "",
    publish_to: str = "",
    repository: DvcRepository | str = "local",
    server: ModelServer | KServeModelServer | str = "local",
    registry: KubeflowModelRegistry | str = "",
    push: bool = True,
) -> dict[str, Any]:
    """Promote a registered version of a model to a stage, and serve it.

    If a gate or the approval refuses it, or it does not serve, the version before it keeps stage and traffic. A
    run that was killed is continued by a retry, or by another run.

    Args:
        model: Model to promote, by its name in dvc.yaml.
        stage: The model stage.
        which: Version to promote, such as v1.0.0; or latest.
        gates: Conditions, such as metric:accuracy>=champion-0.01.
        canary: Part of the traffic, 0 to 99 percent, that the version gets first; no canary if empty.
        watch: Seconds for which the canary gets its traffic.
        approval: Ask for approval after the gates.
        timeout: Seconds to wait for the answer.
        reason: Reason of the promotion, for its tag.
        publish_to: Place to publish the version to; nowhere if empty.
        repository: DVC Repository block, or its name.
        server: Model Server or KServe Model Server block, or its name; only the stage is changed if empty.
        registry: Kubeflow Model Registry block to mirror the model in, or its name; none if empty.
        push: Push the tags to git's origin if there is one. For a git URL, push the journal at each step, so that any
            worker continues.

    Returns:
        The version and its stages.
    """
    data = find_block(DvcRepository, repository, "repository")
    settings: dict[str, Any] = {
        "server": server or None,
        "registry": registry or None,
        "gates": gates or (),
        "canary": canary,
        "watch": watch,
        "publish_to": publish_to,
        "reason": reason,
        "share": None if push else False,
    }
    answer = None
    if approval:
        version = promote_model(data, model, which, stage, **settings, wait=True).version
        card = comparison_card(compare_versions(data, model, version, stage), data.name)
        headline = f"Promotion of `{model} {version}` to `{stage}`."
        answer = ask(f"{headline} {card.description}\n\n{card.markdown}", timeout)
        which = version
    version = promote_model(data, model, which, stage, **settings, approval=answer)
    if push:
        push_commits(data)
    return {"model": model, "version": version.version, "stages": list(version.stages)}
