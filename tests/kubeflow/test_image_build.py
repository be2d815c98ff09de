"""Images of stages: their Dockerfile and its files, the programs that build them, and what stages need in them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from dvkf_prefect import __version__, cli
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.compile.placements import load_placements
from dvkf_prefect.kubeflow.compile.pod_settings import Placement
from dvkf_prefect.kubeflow.image.check import RANDOM_USER, check_image
from dvkf_prefect.kubeflow.image.context import make_recipe, write_wheel
from dvkf_prefect.kubeflow.image.engines import EngineError, find_engine
from dvkf_prefect.kubeflow.image.needs import Needs, images_of, read_needs

WHEEL = f"dvkf_prefect-{__version__}-py3-none-any.whl"
KFP = metadata.version("kfp")

# A stand-in for docker or podman: `run` executes the container's command here, with a chosen Python.
ENGINE = """\
#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(words) + "\\n")
if words[0] == "info":
    sys.exit(int(os.environ.get("INFO", "0")))
if words[0] == "build":
    context = words[-1]
    print("Step 1/3 : FROM", open(os.path.join(context, "Dockerfile")).read().split("FROM ")[1].split()[0])
    if os.environ.get("BROKEN"):
        print("ERROR: no matching distribution found for", os.environ["BROKEN"])
        sys.exit(3)
    assert sorted(os.listdir(context)) == json.loads(os.environ["CONTEXT"]), os.listdir(context)
if words[0] == "run":
    assert "--cap-drop=ALL" in words and "--security-opt=no-new-privileges" in words and "--network=none" in words
    entry = next(n for n, word in enumerate(words) if word.startswith("--entrypoint="))
    if words[entry + 1] == "absent:1":
        print("Unable to find image 'absent:1' locally", file=sys.stderr)
        sys.exit(125)
    if words[entry + 1] == "empty:1":
        print('exec: "sh": executable file not found in $PATH', file=sys.stderr)
        sys.exit(127)
    user = next((word for word in words if word.startswith("--user=")), "")
    home = "/proc/1/none" if user else os.environ["HOME"]
    path = os.environ["IMAGE_PATH"] + ":/usr/bin:/bin"
    shell = words[entry].partition("=")[2]
    sys.exit(subprocess.run([shell, *words[entry + 2:]], env={{"PATH": path, "HOME": home}}, cwd="/").returncode)
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of programs that is the whole PATH but for the system's own."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return folder


def install(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text(ENGINE.format(python=sys.executable))
    path.chmod(0o755)
    return path


def calls(tmp_path: Path) -> list[list[str]]:
    return [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]


@pytest.fixture
def no_engine_of_the_machine(monkeypatch):
    """The machine's own docker and podman are not found."""
    import shutil

    found = shutil.which

    def which(name, *args, **options):
        path = found(name, *args, **options)
        return path if path and "programs" in path else None

    monkeypatch.setattr("dvkf_prefect.kubeflow.image.engines.shutil.which", which)


# -- the Dockerfile and its files ------------------------------------------------------------------------------------


def test_the_files_of_a_build(tmp_path):
    (tmp_path / "requirements.txt").write_text(
        "numpy>=1  # fast\n-r more/other.txt\n-c https://example.org/pins.txt\n\n"
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "other.txt").write_text("scipy\n--constraint=pins.txt\n")
    (tmp_path / "more" / "pins.txt").write_text("scipy==1.11\n")
    recipe = make_recipe(tmp_path, version=__version__, scheme="ssh", user="1000")
    context = tmp_path / "context"
    recipe.write(context)
    there = sorted(str(path.relative_to(context)) for path in context.rglob("*") if path.is_file())
    assert there == sorted(
        ["Dockerfile", "dvkf.txt", WHEEL, "requirements.txt", "more/other.txt", "more/pins.txt"]
    )
    assert (context / "requirements.txt").read_bytes() == (tmp_path / "requirements.txt").read_bytes()
    assert (context / "dvkf.txt").read_text().splitlines() == [
        f"kfp=={KFP}",
        f"sshfs=={metadata.version('sshfs')}",
        f"./{WHEEL}",
    ]
    text = (context / "Dockerfile").read_text()
    assert text == recipe.dockerfile
    lines = text.splitlines()
    assert f"FROM python:{sys.version_info[0]}.{sys.version_info[1]}-slim" in lines
    assert "RUN python3 -m pip install --no-cache-dir -r requirements.txt -r dvkf.txt" in lines
    assert lines[-1] == "USER 1000"
    for line in lines:
        if line.startswith("COPY"):
            assert all((context / name).is_file() for name in line.split()[1:-1])


def test_the_same_code_makes_the_same_files(tmp_path):
    one, two = (
        write_wheel(tmp_path / name, __version__) for name in ("a", "b") if not (tmp_path / name).mkdir()
    )
    assert one.read_bytes() == two.read_bytes()


def test_the_wheel_is_this_package(tmp_path):
    """Installed alone into an empty environment, it has every module and both entry points."""
    wheel = write_wheel(tmp_path, __version__)
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(pip, check=True)
    code = (
        "import dvkf_prefect, importlib.metadata as m, pathlib\n"
        "d = m.distribution('dvkf-prefect')\n"
        "root = pathlib.Path(dvkf_prefect.__file__).parent\n"
        "print(d.version, dvkf_prefect.__version__, len(list(root.rglob('*.py'))))\n"
        "print(sorted(e.name for e in d.entry_points), any(r.startswith('kfp') for r in d.requires))\n"
    )
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    root = Path(cli.__file__).parents[1]
    assert done.stdout.splitlines() == [
        f"{__version__} {__version__} {len(list(root.rglob('*.py')))}",
        "['dvkf', 'dvkf', 'dvkf_prefect'] True",
    ]
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "__pycache__" in name]


