"""The blocks: what Prefect's own suite asks of a collection, and what they do."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

import dvkf_prefect
from dvkf_prefect.blocks import (
    DvcRemote,
    DvcRepository,
    KServeModelServer,
    KubeflowCredentials,
    KubeflowModelRegistry,
    KubeflowPipelines,
    ModelServer,
)
from dvkf_prefect.errors import GitError, NotARepositoryError, ServingError
from dvkf_prefect.pipeline.step.runner import LocalRunner
from dvkf_prefect.repo import Repo

from .conftest import git

BLOCKS = [
    DvcRemote,
    DvcRepository,
    KServeModelServer,
    KubeflowCredentials,
    KubeflowModelRegistry,
    KubeflowPipelines,
    ModelServer,
]


@pytest.mark.parametrize("block", BLOCKS)
class TestStandard(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> Any:
        return request.param

    def test_has_a_valid_image(self, block: Any) -> None:
        """None has a logo: Prefect takes only addresses on the web for one, and nothing here may need the web."""
        assert block._logo_url is None


@pytest.mark.parametrize("block", BLOCKS)
def test_type_can_be_registered(block: type[Block], prefect_server: None) -> None:
    block.register_type_and_schema()


def test_secrets_are_kept_but_not_shown(prefect_server: None) -> None:
    remote = DvcRemote(
        url="s3://bucket/data",
        access_key_id="key-1",
        secret_access_key="secret-2",
        options={"grant_read": "secret-3"},
    )
    DvcRepository(path="/somewhere", remote=remote).save("with-secrets", overwrite=True)
    loaded = DvcRepository.load("with-secrets")
    assert loaded.remote is not None
    shown = (
        repr(loaded) + str(loaded) + loaded.model_dump_json() + json.dumps(loaded.model_dump(), default=str)
    )
    assert not [secret for secret in ("key-1", "secret-2", "secret-3") if secret in shown]
    assert loaded.remote.as_config() == {
        "core": {"remote": "prefect"},
        'remote "prefect"': {
            "url": "s3://bucket/data",
            "access_key_id": "key-1",
            "secret_access_key": "secret-2",
            "grant_read": "secret-3",
        },
    }


def test_block_types_have_their_names() -> None:
    assert {block.get_block_type_name(): block.get_block_type_slug() for block in BLOCKS} == {
        "DVC Remote": "dvc-remote",
        "DVC Repository": "dvc-repository",
        "KServe Model Server": "kserve-model-server",
        "Kubeflow Credentials": "kubeflow-credentials",
        "Kubeflow Model Registry": "kubeflow-model-registry",
        "Kubeflow Pipelines": "kubeflow-pipelines",
        "Model Server": "model-server",
    }


def test_credentials_are_shared_by_reference(prefect_server: None) -> None:
    """A token that is renewed in its block is the new one in all that refer to it, and shows in none."""
    credentials = KubeflowCredentials(host="http://kf.example.org", token="secret-1", cookie="secret-2")
    credentials.save("shared", overwrite=True)
    KubeflowPipelines(backend="kubeflow", credentials=credentials).save("on-a-cluster", overwrite=True)
    KubeflowCredentials(host="http://kf.example.org", token="secret-3").save("shared", overwrite=True)
    loaded = KubeflowPipelines.load("on-a-cluster")
    settings = loaded.settings()
    assert (settings.login.bearer(), settings.login.cookie) == ("secret-3", "")
    assert "secret-" not in repr(settings) + repr(loaded) + str(loaded) + loaded.model_dump_json()


@pytest.mark.parametrize("make", [lambda url: DvcRemote(url=url), lambda url: DvcRepository(path=url)])
def test_url_with_password_is_refused_without_repeating_it(make: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        make("https://someone:opensesame@example.org/data")
    assert "password" in str(caught.value)
    assert "opensesame" not in str(caught.value)


def test_remote_of_a_block_is_the_default_one(repo: Repo, tmp_path: Path) -> None:
    block = DvcRepository(path=str(repo.root), remote=DvcRemote(url=str(tmp_path / "other")))
    assert block.open().push().files == 4
    assert sum(path.is_file() for path in (tmp_path / "other/files").rglob("*")) == 4
    assert not (tmp_path / "store").exists()


def test_folder_that_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(NotARepositoryError):
        DvcRepository(path=str(tmp_path)).open()


def test_a_missing_folder_is_no_part_of_the_repository_above(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host without its scheme was a folder, and the repository of the working directory was opened."""
    monkeypatch.chdir(repo.root)
    with pytest.raises(NotARepositoryError, match=r"missing does not exist\. Name a folder"):
        DvcRepository(path="missing").open()
    with pytest.raises(NotARepositoryError, match=r"scheme: https://git\.example\.org/team/digits\."):
        DvcRepository(path="git.example.org/team/digits").open()


def test_rev_needs_a_git_url(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="git URL"):
        DvcRepository(path=str(tmp_path), rev="main")


@pytest.mark.parametrize(
    ("path", "cloned", "name"),
    [
        ("https://example.org/team/digits.git", True, "digits"),
        ("git@example.org:team/digits.git", True, "digits"),
        ("example.org:digits", True, "digits"),
        ("file:///srv/digits", True, "digits"),
        ("/srv/digits", False, "digits"),
    ],
)
def test_what_is_cloned(path: str, cloned: bool, name: str) -> None:
    block = DvcRepository(path=path)
    assert (block.is_cloned, block.name) == (cloned, name)


