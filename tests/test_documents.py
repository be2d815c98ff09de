"""The documents say what is true: commands are there and described, so are pictures and tables."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import dvkf_prefect
from dvkf_prefect import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


VERBS = {verb: subcommands(cli.build_parser([verb]))[verb] for verb in cli.VERBS}


def test_the_first_two_commands_are_demo_and_test() -> None:
    first = README.index("```\n")
    assert README[first:].startswith("```\nmake demo ")
    assert "\nmake test " in README[first : README.index("```", first + 3)]


def test_every_verb_is_in_the_readme_and_the_other_way_round() -> None:
    told = set(re.findall(r"^\| `dvkf ([\w-]+)`", README, re.MULTILINE))
    assert told == set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_command_has_a_description_and_every_option_a_help(verb: str) -> None:
    for parser in [VERBS[verb], *subcommands(VERBS[verb]).values()]:
        assert parser.description, parser.prog
        for action in parser._actions:
            if action.option_strings:
                assert action.help, f"{parser.prog} {action.option_strings}"


@pytest.mark.parametrize("verb", ["remote", "model"])
def test_subcommands_are_named(verb: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `dvkf {verb}`"))
    for name in subcommands(VERBS[verb]):
        assert f"`{name}`" in row


def test_every_export_that_a_flow_uses_is_told() -> None:
    for name in dvkf_prefect.__all__:
        if name[0].islower():
            assert f"`{name}`" in README, name


def test_blocks_are_told() -> None:
    from dvkf_prefect import blocks

    for name in blocks.__all__:
        assert f"| `{name}` |" in README


def test_python_in_the_readme_parses() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)


def test_the_flow_takes_ten_lines() -> None:
    block = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    body = block[block.index("@flow") : block.index("if __name__")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


def test_linked_files_and_pictures_are_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target


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


def test_make_targets_are_described() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "ui", "test", "long", "check", "bench"):
        assert re.search(rf"^{target}:.* ## \w", makefile, re.MULTILINE), target


def test_every_package_a_user_meets_is_declared() -> None:
    """What the package imports stands in pyproject.toml, not only behind somebody else's dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=~!; ]", d)[0].lower().replace("-", "_") for d in project["dependencies"]}
    declared |= {
        re.split(r"[\[<>=~!; ]", d)[0].lower().replace("-", "_")
        for d in project["optional-dependencies"]["serve"]
    }
    names = {"ruamel": "ruamel.yaml", "sklearn": "scikit_learn", "google": "protobuf"}
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


def test_the_data_layer_imports_neither_prefect_nor_kfp_nor_pandas() -> None:
    script = (
        "import sys, dvkf_prefect.data.repo, dvkf_prefect.cli\n"
        "heavy = ('prefect', 'kfp', 'pandas', 'numpy', 'obstore', 'fsspec', 'ruamel.yaml')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


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
