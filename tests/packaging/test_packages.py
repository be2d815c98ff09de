"""The wheel and the sdist: what is in them, and each extra installed alone into a clean environment and used."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from servers import PrefectServer

TREE = Path(__file__).parents[2]
PACKAGE = TREE / "dvkf_prefect"
# Of the machine, before each test gets an empty home: the index, the certificates and the cache of packages.
_ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")
}
_UNREACHABLE = ("dns error", "error sending request", "Failed to fetch", "Connection refused", "timed out")
# Names that several distributions share: the one that is declared.
_SHARED = {"google": "protobuf", "kfp": "kfp", "ruamel": "ruamel.yaml"}


def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        if os.environ.get("CI"):
            pytest.fail("there is no uv")
        pytest.skip("there is no uv")
    done = subprocess.run(
        [uv, *arguments], env=_ENVIRONMENT, capture_output=True, text=True, cwd="/", timeout=900
    )
    if done.returncode and not os.environ.get("CI") and any(text in done.stderr for text in _UNREACHABLE):
        pytest.skip(f"no index of packages is reachable: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and the sdist of a clean copy of the tree."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=TREE, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(names).split("\0")):
        if (TREE / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TREE / name, tree / name)
    _uv("build", "--quiet", "--wheel", "--sdist", "--out-dir", str(folder / "out"), str(tree))
    (wheel,) = (folder / "out").glob("*.whl")
    (sdist,) = (folder / "out").glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _sources() -> set[str]:
    names = subprocess.run(
        ["git", "ls-files", "-z", "dvkf_prefect"], cwd=TREE, capture_output=True, check=True
    )
    return {name for name in os.fsdecode(names.stdout).split("\0") if name and (TREE / name).exists()}


def test_what_is_in_them(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        inside = {name for name in wheel.namelist() if not name.endswith("/")}
        head = wheel.read(next(name for name in inside if name.endswith(".dist-info/METADATA"))).decode()
    info = {name for name in inside if ".dist-info/" in name}
    assert inside - info == _sources()
    for name in ("py.typed", "processes/_watcher.py", "data/cache/_copier.py", "flows/__init__.py"):
        assert f"dvkf_prefect/{name}" in inside
    assert any(name.endswith("licenses/LICENSE") for name in info)
    for line in (
        "Name: dvkf-prefect",
        "Provides-Extra: plots",
        "Provides-Extra: serve",
        "Requires-Dist: sqlalchemy<2.1",
    ):
        assert line in head
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    beside = {
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "pyproject.toml",
        ".gitignore",
    }
    assert names - _sources() == {name for name in beside if name == "PKG-INFO" or (TREE / name).exists()}
    assert _sources() <= names


def test_what_is_imported_is_declared() -> None:
    imported: dict[str, str] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            imported |= {name.partition(".")[0]: str(file.relative_to(TREE)) for name in names}
    project = _toml((TREE / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # What these name is for work on the package itself.
    used = [line for extra in extras.keys() - {"test", "check", "docs"} for line in extras[extra]]
    wanted = [*project["dependencies"], *used]
    declared = {re.split(r"[\[<>=;! ]", line)[0].lower() for line in wanted}
    owners = metadata.packages_distributions()
    unknown = {}
    for name, file in imported.items():
        if name in sys.stdlib_module_names or name == "dvkf_prefect":
            continue
        distributions = (
            {_SHARED[name]}
            if name in _SHARED
            # A package may be installed under another name: xgboost-cpu has xgboost.
            else {name.replace("_", "-"), *(each.lower() for each in owners.get(name, [name]))}
        )
        if not distributions & declared:
            unknown[name] = file
    assert unknown == {}


class Installed:
    """A clean environment with the package, and a home that is empty."""

    def __init__(
        self, folder: Path, archive: Path, extra: str, *, resolution: str = "", python: str = sys.executable
    ) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        self.environment = {"PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin", "HOME": str(folder / "home")}
        self.environment |= dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "Test")
        self.environment |= dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "t@example.org")
        self.environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        self.environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "200"
        (folder / "home").mkdir()
        _uv("venv", "--quiet", "--python", python, str(folder / "venv"))
        _uv(
            "pip", "install", "--quiet", "--python", str(self.bin / "python"),
            *(("--resolution", resolution) if resolution else ("--constraint", str(TREE / "constraints.txt"))),
            f"dvkf-prefect{f'[{extra}]' if extra else ''} @ {archive.as_uri()}",
        )  # fmt: skip
        self.repo = folder / "repo"
        self.repo.mkdir()

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.repo, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, (command, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def python(self, code: str) -> str:
        return self.run("python", "-c", code)


@pytest.fixture(scope="module")
def install(
    built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Installed]:
    return lambda archive, extra: Installed(tmp_path_factory.mktemp("clean"), built[archive], extra)


def test_each_requirement_has_an_oldest_version() -> None:
    """Without one, the oldest that is allowed is the first that was ever released."""
    project = _toml((TREE / "pyproject.toml").read_text())["project"]
    required = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    assert [each for each in required if ">=" not in each and not each.startswith("dvkf-prefect[")] == []


_EVERY_MODULE = """
import importlib, pkgutil, dvkf_prefect
for module in pkgutil.walk_packages(dvkf_prefect.__path__, "dvkf_prefect."):
    # One module is its extra's alone: gRPC.
    if not module.name.endswith(("__main__", "serving.rpc")):
        importlib.import_module(module.name)
