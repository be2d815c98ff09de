"""The documents say what is true: commands are there and described, so are pictures and tables."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_architecture import HELP_OPENERS

import dvkf_prefect
from dvkf_prefect import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in sorted((ROOT / "docs").rglob("*.md"))}
TEXTS = {"README.md": README, **PAGES}
CLI = PAGES["docs/reference/cli.md"]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load(ROOT / "docs/hooks.py")
VERBS = {verb: subcommands(cli.build_parser([verb]))[verb] for verb in cli.VERBS}


def test_the_two_commands_of_a_clone_are_demo_and_test() -> None:
    first = README.index("```\nmake ")
    assert README[first:].startswith("```\nmake demo ")
    assert "\nmake test " in README[first : README.index("```", first + 3)]


def test_every_verb_is_in_the_reference_and_the_other_way_round() -> None:
    told = set(re.findall(r"^\| `dvkf ([\w-]+)`", CLI, re.MULTILINE))
    assert told == set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_command_has_a_description_and_every_option_a_help(verb: str) -> None:
    for parser in [VERBS[verb], *subcommands(VERBS[verb]).values()]:
        assert parser.description, parser.prog
        for action in parser._actions:
            if action.option_strings:
                assert action.help, f"{parser.prog} {action.option_strings}"
            assert not HELP_OPENERS.match(action.help or ""), f"{parser.prog}: {action.help}"


@pytest.mark.parametrize("verb", ["remote", "model"])
def test_subcommands_are_named(verb: str) -> None:
    row = next(line for line in CLI.splitlines() if line.startswith(f"| `dvkf {verb}`"))
    for name in subcommands(VERBS[verb]):
        assert f"`{name}`" in row


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    entries = []
    for name in ("blocks", "python", "tasks"):
        page = HOOKS.on_page_markdown(PAGES[f"docs/reference/{name}.md"])
        entries += re.findall(r"^::: dvkf_prefect\.(\w+)$", page, re.MULTILINE)
    assert sorted({*entries} - {"errors", "flows"}) == sorted({*dvkf_prefect.__all__} - {"__version__"})
    assert len(entries) == len({*entries})


def test_every_field_of_a_block_is_described_in_the_reference() -> None:
    from dvkf_prefect import blocks

    page = HOOKS.on_page_markdown(PAGES["docs/reference/blocks.md"])
    for name in blocks.__all__:
        if not isinstance(getattr(blocks, name), type):
            continue
        rows = page.split(f"### Fields of {name}\n")[1].split("\n:::")[0]
        for field in getattr(blocks, name).model_fields:
            assert re.search(rf"^\| `{field}` \| .+ \| .*\w.* \|$", rows, re.MULTILINE), (name, field)


def test_every_option_is_in_the_reference() -> None:
    page = HOOKS.on_page_markdown(CLI)
    for verb, parser in VERBS.items():
        for each in [parser, *subcommands(parser).values()]:
            part = page.split(f"# {each.prog}\n")[1].split("\n#")[0]
            for action in each._actions:
                for option in set(action.option_strings) - {"-h", "--help"}:
                    assert option in part, (verb, option)


@pytest.mark.parametrize("name", TEXTS)
def test_data_in_a_page_is_what_the_code_reads(name: str, tmp_path: Path) -> None:
    """YAML and TOML parse; a dvc.yaml and the `meta` of its stages are accepted."""
    from ruamel.yaml import YAML

    from dvkf_prefect.kubeflow.compile.pod_settings import parse_meta
    from dvkf_prefect.pipeline.step.spec import StepMeta

    for kind, text in re.findall(r"^```(yaml|toml)\n(.*?)^```", TEXTS[name], re.DOTALL | re.MULTILINE):
        if kind == "toml":
            tomllib.loads(text)
            continue
        document = YAML(typ="safe").load(text)
        if "stages" not in document:
            continue
        repo = tmp_path / "repo"
        repo.mkdir(exist_ok=True)
        for command in (
            ["git", "init", "-q"],
            [sys.executable, "-m", "dvkf_prefect.cli", "init", "-q", "-f"],
        ):
            subprocess.run(command, cwd=repo, check=True, capture_output=True)
        (repo / "dvc.yaml").write_text(text)
        listed = [sys.executable, "-m", "dvkf_prefect.cli", "stage", "list", "--name-only"]
        done = subprocess.run(listed, cwd=repo, check=True, capture_output=True, text=True)
        assert done.stdout.split() == list(document["stages"])
        for stage, said in document["stages"].items():
            outs = [path for out in said.get("outs", []) for path in ([out] if isinstance(out, str) else out)]
            meta = StepMeta(said.get("meta"), "dvc.yaml", ("stages", stage, "meta"))
            placement = parse_meta(meta, stage, outs, lambda file, text=text: text.encode())
            assert bool(placement.image) == ("kubeflow" in said.get("meta", {}))


# Tests of the deployments run the commands of these pages.
RUN_AS_PASTED = ("docs/how-to/deploy.md", "docs/how-to/schedules.md")


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in RUN_AS_PASTED])
def test_commands_that_need_a_cluster_or_a_clone_are_right(name: str) -> None:
    """Of ``sh`` blocks, which no test runs, each command is one that is there."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for block in re.findall(r"^```sh\n(.*?)^```", TEXTS[name], re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
            if words[0] == "dvkf":
                assert cli.build_parser([words[1]]).parse_args(words[1:])
            elif words[:2] == ["pip", "install"]:
                wanted = re.findall(r"\.\[([\w,]+)\]", line)
                assert set(wanted) <= set(extras) and words[2].strip("'").startswith(".")
            else:
                assert words[0] == "python" and (ROOT / words[1]).is_file(), line


