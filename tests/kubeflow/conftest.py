"""A repository with a pipeline, and a cluster that runs it."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import repos
import sizes

from dvkf_prefect import cli
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.formats.digest import digest_file
from dvkf_prefect.formats.dvcyaml import load_stages
from dvkf_prefect.formats.objects import Content
from dvkf_prefect.kubeflow.cluster.api import KfpApi
from dvkf_prefect.kubeflow.cluster.patience import Patience
from dvkf_prefect.kubeflow.cluster.runner import ClusterSettings, KfpClusterRunner
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, Volume
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.pipeline.step.spec import StepContent, StepMeta, StepOutput, StepResult, StepSpec

from .fake import FakeKfp
from .fake.forks import Host
from .fake.spec import check_call

IMAGE = "registry.example.org/stages:1"
FAST = Patience(poll_from=0.05, poll_to=0.2, run=120, cancel=20, start=0.5, schedule=0.5)
DVC_YAML = """\
stages:
  prepare:
    cmd: python prepare.py
    deps: [prepare.py, data/raw]
    outs: [data/clean]
  train:
    cmd: python train.py
    deps: [train.py, data/clean/a.txt]
    params: [lr]
    outs: [model.bin]
    metrics:
      - metrics.json: {cache: false}
  report:
    cmd: cat metrics.json model.bin > report.txt
    deps: [metrics.json, model.bin]
    outs: [report.txt]
artifacts:
  classifier: {path: model.bin, type: model}
"""


PREPARE = """\
import os
os.makedirs('data/clean/sub')
for n in 'ab': open(f'data/clean/{n}.txt', 'w').write(open(f'data/raw/{n}').read().upper())
open('data/clean/sub/c', 'w').write('c')
"""
TRAIN = """\
import json
lr = 0.5
assert 'lr: 0.5' in open('params.yaml').read()
text = open('data/clean/a.txt').read()
open('model.bin', 'w').write(text * 2)
json.dump({'acc': 0.9, 'n': {'files': 1}}, open('metrics.json', 'w'))
print('trained')
"""
FILES = {
    "dvc.yaml": DVC_YAML, "params.yaml": "lr: 0.5\n", "prepare.py": PREPARE, "train.py": TRAIN,
    "data/raw/a": "alpha\n", "data/raw/b": "beta\n",
}  # fmt: skip


class Project(repos.Project):
    """A DVC repository in git, its code committed, its data on a remote."""

    def __init__(self, root: Path, remote: str) -> None:
        super().__init__(root)
        repos.make_repo(root, FILES, remote=remote, add=["data/raw"], commit="Start")
        self.repo.push()

    def code(self, path: str) -> StepContent:
        return StepContent(path, Content(digest_file(self.root / path), (self.root / path).stat().st_size))

    def step(self, stage: str, *cmd: str, deps=(), outs=(), **more) -> StepSpec:
        """A stage; a dependency given by its path alone is written by another one, or is code in git."""

        def known(dep):
            if isinstance(dep, StepContent):
                return dep
            return self.code(dep) if (self.root / dep).is_file() else StepContent(dep, Content(""))

        defined = {each.address: each for each in load_stages(self.repo.files(), "dvc.yaml")}.get(stage)
        if defined is not None:
            more["models"] = defined.models
            more["meta"] = StepMeta(defined.meta, defined.file, (*defined.place, "meta"))
        return StepSpec(
            stage,
            cmd,
            str(self.repo.cache.root),
            deps=tuple(map(known, deps)),
            outs=tuple(o if isinstance(o, StepOutput) else StepOutput(o) for o in outs),
            workspace=str(self.root),
            **more,
        )

    def steps(self) -> list[StepSpec]:
        """The stages of its dvc.yaml, before anything has run."""
        (raw,) = (o for o in self.repo.outputs() if o.path == "data/raw")
        python = sys.executable
        return [
            self.step(
                "report",
                "cat metrics.json model.bin > report.txt",
                deps=["metrics.json", "model.bin"],
                outs=["report.txt"],
            ),
            self.step(
                "train",
                f"{python} train.py",
                deps=["train.py", "data/clean/a.txt"],
                outs=["model.bin", StepOutput("metrics.json", cached=False, kind="metric")],
                params={"params.yaml": {"lr": 0.5}},
            ),
            self.step(
                "prepare",
                f"{python} prepare.py",
                deps=["prepare.py", StepContent("data/raw", Content(raw.digest, raw.size))],
                outs=["data/clean"],
            ),
        ]

    def locally(self, specs: list[StepSpec]) -> dict[str, StepResult]:
        """Run them by the local runner, one after another, each with the digests of those before it."""
        cache = Cache(Path(specs[0].cache_dir))
        found: dict[str, StepContent] = {}
        results = {}
        with LocalRunner(echo=False) as runner:
            for spec in reversed(specs):
                deps = []
                for dep in spec.deps:
                    top = next((p for p in found if dep.path.startswith(p + "/")), None)
                    if dep.path in found:
                        dep = found[dep.path]
                    elif top:
                        tree = dict(cache.read_tree(found[top].digest).items())
                        dep = StepContent(dep.path, Content(tree[dep.path[len(top) + 1 :]]))
                    deps.append(dep)
                result = runner.start(dataclasses.replace(spec, deps=tuple(deps))).wait(60)
                for out in result.outs:
                    found[out.path] = StepContent(out.path, out.content)
                    if result.side_dir and not cache.exists(out.digest):
                        cache.add_bytes(Cache(Path(result.side_dir)).read_bytes(out.digest))
                results[spec.stage] = result
        return results


@pytest.fixture
def project(tmp_path) -> Project:
    (tmp_path / "remote").mkdir()
    return Project(tmp_path / "repo", str(tmp_path / "remote" / "store"))


@pytest.fixture
def version() -> str:
    """The server's version; a test of several versions gives it by a parameter."""
    return "2.17"