def test_projects_of_one_git_repository_have_names_of_their_own() -> None:
    url = "https://example.org/team/mono.git"
    blocks = [DvcRepository(path=url, folder=folder) for folder in (None, "left", "right")]
    assert [block.name for block in blocks] == ["mono", "mono/left", "mono/right"]
    assert DvcRepository(path=url, folder="left", label="own").name == "own"


def test_a_project_has_one_name_however_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same folder had other timelines by its path, and projects of two repositories shared theirs."""
    (tmp_path / "mono" / "left" / "data").mkdir(parents=True)
    (tmp_path / "mono" / ".git").mkdir()
    top = tmp_path / "mono"
    ways = [{"path": str(top), "folder": "left"}, {"path": f"{top}/left"}, {"path": f"{top}/left/data/.."}]
    monkeypatch.chdir(top / "left" / "data")
    ways += [{"path": ".."}, {"path": "../..", "folder": "left/"}]
    assert {DvcRepository(**way).name for way in ways} == {"mono/left"}
    assert {DvcRepository(**way).shared_name for way in ways} == {"mono/left"}
    assert [DvcRepository(path=path).name for path in (".", "../..")] == ["mono/left/data", "mono"]


@pytest.fixture
def clones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_DVKF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "clones"


def test_clone_is_shallow_and_follows_its_origin(repo: Repo, clones: Path, tmp_path: Path) -> None:
    (repo.root / "note.txt").write_text("one\n")
    git(repo.root, "add", "note.txt")
    git(repo.root, "commit", "--quiet", "--message", "Note")
    git(repo.root, "tag", "--annotate", "model@v0.0.1", "--message", "m", "HEAD^")
    block = DvcRepository(path=f"file://{repo.root}")
    clone = block.open()
    assert clone.root.parent == clones
    assert git(clone.root, "rev-list", "--count", "HEAD") == "1"
    assert git(clone.root, "tag", "--list") == "model@v0.0.1"
    assert git(clone.root, "symbolic-ref", "--short", "HEAD") == "main"
    assert [o.path for o in clone.outputs()] == ["data/train"]

    (repo.root / "note.txt").write_text("two\n")
    git(repo.root, "commit", "--quiet", "--all", "--message", "Note two")
    assert (block.open().root / "note.txt").read_text() == "two\n"


def test_clone_of_a_tag(repo: Repo, clones: Path) -> None:
    git(repo.root, "tag", "v1")
    (repo.root / "note.txt").write_text("one\n")
    git(repo.root, "add", "note.txt")
    git(repo.root, "commit", "--quiet", "--message", "Note")
    clone = DvcRepository(path=f"file://{repo.root}", rev="v1").open()
    assert not (clone.root / "note.txt").exists()


def test_clone_keeps_commits_that_were_not_pushed(repo: Repo, clones: Path) -> None:
    block = DvcRepository(path=f"file://{repo.root}")
    clone = block.open()
    (clone.root / "result.txt").write_text("result\n")
    git(clone.root, "add", "result.txt")
    git(clone.root, "commit", "--quiet", "--message", "Result")
    assert (block.open().root / "result.txt").exists()

    (repo.root / "note.txt").write_text("moved on\n")
    git(repo.root, "add", "note.txt")
    git(repo.root, "commit", "--quiet", "--message", "Note")
    with pytest.raises(GitError, match="have diverged"):
        block.open()
    assert (clone.root / "result.txt").exists()


def test_clone_of_nothing(clones: Path, tmp_path: Path) -> None:
    with pytest.raises(GitError, match="fetch"):
        DvcRepository(path=f"file://{tmp_path}/nowhere").open()


def test_runner_of_each_backend(repo: Repo) -> None:
    with KubeflowPipelines().runner(repo) as runner:
        assert isinstance(runner, LocalRunner) and runner.in_place
    for backend in ("local", "kubeflow-local"):
        with KubeflowPipelines(backend=backend).runner(repo) as runner:
            assert runner.name == backend


def test_model_that_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="not served by this block"):
        ModelServer(state_dir=str(tmp_path)).endpoint("digits")


def test_data_layer_does_not_import_prefect() -> None:
    code = "import sys, dvkf_prefect, dvkf_prefect.data; sys.exit('prefect' in sys.modules or 'kfp' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ})


def test_all_is_what_is_exported() -> None:
    """The listed names, what type checkers see, what importing gives and what is public: one set."""
    names = set(dvkf_prefect.__all__) - {"__version__"}
    tree = ast.parse(Path(dvkf_prefect.__file__).read_text())
    (checked,) = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.asname: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) == names
    for name, module in seen.items():
        assert getattr(dvkf_prefect, name) is getattr(importlib.import_module(str(module)), name)
    public = {
        name
        for name, value in vars(dvkf_prefect).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public - {"Any", "TYPE_CHECKING", "annotations"} == names
    with pytest.raises(AttributeError):
        dvkf_prefect.nothing_of_that_name  # noqa: B018


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_import_what_is_exported(block: type[Block]) -> None:
    imports = re.findall(r"from (dvkf_prefect[\w.]*) import (.*)", block.__doc__ or "")
    assert imports
    for module, names in imports:
        assert module == "dvkf_prefect"
        assert set(names.split(", ")) <= set(dvkf_prefect.__all__)


def test_one_stage_at_a_time_in_the_workspace_unless_asked() -> None:
    """Two stages in one workspace may write what the other reads, so there as many run as with dvc."""
    assert KubeflowPipelines().parallel == 1
    assert KubeflowPipelines(hermetic=True).parallel == 2
    assert KubeflowPipelines(backend="kubeflow-local").parallel == 2
    assert KubeflowPipelines(jobs=3).parallel == 3