def test_requirements_of_a_pyproject_or_of_the_command_line(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\ndependencies = ["numpy>=1", "rich"]\n')
    assert make_recipe(tmp_path, version="1").requirements == ("numpy>=1", "rich")
    given = make_recipe(tmp_path, version="1", requirements=["scipy==1"], base="mine:2")
    assert (given.requirements, given.files, given.base) == (("scipy==1",), (), "mine:2")
    (tmp_path / "requirements.txt").write_text("attrs\n")
    assert make_recipe(tmp_path, version="1").files == ("requirements.txt",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-e .", "requirements.txt, line 2: '-e .' is on this machine"),
        ("./libs/x.whl", "is on this machine"),
        ("x @ file:///x.whl", "is on this machine"),
        ("--find-links=wheels", "is on this machine"),
        ("-r absent.txt", "absent.txt cannot be read: No such file"),
        ("-r ../other.txt", "outside "),
        ("-r a\\ b.txt", "use letters"),
        ("\xff", "it is not UTF-8"),
    ],
)
def test_requirements_that_no_image_can_have(tmp_path, text, message):
    (tmp_path / "p").mkdir()
    (tmp_path / "other.txt").write_text("")
    (tmp_path / "p" / "requirements.txt").write_bytes(b"numpy\n" + text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        make_recipe(tmp_path / "p", version="1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[project", "is not TOML"),
        ('[project]\ndynamic = ["dependencies"]\n', "its dependencies are dynamic"),
        ('[project]\ndependencies = ["x @ file:///x"]\n', "is on this machine"),
    ],
)
def test_projects_that_no_image_can_have(tmp_path, text, message):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        make_recipe(tmp_path, version="1")


@pytest.mark.parametrize("values", [{"base": "a\nRUN x"}, {"user": "1 2"}, {"requirements": ["a\nb"]}])
def test_values_that_would_become_instructions(tmp_path, values):
    with pytest.raises(ConfigError):
        make_recipe(tmp_path, version="1", **values)


# -- the command -------------------------------------------------------------------------------------------------------


