"""Recording of smoke predictions: the answers of the present model to requests, for the gates of its next version."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from dvkf_prefect.errors import ModelError, ParseError
from dvkf_prefect.files import write_atomic
from dvkf_prefect.models.content import ModelContents
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.smoke import ATOL, META, RTOL, Case, Smoke, parse_smoke, smoke_path
from dvkf_prefect.serving.loading import load_model


def record_smoke(
    registry: ModelRegistry,
    name: str,
    requests: Sequence[Any] | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    model_format: str | None = None,
) -> Smoke:
    """Record the answers of the present model in the file that its artifact names.

    The model is loaded after the digest that DVC recorded is verified.

    Args:
        registry: Registry of the model; its workspace has the model.
        name: Name of the model.
        requests: Requests, each ``{"instances": [row, …]}`` or ``{"inputs": [tensor, …]}``. None for those that are
            recorded, with their tolerances.
        rtol: Relative tolerance of numbers; 1e-5 for a new request, or the recorded one.
        atol: Absolute tolerance of numbers; 1e-8 for a new request, or the recorded one.
        model_format: Format of the model; by the names of its files if None.

    Returns:
        The recorded requests; commit their file.

    Raises:
        ModelError: The artifact names no file, or nothing is recorded yet.
        ModelNotFoundError: The workspace does not declare the model.
        ModelDigestError: The model is not the one that DVC recorded.
        PredictionError: A request does not fit the model.
        ServingError: The model cannot be loaded.
        ParseError: The requests, or the recorded ones, do not follow their format.

    Example:
        >>> record_smoke(ModelRegistry(repo), "digits", [{"instances": [[0.0] * 64]}])
    """
    repo = registry.repo
    path = smoke_path(repo, registry.git, name, None)
    if not path:
        raise ModelError(
            f"'{name}' names no file for its smoke predictions. Add `meta: {{{META}: smoke.json}}` to it under "
            "`artifacts` in dvc.yaml."
        )
    file = repo.root / path
    cases = _recorded(name, file, path) if requests is None else [_case(request) for request in requests]
    if not cases:
        raise ParseError(path, "at least one request is expected")
    present = ModelContents(repo, registry.git).present(name)
    with ExitStack() as keep:
        model = load_model(
            repo.root / present.path,
            present.content.digest,
            name,
            "present",
            model_format=model_format,
            keep=keep,
        )
        answered = []
        for case in cases:
            key, found = ("inputs", "outputs") if case.tensors else ("instances", "predictions")
            answer = model.answer("v2" if case.tensors else "v1", {key: case.asked})
            # As a client reads it.
            expected = json.loads(json.dumps(answer[found]))
            answered.append(
                replace(
                    case,
                    expected=expected,
                    rtol=case.rtol if rtol is None else rtol,
                    atol=case.atol if atol is None else atol,
                )
            )
    smoke = Smoke(tuple(answered), present.content.digest, path)
    content = smoke.render()
    parse_smoke(content, path)
    write_atomic(file, content)
    return smoke


def _recorded(name: str, file: Path, path: str) -> list[Case]:
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(
            f"'{path}' has no recorded requests of '{name}'. Give requests, as a file of JSON with --requests."
        ) from error
    return list(parse_smoke(data, path).cases)


def _case(request: Any) -> Case:
    for tensors, key in enumerate(("instances", "inputs")):
        if isinstance(request, dict) and set(request) == {key} and isinstance(request[key], list):
            return Case(request[key], (), bool(tensors), RTOL, ATOL)
    raise ParseError("requests", 'each is {"instances": [row, …]} or {"inputs": [tensor, …]}')
