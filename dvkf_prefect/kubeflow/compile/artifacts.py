"""KFP artifacts of a stage: its metrics, plots, models and other outputs, and those of upstream stages that it reads.

An artifact describes an output; the data stays on DVC's remote. It keeps the URI that the driver gave it, below the
pipeline root, because the launcher fails with any other one:

- As an output, a URI of a scheme that the launcher knows must be below the pipeline root
  (``backend/src/v2/component/launcher_v2.go`` ``uploadOutputArtifacts`` and ``objectstore/config.go`` ``KeyFromURI``).
  One of any other scheme passes there with a warning.
- As an input, a URI of any other scheme ends the task that reads it, before its command
  (``fetchNonDefaultBuckets`` and ``ParseBucketConfigForArtifactURI`` in the same files).
- An importer's artifact as an input is downloaded into the pod, a second time beside DVC's own download.

All this is equal in 2.5, 2.14 and 2.17. So nothing is imported, and the launcher carries only the small file that the
pod writes to each artifact.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dvkf_prefect.kubeflow.compile.parameters import identifier
from dvkf_prefect.pipeline.step.spec import StepSpec

# Fields of a ROC curve, by the names that scikit-learn, DVCLive and TensorFlow give them.
_FALSE_POSITIVES = frozenset({"fpr", "false_positive_rate", "falsepositiverate"})
_TRUE_POSITIVES = frozenset({"tpr", "true_positive_rate", "truepositiverate", "recall"})


class StageArtifact(NamedTuple):
    """A KFP artifact that a stage writes.

    Attributes:
        name: Name of the component's output.
        kind: Class in ``kfp.dsl``: Metrics, ClassificationMetrics, HTML, Markdown, Model or Dataset.
        path: Output that it describes; for metrics "", because one artifact holds all of them. For a plot its source.
        title: Name in KFP's UI.
        plot: Definition of the plot, with the y axis of this artifact alone; None for other artifacts.
    """

    name: str
    kind: str
    path: str
    title: str
    plot: Mapping[str, Any] | None = None


def artifacts_of(step: StepSpec) -> list[StageArtifact]:
    """Return the artifacts of a stage: metrics and models first, then plots, then data.

    An output of any kind that is not a model is a Dataset: what other stages read of it is then its digest.

    Args:
        step: The stage.

    Example:
        >>> from dvkf_prefect.pipeline.step.spec import StepOutput
        >>> outs = (StepOutput("m.pkl"), StepOutput("data/x.csv"))
        >>> step = StepSpec("train", ("true",), "", outs=outs, models=("m.pkl",))
        >>> [(a.name, a.kind) for a in artifacts_of(step)]
        [('model_0', 'Model'), ('data_x_csv', 'Dataset')]
    """
    found: list[StageArtifact] = []
    if any(out.kind == "metric" for out in step.outs):
        found.append(StageArtifact("metrics", "Metrics", "", "metrics"))
    found += [StageArtifact(f"model_{i}", "Model", path, path) for i, path in enumerate(step.models)]
    taken = {each.name for each in found}
    for name, definition in _plots(step).items():
        for kind, path, title, plot in _drawn(name, definition):
            found.append(StageArtifact(_unique(f"plot_{title}", taken), kind, path, title, plot))
    models = set(step.models)
    for out in step.outs:
        if out.path not in models:
            found.append(StageArtifact(_unique(out.path, taken), "Dataset", out.path, out.path))
    return found


def _plots(step: StepSpec) -> dict[str, Mapping[str, Any]]:
    declared = dict(step.plots)
    used = {path for name, definition in declared.items() for path in plot_sources(name, definition)}
    for out in step.outs:
        if out.kind == "plot" and not any(
            path == out.path or path.startswith(out.path + "/") for path in used
        ):
            declared[out.path] = {}
    return declared


def plot_sources(name: str, definition: Mapping[str, Any]) -> list[str]:
    """Return the files of a plot, relative to the root.

    Args:
        name: Name of the plot; also its file if ``y`` names none.
        definition: Its properties in dvc.yaml, files relative to the root.
    """
    x, y = definition.get("x"), definition.get("y")
    found = list(y) if isinstance(y, Mapping) else [name]
    return list(dict.fromkeys([*found, *(list(x)[:1] if isinstance(x, Mapping) else [])]))


def _drawn(name: str, definition: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield class, source, title and definition of each artifact of a plot.

    KFP's classes for curves and matrices hold one each, so a plot of several sources is several artifacts.
    """
    source = plot_sources(name, definition)[0]
    if posixpath.splitext(source)[1].lower() in (".md", ".markdown"):
        yield "Markdown", source, name, dict(definition)
        return
    axes = list(_axes(name, definition))
    if axes and all(_is_classification(definition, x, y) for _, x, y in axes):
        for path, x, y in axes:
            title = name if len(axes) == 1 else f"{name} {path}"
            plot = {"template": definition.get("template", ""), "x": x, "y": y}
            yield "ClassificationMetrics", path, title, plot
        return
    yield "HTML", source, name, dict(definition)


def _axes(name: str, definition: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield file, x and y of each curve whose x is a field of the same file."""
    x, y = definition.get("x"), definition.get("y")
    ys = y if isinstance(y, Mapping) else {name: y}
    for path, fields in ys.items():
        column = x.get(path, next(iter(x.values()), "")) if isinstance(x, Mapping) else x
        for each in fields if isinstance(fields, list) else [fields]:
            yield path, str(column or ""), str(each or "")


def _is_classification(definition: Mapping[str, Any], x: str, y: str) -> bool:
    if str(definition.get("template", "")).startswith("confusion"):
        return True
    return is_roc(x, y)


def is_roc(x: str, y: str) -> bool:
    """Return True if the axes are those of a ROC curve."""
    return x.lower() in _FALSE_POSITIVES and y.lower() in _TRUE_POSITIVES


def _unique(text: str, taken: set[str]) -> str:
    base = identifier(text)
    name, number = f"{base}_" if base in _WORDS else base, 2
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


# Names that a component's function uses for other things.
_WORDS = frozenset(
    {"spec", "run", "run_id", "run_in_pod", "outputs", "result", "metrics", "dsl", "name", "self"}
)


class Edge(NamedTuple):
    """An artifact that a stage reads.

    Attributes:
        name: Name of the component's input.
        kind: Class in ``kfp.dsl``.
        stage: Upstream stage.
        output: Name of the artifact among that stage's.
    """

    name: str
    kind: str
    stage: str
    output: str


def edges_between(
    step: StepSpec,
    upstream: Sequence[str],
    written: Mapping[str, Sequence[StageArtifact]],
    taken: Collection[str],
) -> list[Edge]:
    """Return the artifacts of upstream stages that hold a stage's dependencies.

    Args:
        step: The stage.
        upstream: Stages whose outputs it reads.
        written: Artifacts of each stage.
        taken: Names of the component's outputs and parameters.
    """
    names = set(taken)
    found: dict[tuple[str, str], Edge] = {}
    for dep in step.deps:
        for stage in upstream:
            for artifact in written[stage]:
                inside = dep.path == artifact.path or dep.path.startswith(artifact.path + "/")
                if artifact.kind in ("Dataset", "Model") and inside and (stage, artifact.name) not in found:
                    name = _unique(f"in_{artifact.path}", names)
                    found[stage, artifact.name] = Edge(name, artifact.kind, stage, artifact.name)
    return list(found.values())
