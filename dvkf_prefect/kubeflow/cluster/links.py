"""Links into Kubeflow Pipelines' UI, whose address may differ from that of its API.

Sources: ``frontend/src/components/Router.tsx`` of KFP 2.17 for the addresses of pages. A task has no page of its own:
its node opens on the page of its run. KFP's UI server answers ``/apis/v2beta1/healthz`` with its own build
(``frontend/server/handlers/healthz.ts``), which the API server does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class Links:
    """Addresses of pages in the UI; each is "" if the UI's address is unknown.

    Attributes:
        ui: Address of the UI without a slash at its end, such as ``https://kubeflow.example.org/pipeline`` or
            ``https://kubeflow.example.org/_/pipeline/?ns=team``; "" if unknown.

    Example:
        >>> Links("http://localhost:8080").run("42")
        'http://localhost:8080/#/runs/details/42'
    """

    ui: str = ""

    def run(self, run_id: str) -> str:
        """Return the page of a run, with the states and logs of its tasks."""
        return self._page("runs/details", run_id)

    def experiment(self, experiment_id: str) -> str:
        """Return the page of an experiment, with its runs."""
        return self._page("experiments/details", experiment_id)

    def recurring_run(self, recurring_run_id: str) -> str:
        """Return the page of a recurring run."""
        return self._page("recurringrun/details", recurring_run_id)

    def version(self, pipeline_id: str, version_id: str) -> str:
        """Return the page of a version of a pipeline."""
        return self._page("pipelines/details", f"{quote(pipeline_id, safe='')}/version/{version_id}")

    def _page(self, kind: str, name: str) -> str:
        if not (self.ui and name):
            return ""
        # The fragment follows a query, such as the namespace of Kubeflow's dashboard, without a slash.
        slash = "" if "?" in self.ui else "/"
        return f"{self.ui}{slash}#/{kind}/{quote(name, safe='/')}"