def test_python_in_the_readme_parses() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)


def test_the_flow_takes_ten_lines() -> None:
    block = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    body = block[block.index("@flow") : block.index("if __name__")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("name", TEXTS)
def test_linked_files_and_pictures_are_there(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", TEXTS[name]):
        assert ((ROOT / name).parent / target).is_file(), target


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(f"docs/{page}" for page in named) == sorted(PAGES)


def test_every_page_a_reader_looks_for_is_linked_from_the_readme() -> None:
    made_by_docs = {f"docs/reference/{name}.md" for name in ("blocks", "python", "tasks")}
    included = {name for name, text in PAGES.items() if text.startswith("--8<--")}
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)", README))
    assert linked == set(PAGES) - made_by_docs - included - {"docs/index.md"}


def test_the_documentation_has_a_variable_for_each_that_the_code_reads() -> None:
    """All but those that the package sets for its own processes."""
    from dvkf_prefect.kubeflow.cluster import settings

    own = {"DVKF_NODE", "DVKF_SCRATCH", "DVKF_STAGE_PYTHONPATH", "DVKF_STEP_ENVIRONMENT", "DVKF_STEP_RESULT"}
    read = set()
    for file in (ROOT / "dvkf_prefect").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            # Prefixes end with an underscore; no variable does.
            if isinstance(node, ast.Constant) and re.fullmatch(r"DVKF_[A-Z_]*[A-Z]", str(node.value)):
                read.add(node.value)
    read -= own
    read |= {f"DVKF_KUBEFLOW_{name.upper()}" for name in settings._VARIABLES}
    page = PAGES["docs/operations/environment.md"]
    told = set(re.findall(r"^\| `(DVKF_\w+)`", page, re.MULTILINE))
    assert told == read
    from dvkf_prefect.settings import DvkfSettings

    told = set(re.findall(r"^\| `PREFECT_INTEGRATIONS_DVKF_(\w+)`", page, re.MULTILINE))
    assert told == {name.upper() for name in DvkfSettings.model_fields}


def test_the_tree_of_the_package_is_the_one_drawn() -> None:
    """Each line of the tree is a package with a note, or modules of the package above."""
    page = PAGES["docs/architecture.md"]
    drawn: set[str] = set()
    above: list[tuple[int, str]] = []
    for line in page.split("```text\n")[1].split("```")[0].splitlines():
        depth = len(line) - len(line.lstrip())
        above = [(before, name) for before, name in above if before < depth]
        folder = "".join(name for _, name in above)
        if found := re.match(r"(\w+/)(?: +\S.*)?$", line.strip()):
            drawn.add(folder + found[1])
            above.append((depth, found[1]))
        else:
            drawn |= {f"{folder}{name}.py" for name in line.split()}
    package = ROOT / "dvkf_prefect"
    there = {f"{file.relative_to(ROOT)}" for file in package.rglob("*.py") if file.name != "__init__.py"}
    there |= {f"{file.parent.relative_to(ROOT)}/" for file in package.rglob("__init__.py")}
    assert drawn == there


def test_the_benchmark_table_is_the_measured_one() -> None:
    table = (
        README.split("<!-- benchmark: made by make bench -->")[1]
        .split("<!-- end of benchmark -->")[0]
        .strip()
    )
    assert table
    assert table in (ROOT / "tests/benchmarks/RESULTS.md").read_text()


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {dvkf_prefect.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_promise_names_code_and_tests_that_are_there() -> None:
    """A row of SECURITY.md names modules of the package, then tests with their folder or beside the one before."""
    rows = re.findall(
        r"^\| (?!promise|---)(.+) \| (.+) \| (.+) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 15
    for promise, where, tests in rows:
        for module in re.findall(r"`([\w/.]+)`", where):
            assert (ROOT / "dvkf_prefect" / module).exists(), (promise, module)
        folder = ROOT
        for test in re.findall(r"`([\w/]+\.py)`", tests):
            folder = (ROOT / test).parent if "/" in test else folder
            assert (folder / Path(test).name).is_file(), (promise, test)


def test_every_habit_names_a_page_and_tests_that_are_there() -> None:
    """The links are checked with those of all pages."""
    page = PAGES["docs/explanation/habits.md"]
    rows = re.findall(r"^\| (?!habit|---)(.+) \| (.+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) > 20
    for habit, _, more, tests in rows:
        assert re.fullmatch(r"\[[\w ]+\]\([\w/.-]+\.md\)", more), habit
        named = re.findall(r"`(tests/[\w/]+\.py)`", tests)
        assert named and [test for test in named if not (ROOT / test).is_file()] == [], habit


def test_make_targets_are_described() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "ui", "test", "long", "check", "docs", "bench"):
        assert re.search(rf"^{target}:.* ## \w", makefile, re.MULTILINE), target


def test_every_package_a_user_meets_is_declared() -> None:
    """What the package imports stands in pyproject.toml, not only behind somebody else's dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=~!; ]", d)[0].lower().replace("-", "_") for d in project["dependencies"]}
    declared |= {
        re.split(r"[\[<>=~!; ]", d)[0].lower().replace("-", "_")
        for extra, wants in project["optional-dependencies"].items()
        if extra.startswith(("serve", "tables", "openlineage", "quality"))
        for d in wants
    }
    names = {
        "ruamel": "ruamel.yaml",
        "sklearn": "scikit_learn",
        "google": "protobuf",
        "grpc": "grpcio",
        "openlineage": "openlineage_python",
    }
    used: dict[str, Path] = {}
    for file in (ROOT / "dvkf_prefect").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top != "dvkf_prefect":
                    used.setdefault(names.get(top, top).lower(), file)
    missing = {name: str(file.relative_to(ROOT)) for name, file in used.items() if name not in declared}
    assert not missing


def test_every_extra_can_be_installed() -> None:
    """What an extra wants is here in a version that it takes, or its version in constraints.txt is one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pinned
        if not pin.marker or pin.marker.evaluate()
    }
    refused: list[str] = []

    def check(text: str, extra: str) -> None:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            return
        try:
            found = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            found = None
        version = found.version if found else pins.get(canonicalize_name(wanted.name), "")
        if not version or not wanted.specifier.contains(version, prereleases=True):
            refused.append(f"{text}: {version or 'not known'}")
        elif found:
            assert wanted.extras <= set(found.metadata.get_all("Provides-Extra") or ()), text
            for name in wanted.extras:
                for each in found.requires or ():
                    if "extra ==" in each:
                        check(each, name)

    for extra, wants in project["optional-dependencies"].items():
        for text in wants:
            check(text, extra)
    assert not refused


def test_the_data_layer_imports_neither_prefect_nor_kfp_nor_pandas() -> None:
    script = (
        "import sys, dvkf_prefect.repo, dvkf_prefect.cli\n"
        "heavy = ('prefect', 'kfp', 'pandas', 'numpy', 'obstore', 'fsspec', 'ruamel.yaml', 'pydantic')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("words", [["status"], ["add", "x"], ["repro", "--dry"]], ids=" ".join)
def test_a_verb_that_uses_no_remote_starts_without_their_code(words: list[str], tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in ("x", "y"):
        (tmp_path / name).write_text(name)
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: echo\n    deps: [y]\n")
    script = (
        f"import sys, dvkf_prefect.cli as cli\nassert cli.main(['init', '-q']) == 0\nassert cli.main({words!r}) == 0\n"
        "unused = ('remotes.filesystems', 'transfer.plan', 'imports.fetch', 'git.clones')\n"
        "names = {'shutil', *(f'dvkf_prefect.data.{m}' for m in unused)}\n"
        "print(sorted(names & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_all_names_are_exported_and_sorted() -> None:
    names = [name for name in dvkf_prefect.__all__ if name != "__version__"]
    assert names == sorted(names)
    for name in names:
        assert getattr(dvkf_prefect, name) is not None


def test_the_tree_of_errors_is_the_one_drawn() -> None:
    from dvkf_prefect import errors

    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.DvkfError)
    }
    assert errors.__doc__
    drawn = set(re.findall(r"\b\w+Error\b", errors.__doc__)) & {*defined}
    assert drawn == defined
