"""Smoke predictions of a model: recorded requests with their answers, which travel with each version.

They are a JSON file in git that the artifact of the model names in dvc.yaml, relative to that file::

    artifacts:
      digits:
        path: model.joblib
        meta:
          smoke: smoke.json

The file has ``cases``, each with ``instances`` and ``predictions`` (rows, as in KServe's V1 protocol), or with
``inputs`` and ``outputs`` (tensors of the Open Inference Protocol). ``rtol`` and ``atol`` of the file, or of a case,
are the tolerances of numbers, as in `math.isclose`.
"""

from __future__ import annotations

import json
import math
import posixpath
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Protocol

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import ModelError, ParseError, ServingError
from dvkf_prefect.models.content import ModelContents
from dvkf_prefect.models.observed import Observed

META = "smoke"
RTOL, ATOL = 1e-5, 1e-8
_FORMAT = 1
# Seconds to wait for the answer to the last replayed request.
_LEAST = 1.0
_KINDS = (("instances", "predictions"), ("inputs", "outputs"))


class Answering(Protocol):
    """An endpoint that predicts, see `dvkf_prefect.serving.endpoint.Endpoint`."""

    @property
    def url(self) -> str:
        """Its address; empty if this process cannot reach it."""

    def predict(self, instances: Sequence[object], *, timeout: float = ...) -> list[Any]:
        """Predict rows."""

    def infer(
        self, inputs: Sequence[Mapping[str, Any]], *, outputs: Sequence[str] = ..., timeout: float = ...
    ) -> dict[str, Any]:
        """Predict tensors."""


@dataclass(frozen=True)
class Case:
    """A recorded request.

    Attributes:
        asked: Rows, or tensors.
        expected: The answer: one prediction a row, or tensors.
        tensors: True for tensors of the Open Inference Protocol.
        rtol: Relative tolerance of numbers.
        atol: Absolute tolerance of numbers.
    """

    asked: Sequence[Any]
    expected: Sequence[Any]
    tensors: bool = False
    rtol: float = RTOL
    atol: float = ATOL

    def difference(self, endpoint: Answering, *, timeout: float) -> str:
        """Send the request; return the first difference of the answer, empty for none.

        Args:
            endpoint: The endpoint to ask.
            timeout: Seconds to wait for the answer.

        Raises:
            ServingError: The endpoint does not answer, or refused the request.
        """
        answer = self.ask(endpoint, timeout=timeout)
        if not self.tensors:
            return self._compare(answer, self.expected, "predictions")
        named = {each.get("name"): each for each in answer.get("outputs", ())}
        for wanted in self.expected:
            name = wanted["name"]
            if name not in named:
                return f"no output '{name}', but {', '.join(map(str, named)) or 'none'}"
            for key in ("shape", "data"):
                if said := self._compare(named[name].get(key), wanted[key], f"{name}.{key}"):
                    return said
        return ""

    def ask(self, endpoint: Answering, *, timeout: float) -> Any:
        """Send the request; return the predictions, or the answer with tensors.

        Args:
            endpoint: The endpoint to ask.
            timeout: Seconds to wait for the answer.

        Raises:
            ServingError: The endpoint does not answer, or refused the request.
        """
        ask: Callable[..., Any] = endpoint.infer if self.tensors else endpoint.predict
        return ask(self.asked, timeout=timeout)

    def _compare(self, found: Any, wanted: Any, at: str) -> str:
        if isinstance(wanted, list) and isinstance(found, list):
            if len(found) != len(wanted):
                return f"{at} has {len(found)} values, not {len(wanted)}"
            pairs: Any = ((f"{at}[{n}]", f, w) for n, (f, w) in enumerate(zip(found, wanted, strict=True)))
        elif isinstance(wanted, Mapping) and isinstance(found, Mapping):
            if set(found) != set(wanted):
                return f"{at} has the keys {sorted(found)}, not {sorted(wanted)}"
            pairs = ((f"{at}.{key}", found[key], wanted[key]) for key in wanted)
        else:
            return "" if self._same(found, wanted) else f"{at} is {found!r}, not {wanted!r}"
        return next((said for place, f, w in pairs if (said := self._compare(f, w, place))), "")

    def _same(self, found: Any, wanted: Any) -> bool:
        if isinstance(wanted, bool) or isinstance(found, bool):
            return found is wanted
        if isinstance(wanted, int | float) and isinstance(found, int | float):
            if math.isnan(wanted) or math.isnan(found):
                return math.isnan(wanted) and math.isnan(found)
            return math.isclose(found, wanted, rel_tol=self.rtol, abs_tol=self.atol)
        return type(found) is type(wanted) and found == wanted