"""

_ENTRY_POINTS = """
from importlib.metadata import entry_points
(collection,) = [each for each in entry_points(group="prefect.collections") if each.name == "dvkf_prefect"]
print(sorted(name for name in vars(collection.load()) if name[0].isupper()))
import fsspec
with fsspec.open("dvkf://data.csv", repo=".") as stream:
    print(stream.read())
"""

_FLOWS = """
from dvkf_prefect import flows
print(sorted(getattr(flows, name).name for name in flows.__all__))
"""

_SERVE = """
import hashlib, joblib, pathlib, sklearn.linear_model
from dvkf_prefect.serving.local import LocalServing
file = pathlib.Path("m.joblib").absolute()
joblib.dump(sklearn.linear_model.LogisticRegression().fit([[0], [1]], [0, 1]), file)
serving = LocalServing("state")
digest = hashlib.md5(file.read_bytes()).hexdigest()
print(serving.deploy("m", "v1.0.0", file, digest, detached=False, timeout=200).predict([[0], [1]]))
serving.stop("m")
"""


def _use(clean: Installed) -> None:
    """The way of a first day."""
    assert clean.run("dvkf", "--version").strip()
    clean.run("git", "init", "--quiet")
    clean.run("dvkf", "init")
    (clean.repo / "data.csv").write_text("x,y\n1,2\n2,3\n")
    clean.run("dvkf", "add", "data.csv")
    clean.run("dvkf", "remote", "add", "--default", "store", str(clean.folder / "store"))
    clean.run("dvkf", "push")
    assert len([path for path in (clean.folder / "store/files").rglob("*") if path.is_file()]) == 1
    (clean.repo / "dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp data.csv out.csv\n    deps: [data.csv]\n    outs: [out.csv]\n"
        "plots:\n  - data.csv:\n      x: x\n      y: y\n"
    )
    clean.run("dvkf", "repro")
    assert (clean.repo / "out.csv").read_text() == "x,y\n1,2\n2,3\n"
    clean.run("git", "add", "-A")
    clean.run("git", "commit", "--quiet", "--message", "all")
    clean.run("dvkf", "status")
    clean.python(_EVERY_MODULE)
    found = clean.python(_ENTRY_POINTS)
    assert "DvcRepository" in found and "1,2" in found
    assert (
        "['ingest', 'maintain', 'promote', 'repro', 'rollback', 'serve', 'train', 'watch']"
        in clean.python(_FLOWS)
    )


# An environment takes half a minute; its use without an extra is part of all.
@pytest.mark.long
@pytest.mark.parametrize("archive", ["wheel", "sdist"])
def test_without_an_extra(install: Callable[[str, str], Installed], archive: str) -> None:
    clean = install(archive, "")
    _use(clean)
    assert "dvkf-prefect[plots]" in clean.run("dvkf", "plots", "show", code=251)
    blocks = clean.run("prefect", "block", "type", "ls")
    assert "dvc-repository" in blocks
    assert "dvc-repository" in clean.run("prefect", "block", "register", "-m", "dvkf_prefect") + blocks


@pytest.mark.long
def test_with_plots(install: Callable[[str, str], Installed]) -> None:
    clean = install("wheel", "plots")
    _use(clean)
    assert "linear" in clean.run("dvkf", "plots", "templates")
    assert "data.csv" in json.dumps(json.loads(clean.run("dvkf", "plots", "show", "--json")))
    clean.run("dvkf", "plots", "show")
    assert "<html" in (clean.repo / "dvc_plots" / "index.html").read_text()


@pytest.mark.long
def test_with_serve(install: Callable[[str, str], Installed]) -> None:
    clean = install("wheel", "serve")
    _use(clean)
    assert "[0, 1]" in clean.python(_SERVE)


_STORES = """
from dvkf_prefect.data.remotes import open_storage
keys = {"access_key_id": "a", "secret_access_key": "b", "region": "us-east-1", "read_timeout": 5}
for backend in ("obstore", "fsspec"):
    print(type(open_storage("s3://bucket/x", keys, backend=backend)).__name__)
