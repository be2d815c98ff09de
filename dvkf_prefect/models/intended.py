"""Check, before stages run, that the model they make could be registered afterwards."""

from __future__ import annotations

from collections.abc import Iterable

from dvkf_prefect.errors import ModelError
from dvkf_prefect.models import tags
from dvkf_prefect.models.content import ModelContents
from dvkf_prefect.models.making import Making
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.pipeline.report.uncommitted import UncommittedInput


def check_intended(
    registry: ModelRegistry, name: str, *, stage: str | None, left_out: Iterable[UncommittedInput]
) -> None:
    """Refuse a model that could not be registered, or not be assigned to a stage, once its stages have run.

    Args:
        registry: The registry of the repository.
        name: The model, as dvc.yaml in the workspace declares it.
        stage: The model's stage to assign, such as prod; None for none.
        left_out: Inputs of stages that the commit of the results will not have.

    Raises:
        ModelNotFoundError: The workspace does not declare the model.
        ModelError: The name or the stage is not valid, the model is no output, or the commit would not have an input of
            the stages behind it.
    """
    tags.check_model_name(name)
    if stage is not None:
        registry.check_stage(stage)
    repo = registry.repo
    path = ModelContents(repo, registry.git).declaration(name, None)[1].path
    here = Making(repo.files())
    if here.tracked(path) is None:
        raise ModelError(
            f"'{path}', the path of model '{name}', is not an output in the workspace. Make it an output of a stage."
        )
    behind = {each.address for each in here.upstream(path)}
    missing = [str(each) for each in left_out if behind.intersection(each.stages)]
    if missing:
        raise ModelError(
            f"model '{name}' could not be registered after its stages: the commit would not have "
            f"{'; '.join(missing)}. Commit them to git or track them with `dvkf add`."
        )