def test_build_print_and_context(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["image", "build", "--print", "--require", "attrs"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# Image of stages") and "FROM python:" in shown
    assert os.listdir(tmp_path) == []
    assert cli.main(["image", "build", "--context", "c", "--require", "attrs==1"]) == 0
    assert (tmp_path / "c" / "dvkf.txt").read_text().splitlines()[0] == "attrs==1"
    assert cli.main(["image", "build", "--context", "c"]) == 251
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["image", "build"]) == 251
    assert "no name for the image" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_an_image_is_built_and_pushed(
    engine, programs, no_engine_of_the_machine, tmp_path, monkeypatch, capsys, project
):
    install(programs, engine)
    monkeypatch.chdir(project.root)
    project.write("requirements.txt", "attrs\n")
    monkeypatch.setenv("CONTEXT", json.dumps(sorted(["Dockerfile", "dvkf.txt", "requirements.txt", WHEEL])))
    words = ["image", "build", "registry.example.org/stages:1", "--push", "--option=--network=host"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert said.out == (
        f"Built registry.example.org/stages:1 with {engine}. "
        "Try it with `dvkf image check registry.example.org/stages:1`.\n"
    )
    assert "Step 1/3 : FROM python:" in said.err
    info, build, push = calls(tmp_path)
    assert info == ["info"]
    assert build[:3] == ["build", "--tag", "registry.example.org/stages:1"] and "--network=host" in build
    assert push == ["push", "registry.example.org/stages:1"]
    assert not os.path.exists(build[-1])


def test_a_build_that_fails_shows_its_last_lines(
    programs, no_engine_of_the_machine, monkeypatch, tmp_path, capsys
):
    install(programs, "docker")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROKEN", "nonesuch==1")
    assert cli.main(["image", "build", "x:1", "-q"]) == 255
    said = capsys.readouterr().err
    assert "docker build ended with 3" in said and "no matching distribution found for nonesuch==1" in said


def test_kaniko_pushes_what_it_builds(programs, tmp_path, monkeypatch):
    (programs / "kaniko-executor").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$CALLS"\n')
    (programs / "kaniko-executor").chmod(0o755)
    engine = find_engine("kaniko")
    with pytest.raises(EngineError, match="kaniko does not keep images"):
        engine.build(tmp_path, "x:1")
    engine.build(tmp_path, "x:1", push=True, options=["--cache=true"])
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"--context=dir://{tmp_path}",
        "--dockerfile=Dockerfile",
        "--destination=x:1",
        "--cache=true",
    ]


def test_without_a_program_the_next_step_is_named(programs, no_engine_of_the_machine, monkeypatch):
    with pytest.raises(
        EngineError, match=r"docker is not installed; podman is not installed.*--context FOLDER"
    ):
        find_engine()
    install(programs, "docker")
    monkeypatch.setenv("INFO", "1")
    with pytest.raises(EngineError, match="docker does not answer"):
        find_engine()
    install(programs, "podman")
    monkeypatch.setenv("INFO", "0")
    assert (find_engine().kind, find_engine("podman", runs=True).kind) == ("docker", "podman")


# -- needs of stages -------------------------------------------------------------------------------------------------


def test_needs_are_read_from_the_stages(project):
    project.write(
        "dvc.yaml",
        textwrap.dedent("""\
        stages:
          train:
            cmd:
              - export A=1
              - LR=0.1 python3 train.py | tee log && other
              - /opt/bin/tool x
            deps: [train.py, lib]
            outs: [model]
          score:
            wdir: sub
            cmd: python -m scoring.run
            meta: {kubeflow: {image: "other:2"}}
            outs: [score]
          loop:
            foreach: [1]
            do:
              cmd: Rscript plot.R
              outs: ["plot${item}"]
              meta: {kubeflow: {cpu: 1}}
        """),
    )
    project.write(
        "train.py",
        textwrap.dedent("""\
        import os, numpy.linalg
        from typing import TYPE_CHECKING
        from lib.deep import x
        from . import y
        import helper
        if TYPE_CHECKING:
            import only_types
        try:
            import optional
        except ImportError:
            import fallback
        try:
            import certain
        finally:
            import last
        def f():
            from lazy.part import z
        """),
    )
    project.write("helper.py", "import never_read\n")
    project.write("lib/deep.py", "import torch\n")
    project.write("lib/wrong.py", "import (\n")
    project.write("sub/scoring/run.py", "import scoring\nimport pandas, dvkf_prefect\n")
    stages = load_placements(project.repo, Placement())
    groups = images_of(stages, "mine:1")
    assert {image: [stage.address for stage in group] for image, group in groups.items()} == {
        "mine:1": ["train", "loop@1"],
        "other:2": ["score"],
    }
    mine = read_needs(project.repo, groups["mine:1"], imports=["extra"])
    assert mine.modules == ("certain", "extra", "fallback", "last", "lazy", "numpy", "torch")
    assert mine.programs == ("Rscript", "python3")
    assert (mine.remote, mine.libraries) == ("", ())
    other = read_needs(project.repo, groups["other:2"])
    assert (other.modules, other.programs) == (("pandas",), ("python",))
    with project.repo.config.edit() as sections:
        sections["remote"]["store"]["url"] = "ssh://example.org/data"
    assert read_needs(project.repo, []).libraries == ("sshfs",)
    assert read_needs(project.repo, [], url="s3://inside/x").libraries == ("obstore", "s3fs")


# -- the check ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(programs, no_engine_of_the_machine, monkeypatch):
    install(programs, "docker")
    monkeypatch.setenv("IMAGE_PATH", os.path.dirname(sys.executable))
    return find_engine(runs=True)


def said(checks) -> dict[str, str]:
    return {check.name: f"{check.state} {check.found}; {check.next_step}" for check in checks}


def test_an_image_with_all_of_it(engine, tmp_path):
    needs = Needs(("numpy",), ("python3",), "s3", ("obstore",))
    result = check_image(engine, "mine:1", needs, version=__version__)
    found = said(result.checks)
    assert bool(result), str(result)
    assert found["kfp"] == f"ok {KFP}; "
    assert found["dvkf-prefect"] == f"ok {__version__}; "
    assert (found["imports"], found["programs"]) == ("ok numpy; ", "ok python3; ")
    assert found["remote s3"] == "ok obstore; "
    assert found["any user"].startswith(f"warn as user {RANDOM_USER} cannot write to HOME, /proc/1/none; ")
    users = [[w for w in words if w.startswith("--user=")] for words in calls(tmp_path) if words[0] == "run"]
    assert users == [[], [f"--user={RANDOM_USER}"]]


def test_a_plain_python_has_neither_kfp_nor_this_package(engine, tmp_path, monkeypatch):
    venv.create(tmp_path / "plain", with_pip=False)
    monkeypatch.setenv("IMAGE_PATH", str(tmp_path / "plain" / "bin"))
    result = check_image(engine, "python:3.11-slim", Needs(("numpy",), ("Rscript",)), version=__version__)
    assert not result
    found = said(result.checks)
    assert found["kfp"] == (
        "fail kfp.dsl.executor_main: ModuleNotFoundError: No module named 'kfp'; "
        "`dvkf image build` makes an image with it"
    )
    assert found["dvkf-prefect"].startswith("fail dvkf_prefect.kubeflow.pod.pod: ModuleNotFoundError")
    assert found["imports"].startswith("fail numpy: ModuleNotFoundError")
    assert found["programs"].startswith("fail Rscript not on the PATH")
    assert str(result).startswith("Image python:3.11-slim:\n\tok   start: Python ")


def test_an_image_of_another_version(engine):
    result = check_image(engine, "mine:1", Needs(), version="9.9")
    assert bool(result)
    assert said(result.checks)["dvkf-prefect"] == (
        f"warn {__version__} in the image, 9.9 here; build the image again with this version"
    )


def test_a_module_that_crashes_python(engine, tmp_path, monkeypatch):
    venv.create(tmp_path / "plain", with_pip=False)
    (site,) = (tmp_path / "plain" / "lib").glob("*/site-packages")
    (site / "crashing.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("IMAGE_PATH", str(tmp_path / "plain" / "bin"))
    found = said(check_image(engine, "mine:1", Needs(("crashing", "json")), version="1").checks)
    assert found["imports"].startswith(
        "fail crashing: Python crashed while it was imported; json: not tried, because Python crashed before"
    )


def test_images_that_do_not_start(engine, capsys, monkeypatch, tmp_path):
    result = check_image(engine, "empty:1", Needs(), version="1")
    (check,) = result.checks
    assert (check.name, check.state) == ("start", "fail") and '"sh": executable file not found' in check.found
    with pytest.raises(EngineError, match="absent:1: docker cannot run it: Unable to find image"):
        check_image(engine, "absent:1", Needs(), version="1")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["image", "check", "empty:1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["checks"][0]["name"] == "start"
    assert cli.main(["image", "check"]) == 251
    assert "no image to check" in capsys.readouterr().err