@pytest.fixture(scope="session")
def forks():
    """The host that starts processes with all imports done."""
    with Host() as host:
        yield host


@pytest.fixture
def kfp(tmp_path, monkeypatch, version, forks):
    """A cluster. Its pods are forks, but for `make test-all`, where each starts from nothing."""
    # What pods find this package by; nothing else of the environment gets to them.
    package = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]).rstrip(":"))
    with FakeKfp(tmp_path / "cluster", version) as server:
        if not sizes.ALL:
            server.popen = forks.popen
        yield server


@pytest.fixture
def api(kfp) -> Iterator[KfpApi]:
    api = KfpApi(kfp.host, patience=5)
    yield api
    api.close()


@pytest.fixture
def client(kfp, tmp_path, monkeypatch):
    """KFP's own client, whose file in the home folder is elsewhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    import kfp as sdk

    monkeypatch.setattr(sdk.client.client.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about its own use of kfp_server_api
        return sdk.Client(host=kfp.host, namespace="kubeflow")


@pytest.fixture(autouse=True)
def checked_calls(monkeypatch):
    """Check each request of the product by KFP's own description, whichever server it goes to."""
    ask = KfpApi._ask

    def checked(self, method, path, *, query=None, body=None, file=None):
        check_call(method, path, query or {}, body, {"uploadfile": file[1]} if file else None)
        return ask(self, method, path, query=query, body=body, file=file)

    monkeypatch.setattr(KfpApi, "_ask", checked)
    read = KfpApi._read_text

    def checked_text(self, path, query, **limits):
        check_call("GET", path, query or {}, None, None)
        return read(self, path, query, **limits)

    monkeypatch.setattr(KfpApi, "_read_text", checked_text)


@pytest.fixture(autouse=True)
def no_registries(monkeypatch):
    """Let the doctor ask no registry, since those of tests' images would be on the internet."""
    monkeypatch.setattr("dvkf_prefect.kubeflow.doctor.doctor.check_registry", lambda images, **options: ())


@pytest.fixture
def settings(kfp, tmp_path) -> ClusterSettings:
    """Pods see the folder of the remote as if a volume with it were mounted."""
    return ClusterSettings(
        kfp.host,
        image=IMAGE,
        defaults=Placement(volumes=(Volume("data", str(tmp_path / "remote")),)),
        patience=FAST,
        ask_kubernetes=False,
        outage=20,
    )


@pytest.fixture
def asked(kfp, settings, tmp_path):
    """Settings with which Kubernetes is asked, too."""
    config = tmp_path / "kubeconfig"
    config.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n"
        f"clusters: [{{name: test, cluster: {{server: '{kfp.host}'}}}}]\n"
        "contexts: [{name: test, context: {cluster: test, user: test}}]\nusers: [{name: test, user: {}}]\n"
    )
    return dataclasses.replace(settings, ask_kubernetes=True, kube_config=str(config))


@pytest.fixture
def runner(project, settings):
    with KfpClusterRunner(project.repo, settings) as runner:
        yield runner


@pytest.fixture
def shell(project, settings, monkeypatch, capsys):
    """Run a command in the repository; return its exit code and what it printed."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(ClusterSettings, "from_environment", lambda: settings)

    def run(*words: str) -> tuple[int, str]:
        code = cli.main(words)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run