print(type(open_storage("gs://bucket/x", {"allow_anonymous_login": True})).__name__)
print(type(open_storage("azure://bucket/x", {"account_name": "a", "account_key": "Yg=="})).__name__)
"""


@pytest.mark.long
def test_lineage_events_with_the_oldest_client(tmp_path: Path) -> None:
    """The client of OpenLineage is new each month, and its facets change; a strict receiver judges the events."""
    extras = _toml((TREE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (oldest,) = re.findall(r"openlineage-python>=([\d.]+)", " ".join(extras["openlineage"]))
    client = tmp_path / "client"
    _uv("pip", "install", "--quiet", "--no-deps", "--target", str(client), f"openlineage-python=={oldest}")
    say = "from importlib import metadata; print(metadata.version('openlineage-python'))"
    environment = {**_ENVIRONMENT, "PYTHONPATH": str(client), "HOME": str(tmp_path)}
    commands = [["-c", say], ["-m", "pytest", "-q", "tests/models/test_openlineage.py"]]
    done = [
        subprocess.run(
            [sys.executable, *arguments], cwd=TREE, env=environment, capture_output=True, text=True
        )
        for arguments in commands
    ]
    assert done[0].stdout.startswith(oldest), done[0]
    assert re.search(r"^\d+ passed", done[1].stdout, re.MULTILINE), done[1].stdout


@pytest.mark.long
@pytest.mark.parametrize("resolution", ["lowest-direct", "highest"])
def test_with_other_requirements(built: dict[str, Path], tmp_path: Path, resolution: str) -> None:
    """Each at its oldest and at its newest version: the first day, a table, every store, the demo, and a schedule.

    Prefect's scheduler stood still with the newest SQLAlchemy, and its server with the newest FastAPI.
    """
    clean = Installed(tmp_path, built["wheel"], "serve,plots", resolution=resolution)
    _use(clean)
    assert clean.python(_STORES).split() == [
        "ObjectStorage",
        "FilesystemStorage",
        "ObjectStorage",
        "ObjectStorage",
    ]
    _use_a_table_and_the_demo(clean)
    clean.python(_WATCH)
    _fire_a_schedule(clean)


_SERVED = """
import os
from dvkf_prefect.flows import repro

blocks = {"repository": {"path": os.getcwd(), "label": "served"}, "pipelines": {"backend": "local"}}
repro.serve("often", interval=5, parameters={**blocks, "targets": ["copy"]})
"""


def _fire_a_schedule(clean: Installed) -> None:
    """Scheduled runs of a flow that is served complete."""
    server = PrefectServer(clean.folder)
    server.environment |= clean.environment
    (clean.folder / "tree").symlink_to(clean.repo)
    ended = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}}
    with server.serving(), server.running("python", "-c", _SERVED):
        first = wait_until(lambda: server.post("/flow_runs/filter", ended), 400, "no schedule fired")[0]
        assert first["state_type"] == "COMPLETED" and "auto-scheduled" in first["tags"], server.logs()


def _use_a_table_and_the_demo(clean: Installed) -> None:
    frame = "import pandas as pd; frame = pd.DataFrame({'kind': ['a', None, 'b'], 'n': [1, 2, 3]})"
    clean.python(f"{frame}; from dvkf_prefect import write_frame; write_frame('.', frame, 'table.csv')")
    shutil.copytree(TREE / "flows", clean.repo / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TREE / "blocks", clean.repo / "blocks", ignore=shutil.ignore_patterns("__pycache__"))
    said = clean.run("python", "flows/quickstart.py")
    assert "in production after the rollback: digits v0.0.1" in said


_WATCH = """
import subprocess
from dvkf_prefect import DvcRepository
from dvkf_prefect.flows import watch

repository = DvcRepository(path=".", label="watched")
assert watch(repository) == []
with open("data.csv", "a") as file:
    file.write("3,4\\n")
for command in ("dvkf add data.csv", "git commit --quiet --all --message more", "dvkf push"):
    subprocess.run(command.split(), check=True)
assert [found["path"] for found in watch(repository)] == ["data.csv"]
"""


def _pythons() -> dict[int, str]:
    """Return other interpreters of Python 3.10 to 3.13, by minor version; that of the tests if there is none."""
    found = {}
    pyenvs = {Path(sys.base_prefix).parent, Path(_ENVIRONMENT.get("HOME", "/"), ".pyenv/versions")}
    for minor in {10, 11, 12, 13} - {sys.version_info[1]}:
        kept = sorted(path for folder in pyenvs for path in folder.glob(f"3.{minor}.*/bin/python"))
        named = shutil.which(f"python3.{minor}")
        if kept:
            found[minor] = str(kept[-1])
        # A name of pyenv in the path runs only the version that is set.
        elif named and subprocess.run([named, "--version"], capture_output=True).returncode == 0:
            found[minor] = named
    return dict(sorted(found.items())) or {sys.version_info[1]: sys.executable}


@pytest.mark.long
@pytest.mark.parametrize(
    "python", [pytest.param(path, id=f"3.{minor}") for minor, path in _pythons().items()]
)
def test_with_each_python(built: dict[str, Path], tmp_path: Path, python: str) -> None:
    """The first day, a table, the demo and an event.

    Python 3.10 imported no task, and constraints.txt had no version for it; on 3.13 Prefect's times are Python's own.
    """
    clean = Installed(tmp_path, built["wheel"], "serve,plots", python=python)
    _use(clean)
    _use_a_table_and_the_demo(clean)
    clean.python(_WATCH)