@dataclass(frozen=True)
class Smoke:
    """Recorded requests of a model.

    Attributes:
        cases: The requests.
        digest: Digest of the model that answered them; empty if the file was written by hand.
        path: The file, relative to the repository's root.
    """

    cases: tuple[Case, ...]
    digest: str = ""
    path: str = ""

    def render(self) -> bytes:
        """Return the file's content."""
        cases = [
            {
                **dict(zip(_KINDS[case.tensors], (case.asked, case.expected), strict=True)),
                "rtol": case.rtol,
                "atol": case.atol,
            }
            for case in self.cases
        ]
        document = {"format": _FORMAT, "model_digest": self.digest, "cases": cases}
        return (json.dumps(document, indent=1) + "\n").encode()


def read_smoke(repo: Repository, git: Git, model: str, rev: str) -> Smoke | None:
    """Return the recorded requests of a model at a commit; None if it declares none.

    Args:
        repo: The repository.
        git: Its work tree.
        model: Name of the model; ``folder:name`` if declared in folder/dvc.yaml.
        rev: The commit.

    Raises:
        ModelNotFoundError: The commit does not declare the model.
        ModelError: The commit does not have the file.
        ParseError: The file does not follow its format.
    """
    path = smoke_path(repo, git, model, rev)
    if not path:
        return None
    try:
        data = repo.files(rev).read(path)
    except FileNotFoundError as error:
        raise ModelError(
            f"'{path}', the smoke predictions of model '{model}', is not in git at commit {rev[:7]}. Write it with "
            f"`dvkf model record-smoke {model}`, and commit it."
        ) from error
    return parse_smoke(data, path)


def replay(
    cases: Sequence[Case], endpoint: Answering, quantiles: Sequence[float], *, requests: int, seconds: float
) -> Observed:
    """Send recorded requests again and again, one at a time, and count the answers; their values are not compared.

    A request failed if it got no answer or an error. The time of a request is that until its answer is read here.

    Args:
        cases: The requests, at least one.
        endpoint: The endpoint to ask.
        quantiles: Quantiles of the seconds of a request, 0 to 1, by the nearest rank.
        requests: Number of requests to send.
        seconds: Time after which no more are sent; at least one is.
    """
    end = time.monotonic() + seconds
    spent: list[float] = []
    failed = 0
    for case in islice(cycle(cases), requests):
        begin = time.monotonic()
        if spent and begin >= end:
            break
        try:
            case.ask(endpoint, timeout=max(end - begin, _LEAST))
        except ServingError:
            failed += 1
        spent.append(time.monotonic() - begin)
    spent.sort()
    ranks = {each: spent[max(0, math.ceil(each * len(spent)) - 1)] for each in quantiles}
    return Observed(len(spent), failed, ranks)


def smoke_path(repo: Repository, git: Git, model: str, rev: str | None) -> str:
    """Return the file of a model's smoke predictions, relative to the root; empty if it declares none.

    Args:
        repo: The repository.
        git: Its work tree.
        model: Name of the model.
        rev: The commit; None for the workspace.

    Raises:
        ModelNotFoundError: The commit does not declare the model.
        ParseError: A dvc.yaml does not follow its format.
    """
    file, declared = ModelContents(repo, git).declaration(model, rev)
    named = declared.meta.get(META)
    return posixpath.normpath(posixpath.join(posixpath.dirname(file), str(named))) if named else ""


def parse_smoke(data: bytes, path: str) -> Smoke:
    """Return the recorded requests of a file.

    Args:
        data: The file's content.
        path: The file, for messages.

    Raises:
        ParseError: The file does not follow its format.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ParseError(path, f"JSON is expected ({error})") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ParseError(path, f'an object with "format": {_FORMAT} and `cases` is expected')
    cases = document.get("cases")
    if not isinstance(cases, list) or not cases:
        raise ParseError(path, "`cases` is a list of at least one case")
    tolerances = {"rtol": document.get("rtol", RTOL), "atol": document.get("atol", ATOL)}
    return Smoke(
        tuple(_case(case, tolerances, path, number) for number, case in enumerate(cases)),
        str(document.get("model_digest") or ""),
        path,
    )


def _case(values: Any, tolerances: Mapping[str, Any], path: str, number: int) -> Case:
    kinds = [
        tensors
        for tensors, keys in enumerate(_KINDS)
        if isinstance(values, dict) and all(isinstance(values.get(key), list) for key in keys)
    ]
    if len(kinds) != 1:
        raise ParseError(
            path, f"case {number} has the lists `instances` and `predictions`, or `inputs` and `outputs`"
        )
    bounds = {key: values.get(key, default) for key, default in tolerances.items()}
    for key, value in bounds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ParseError(path, f"case {number}: {key} is a number of at least 0, not {value!r}")
    asked, expected = (values[key] for key in _KINDS[kinds[0]])
    if kinds[0]:
        for tensor in (*asked, *expected):
            if not isinstance(tensor, dict) or not {"name", "shape", "data"} <= set(tensor):
                raise ParseError(path, f"case {number}: a tensor has `name`, `shape`, `datatype` and `data`")
    return Case(asked, expected, bool(kinds[0]), float(bounds["rtol"]), float(bounds["atol"]))
