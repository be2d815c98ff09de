"""The rooms of the package: small modules, described, and reached by imports that the linter sees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import dvkf_prefect

PACKAGE = Path(dvkf_prefect.__file__).parent
LINES = 600
# Lazy exports, verbs of the command line, packages of others and of their versions: each names what it imports.
BY_NAME = {
    "__init__.py",
    "cli/__init__.py",
    "data/remotes/protocols.py",
    "formats/dvcignore.py",
    "formats/patterns.py",
    "kubeflow/image/_probe.py",
    "serving/loading.py",
    "pipeline/report/plots.py",
}


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text()


def test_no_module_is_too_long() -> None:
    lines = {name: text.count("\n") for name, text in modules()}
    assert not {name: count for name, count in lines.items() if count > LINES}


def test_every_package_says_what_it_holds_and_may_import() -> None:
    for name, text in modules():
        if name.endswith("__init__.py") and name.count("/") in (1, 2) and name.split("/")[0] != "cli":
            described = ast.get_docstring(ast.parse(text)) or ""
            assert len(described.splitlines()[0]) > 20, name


def test_flows_import_public_names_only() -> None:
    """So a flow that is copied and changed goes on working."""
    used = set()
    for path in [*(PACKAGE / "flows").glob("*.py"), *(PACKAGE.parent / "flows").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {(path.name, alias.name, "*") for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used |= {(path.name, node.module, alias.name) for alias in node.names}
    ours = {each for each in used if (each[1] or "dvkf_prefect").split(".")[0] == "dvkf_prefect"}
    inside = {each for each in ours if (each[1] or "").startswith("dvkf_prefect.flows")}
    assert {each for each in ours - inside if each[1] != "dvkf_prefect"} == set()
    assert {name for _, _, name in ours - inside} <= set(dvkf_prefect.__all__)


def test_no_import_by_name_hides_from_the_linter() -> None:
    found = {name for name, text in modules() if "import_module(" in text or "__import__(" in text}
    assert found == BY_NAME


DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
OPENERS = re.compile(r"(What|Which|Where|Who|Whom|How|Whether|When)\b")
# Words that a reader has to take apart, with the field's own words beside them.
BANNED = re.compile(
    r"\b(a person|nobody|somebody|whoever|whom|to be had|seen to|as it is|thereof|tells whether|tell whether)\b",
    re.I,
)


def docstrings() -> Iterator[tuple[str, str]]:
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, DESCRIBED) and (described := ast.get_docstring(node)):
                yield f"{name}: {getattr(node, 'name', 'module')}", described


def test_docstrings_open_with_a_noun_or_an_imperative() -> None:
    assert not [place for place, text in docstrings() if OPENERS.match(text)]


def test_docstrings_use_the_words_of_the_field() -> None:
    assert not [(place, found[0]) for place, text in docstrings() if (found := BANNED.search(text))]


# Words that have no place in what the program prints, besides those above: "there" for a place that was not named.
BANNED_PRINTED = re.compile(
    BANNED.pattern + r"|\b(told|tells?|anybody|come to|came to|over there|here and there|what it is)\b"
    r"|\bthere\b(?! (is|are|was|were|may|can|must)\b)",
    re.I,
)
# The next step is a sentence of its own: "what: where. Do X."
STEP = re.compile(
    r"; (add|ask|call|choose|commit|create|declare|delete|deploy|end|fetch|give|install|make|name|pass|pull|push"
    r"|put|remove|rename|repair|replace|run|see|send|set|split|start|try|use|wait|write) \S"
)
# A help text opens with an imperative or a noun without an article.
HELP_OPENERS = re.compile(
    r"(what|which|where|who|whom|how|whether|when|also|as|with|without|of|over|it|its|the|an?|otherwise|nobody)\b",
    re.I,
)


def literals(text: str) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module that are no docstrings, each of an f-string's texts by itself, with their lines."""
    tree = ast.parse(text)
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
            yield node.lineno, node.value


def options(text: str) -> Iterator[tuple[int, str]]:
    """Yield the help texts of options and the descriptions of fields, with their lines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg in ("help", "description"):
            for part in ast.walk(node.value):
                if isinstance(part, ast.JoinedStr):
                    part = part.values[0]
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield node.value.lineno, part.value
                    break


def test_what_is_printed_uses_the_words_of_the_field() -> None:
    found = [
        (name, line, word[0])
        for name, text in modules()
        for line, said in literals(text)
        if (word := BANNED_PRINTED.search(said))
    ]
    assert not found


def test_a_next_step_is_a_sentence_of_its_own() -> None:
    found = [
        (name, line, step[0])
        for name, text in modules()
        for line, said in literals(text)
        if (step := STEP.search(said))
    ]
    assert not found


def test_help_opens_with_a_noun_or_an_imperative() -> None:
    found = [
        (name, line, said)
        for name, text in modules()
        for line, said in options(text)
        if HELP_OPENERS.match(said)
    ]
    assert not found


# Rows of one file each, records with a JSON shape of their own, a request for a manifest, and an archive of sources.
WITH_A_DIGEST = {
    "data/transfer/manifests.py: Manifest",
    "data/verbs/ls.py: Listed",
    "data/verbs/ls.py: _Tracked",
    "data/views/listing.py: Entry",
    "formats/objects.py: Content",
    "formats/outputs.py: DataVersion",
    "formats/outputs.py: FileVersion",
    "kubeflow/exchange/bundle.py: Bundle",
    "models/places.py: PublishedFile",
    "models/version.py: ModelVersion",
}


def test_one_class_describes_content() -> None:
    """Classes used to repeat the fields of content, and each pair of them needed a conversion."""
    found = set()
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                fields = {ast.unparse(line.target) for line in node.body if isinstance(line, ast.AnnAssign)}
                if "digest" in fields and fields & {"size", "nfiles", "isexec", "hash_name"}:
                    found.add(f"{name}: {node.name}")
    assert found == WITH_A_DIGEST
