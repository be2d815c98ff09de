"""Generated and hand-written pipelines, run by us and by the real `dvc` on clones of one repository.

Both run the same stages, write the same files byte for byte, and find nothing to do after the other; also after edits.
``GENERATED_SCALE=10`` in the environment makes ten times as many, other ones each time.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
from cases import generated, report
from commands import Dvc, dvkf, git
from hypothesis import given
from hypothesis import strategies as st

from dvkf_prefect.pipeline.plan.decide import Rules
from dvkf_prefect.pipeline.run.dry_run import plan
from dvkf_prefect.pipeline.run.events import ReproResult
from dvkf_prefect.pipeline.run.repro import repro
from dvkf_prefect.pipeline.step.spec import StepResult, StepSpec
from dvkf_prefect.pipeline.step.step import run_step
from dvkf_prefect.repo import Repo


class Direct:
    """Runs a stage in this process, by the code that a child process of ours would run: without its start."""

    name = "direct"

    def start(self, spec: StepSpec) -> Direct:
        self._result = run_step(spec)
        return self

    def wait(self, timeout: float | None = None) -> StepResult:
        self._result.check()
        return self._result

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> Direct:
        return self

    def __exit__(self, *error: object) -> None:
        pass


# -- the sides ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a run did, by the addresses of the stages."""

    ran: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    failed: bool = False


_RUNNING = re.compile(r"^Running stage '(.*)':$", re.MULTILINE)
_CACHED = re.compile(r"^Stage '(.*)' is cached - skipping run, checking out outputs$", re.MULTILINE)


class Sides:
    """One repository, twice: ours and theirs."""

    def __init__(self, folder: Path, files: dict[str, str], dvc: Dvc, *, add: Sequence[str] = ()) -> None:
        # In folders of one name: some messages and entries have it.
        self.mine, self.theirs = folder / "a" / "repo", folder / "b" / "repo"
        self._dvc = dvc
        self.mine.mkdir(parents=True)
        git(self.mine, "init", "-q")
        dvc(self.mine, "init", "-q").ok()
        self._write(self.mine, files)
        if add:
            dvc(self.mine, "add", "-q", *add).ok()
        git(self.mine, "add", "-A")
        git(self.mine, "commit", "-qm", "start")
        shutil.copytree(self.mine, self.theirs, symlinks=True)

    @staticmethod
    def _write(root: Path, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def write(self, files: dict[str, str]) -> None:
        for root in (self.mine, self.theirs):
            self._write(root, files)

    def both(self, act: Callable[[Path], object]) -> None:
        for root in (self.mine, self.theirs):
            act(root)

    def repro_theirs(self, *options: str) -> Said:
        done = self._dvc(self.theirs, "repro", *(options or ("-P",)))
        return Said(_RUNNING.findall(done.out), _CACHED.findall(done.out), done.code != 0)

    def repro_mine(self, *targets: str, **options: Any) -> Said:
        result = self._repro(*targets, **options)
        return Said(list(result.ran), list(result.restored), bool(result.failed))

    def _repro(self, *targets: str, **options: Any) -> ReproResult:
        return repro(
            Repo.open(self.mine),
            targets,
            runner=Direct(),
            jobs=1,
            on_error="fail",
            raise_failures=False,
            **options,
        )

    def run(self) -> tuple[Said, Said]:
        """Bring both up to date; what each did."""
        return self.repro_mine(), self.repro_theirs()

    def same(self) -> None:
        """Check that both left the same files, dvc.lock and the run cache among them, byte for byte."""
        mine, theirs = _files(self.mine), _files(self.theirs)
        assert mine == theirs
        assert _objects(self.mine) >= _objects(self.theirs)

    def settled(self, always: Sequence[str] = ()) -> None:
        """Check that neither finds anything to do, in its own repository and in the other's."""
        for root in (self.mine, self.theirs):
            status = self._dvc(root, "status", "--json").json()
            assert dvkf_status(root) == status
            found = {name: groups for name, groups in status.items() if groups != ["always changed"]}
            assert not found and sorted(status) == sorted(always)
            said = self._dvc(root, "repro", "--dry", "-P").ok().out
            ours = [decision.stage for decision in plan(Repo.open(root)) if decision.reasons]
            assert _RUNNING.findall(said) == ours
            assert sorted(_RUNNING.findall(said)) == sorted(always)
            assert not _CACHED.findall(said)


def dvkf_status(root: Path) -> Any:
    """Return our status, in the form of dvc's: ours tells the reasons beside."""
    return dvkf(root, "status", "--json").json()


def _files(root: Path) -> dict[str, bytes]:
    found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
    return {
        # The order of its lines is that of the stages' ends, imports among them.
        name: b"".join(sorted(path.read_bytes().splitlines(True)))
        if path.name == ".gitignore"
        else path.read_bytes()
        for name, path in found.items()
        if not name.startswith((".git/", ".dvc/")) or name.startswith(".dvc/cache/runs/")
    }


def _objects(root: Path) -> set[str]:
    base = root / ".dvc" / "cache" / "files" / "md5"
    return {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}


# -- pipelines made up -------------------------------------------------------------------------------------------------

# Values that YAML, JSON and dvc.lock write in several ways.
_VALUES = [
    1, 2, 0.5, 1e-05, 1e20, True, False, None, "text", "a b", "it's", "1", "1.0", "true", "null", "", "é", "#x", "a: b",
    "yes", "0x1f", "1e3", "-", "multi\nline", "x" * 90, "two words " * 12, [1, 2], ["a", "b c"], [], [[1], [2]],
    {"k": 1}, {"k": {"l": [1, None]}}, {}, [{"a": 1}, {"b": "x"}],
]  # fmt: skip
_KEYS = ["n", "lr", "deep.a", "deep.b", "words", "size", "list.0"]
_SOURCES = ["in.txt", "in two.txt", "raw", "data", "data/a", "data/sub", "sub/in"]
_NAMES = ["one", "two-2", "three_3", "fünf", "six.6"]
_ITEMS: list[Any] = ["u", "v-w", "x y", 3, 0.5, "é"]


@dataclass
class Definition:
    """A stage, or a group of them, before it is written down.

    Attributes:
        name: Its name.
        file: The dvc.yaml it stands in.
        wdir: Its working directory, relative to that file's folder; None where it says none.
        items: For a group ``foreach`` or ``matrix``, and what goes through it.
        body: The other keys.
        reads: Paths relative to the root; with ``${item}`` in them those of a group's item.
        writes: As above, with whether it is a directory.
    """

    name: str
    file: str
    wdir: str | None
    items: tuple[str, Any] | None
    reads: list[str]
    writes: list[tuple[str, bool]]
    keys: list[str]
    style: int
    flags: dict[str, Any]
    more: dict[str, Any]
    shown: str | None
    extra: str = ""

    @property
    def folder(self) -> str:
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.file), self.wdir or "."))

    def _from(self, path: str) -> str:
        return posixpath.relpath(path, self.folder)

    @property
    def suffixes(self) -> list[str]:
        """What the names of a group's outputs end in, one for each of its stages."""
        if self.items is None:
            return [""]
        kind, data = self.items
        if kind == "matrix":
            return [f"-{a}-{b}" for a in data["a"] for b in data["b"]]
        return [f"-{key}" for key in data]

    @property
    def outputs(self) -> list[tuple[str, bool]]:
        return [(path + suffix, is_dir) for suffix in self.suffixes for path, is_dir in self.writes]

    def write(self) -> dict[str, Any]:
        mark = "" if self.items is None else "-${item}" if isinstance(self.items[1], list) else "-${key}"
        commands = []
        for path, is_dir in self.writes:
            out = quote(self._from(path) + mark)
            commands.append(
                f"mkdir -p {out} {out}/sub"
                if is_dir
                else f"mkdir -p {quote(posixpath.dirname(self._from(path)) or '.')}"
            )
            to = f"{out}/sub/all" if is_dir else out
            parts = [f"echo {quote(self.name)} \\${{HOME:+x}}"]
            if self.shown:
                parts.append(f"echo {self.shown}")
            if self.items is not None and self.items[0] == "matrix":
                parts.append("echo ${item.a} ${item.b}")
            if self.extra:
                parts.append(f"echo {self.extra}")
            for path_read in self.reads:
                read = quote(self._from(path_read))
                parts.append(f'find {read} -type f | LC_ALL=C sort | while read -r f; do cat "$f"; done')
            sign = ">>" if self.flags.get("persist") else ">"
            commands.append("{ " + "; ".join(parts) + f"; }} {sign} {to}")
            if is_dir:
                commands.append(f"printf '' > {out}/empty")
        cmd: Any = [commands, " && ".join(commands), "\n".join(commands) + "\n"][self.style]
        body: dict[str, Any] = {"cmd": cmd, **self.more}
        if self.wdir is not None:
            body["wdir"] = self.wdir
        if self.reads:
            body["deps"] = [self._from(path) for path in self.reads]
        if self.keys:
            params = posixpath.relpath("params.yaml", self.folder)
            body["params"] = list(self.keys) if params == "params.yaml" else [{params: list(self.keys)}]
        kind = self.flags.get("kind", "outs")
        flags = {key: value for key, value in self.flags.items() if key != "kind"}
        body[kind] = [
            {self._from(path) + mark: flags} if flags else self._from(path) + mark for path, _ in self.writes
        ]
        if self.items is None:
            return body
        word, data = self.items
        return {"foreach": data, "do": body} if word == "foreach" else {"matrix": data, **body}


@dataclass
class Pipeline:
    """A repository with stages.

    Attributes:
        params: What params.yaml holds.
        stages: The definitions, in the order they are written, which is no order of the graph.
        data: Files of sources by path.
    """

    params: dict[str, Any]
    stages: list[Definition]
    data: dict[str, str]

    def files(self) -> dict[str, str]:
        documents: dict[str, Any] = {"dvc.yaml": {"stages": {}}, "sub/dvc.yaml": {"stages": {}}}
        for stage in self.stages:
            documents[stage.file]["stages"][stage.name] = stage.write()
        files = {name: json.dumps(document, indent=1) for name, document in documents.items()}
        folders = {f"{stage.folder}/.keep": "" for stage in self.stages}
        values = json.dumps(self.params)
        return {**self.data, **folders, **files, "params.yaml": values, "sub/params.yaml": values}

    @property
    def always(self) -> list[str]:
        found = []
        for stage in self.stages:
            if stage.more.get("always_changed"):
                names = [stage.name]
                if stage.items is not None:
                    names = [f"{stage.name}@{suffix[1:]}" for suffix in stage.suffixes]
                found += [name if stage.file == "dvc.yaml" else f"{stage.file}:{name}" for name in names]
        return found


_flags = st.fixed_dictionaries(
    {},
    optional={
        "cache": st.just(False),
        "persist": st.just(True),
        "push": st.just(False),
        "desc": st.just("what: it is"),
        "kind": st.sampled_from(["metrics", "plots"]),
        "meta": st.just({"k": [1]}),
    },
)
_more = st.one_of(
    st.just({}),
    st.just({}),
    st.fixed_dictionaries(
        {},
        optional={
            "desc": st.just("a stage"),
            "meta": st.just([1, {"a": "b"}]),
            "always_changed": st.just(True),
        },
    ),
)  # fmt: skip
_items = st.one_of(
    st.none(),
    st.none(),
    st.lists(st.sampled_from(_ITEMS), min_size=1, max_size=3, unique=True).map(lambda items: ("foreach", items)),
    st.sampled_from([("foreach", {"k1": 1, "k 2": {"x": 2}}), ("matrix", {"a": ["p", "q"], "b": [1, 2.5]})]),
)  # fmt: skip


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Make a pipeline of a few definitions, each reading sources and what those before it write."""
    values = st.sampled_from(_VALUES)
    params = {
        "n": draw(values), "lr": draw(values), "deep": {"a": draw(values), "b": draw(values)}, "words": draw(values),
        "size": draw(values), "list": [draw(values)], "cmdline": {"x": 1, "flag": True, "name": "a b"},
    }  # fmt: skip
    written: list[str] = []
    stages = []
    for i, name in enumerate(_NAMES[: draw(st.integers(2, 5))]):
        file = draw(st.sampled_from(["dvc.yaml", "dvc.yaml", "sub/dvc.yaml"]))
        stage = Definition(
            name=name,
            file=file,
            wdir=draw(
                st.sampled_from([None, None, ".", f"w{i}", ".." if file != "dvc.yaml" else f"w {i}/x"])
            ),
            items=draw(_items),
            reads=draw(
                st.lists(st.sampled_from(_SOURCES + written * 2), min_size=1, max_size=3, unique=True)
            ),
            writes=[],
            keys=draw(st.lists(st.sampled_from(_KEYS), max_size=3, unique=True)),
            style=draw(st.integers(0, 2)),
            flags=draw(_flags),
            more=draw(_more),
            shown=draw(st.sampled_from([None, None, "'${size}'", "${cmdline}"])),
        )
        # One of another stage's files and the folder it lies in are two dependencies that come to the same.
        stage.reads = [p for p in stage.reads if not any(p.startswith(other + "/") for other in stage.reads)]
        if isinstance(params["size"], (list, dict)) and stage.shown == "'${size}'":
            stage.shown = None
        # A text of several lines is several commands.
        if isinstance(params["size"], str) and ("\n" in params["size"] or "'" in params["size"]):
            stage.shown = None
        stage.writes = draw(
            st.sampled_from(
                [[(f"o{i}", False)], [(f"out/o{i}.txt", False), (f"o{i}-b", False)], [(f"d{i}", True)],
                 [(f"sub/a b{i}", False), (f"out/d{i}", True)]]
            )
        )  # fmt: skip
        written += [path for path, _ in stage.outputs]
        stages.append(stage)
    data = {"in.txt": "in\n", "in two.txt": "two\r\n", "sub/in": "sub", "raw/x": "x\n", "raw/y/z": "z\n"}
    data |= {"data/a": "a\n", "data/b": "b\n", "data/sub/c": "c\n"}
    return Pipeline(params, draw(st.permutations(stages)), data)


# -- edits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One thing that somebody does.

    Attributes:
        what: A method of `_Editing`.
        which: Which one of those there are, by number.
        value: A new value.
    """

    what: str
    which: int
    value: Any


_WHAT = ["param", "param", "file", "file", "new file", "no file", "command", "command", "desc", "source", "back",
         "no output", "no lock", "other output"]  # fmt: skip
edits = st.builds(Edit, st.sampled_from(_WHAT), st.integers(0, 99), st.sampled_from(_VALUES))


def edit(sides: Sides, pipeline: Pipeline, made: Edit) -> None:
    """Do it on both sides."""
    what, which = made.what, made.which
    if what == "param":
        key = _KEYS[which % len(_KEYS)]
        match key.split("."):
            case ["deep", inner]:
                pipeline.params["deep"][inner] = made.value
            case ["list", _]:
                pipeline.params["list"] = [made.value]
            case [word] if word != "size":  # what commands show
                pipeline.params[word] = made.value
    elif what == "file":
        sides.write({["data/a", "data/sub/c", "raw/y/z"][which % 3]: f"new {which}\n"})
    elif what == "new file":
        sides.write({["data/new", "raw/y/new"][which % 2]: "new\n"})
    elif what == "no file":
        sides.both(lambda root: (root / ["data/b", "raw/x"][which % 2]).unlink(missing_ok=True))
    elif what == "command":
        stage = pipeline.stages[which % len(pipeline.stages)]
        stage.extra += "!"
    elif what == "desc":
        pipeline.stages[which % len(pipeline.stages)].more["desc"] = f"said {which}"
    elif what == "source":
        sides.write({"in.txt": f"in {which % 2}\n"})
    elif what == "back":
        sides.write({"in.txt": "in\n", "data/a": "a\n"})
    elif what == "no lock":
        sides.both(lambda root: (root / "dvc.lock").unlink(missing_ok=True))
    else:
        outputs = [out for stage in pipeline.stages for out in stage.outputs]
        path, is_dir = outputs[which % len(outputs)]
        place = f"{path}/empty" if is_dir else path
        if what == "no output":
            sides.both(lambda root: shutil.rmtree(root / path) if is_dir else (root / path).unlink())
        else:
            sides.both(lambda root: (root / place).unlink())  # it may be a link into the cache
            sides.write({place: "by hand\n"})
    sides.write({n: t for n, t in pipeline.files().items() if n.endswith(("dvc.yaml", "params.yaml"))})


@pytest.mark.long
def test_generated_pipelines(dvc: Dvc, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both run the same, write the same and find nothing left; then edits, after each of which that holds again."""
    cases: list[int] = []
    numbers = count()

    @given(pipelines(), st.lists(edits, min_size=1, max_size=3))
    @generated(20)
    def check(pipeline: Pipeline, changes: Sequence[Edit]) -> None:
        folder = tmp_path / str(next(numbers))
        sides = Sides(folder, pipeline.files(), dvc, add=["data"])
        mine, theirs = sides.run()
        assert mine == theirs
        assert not mine.failed and mine.ran
        sides.same()
        sides.settled(pipeline.always)
        for made in changes:
            edit(sides, pipeline, made)
            status = dvkf_status(sides.mine)
            assert status == dvc(sides.mine, "status", "--json").json(), made
            mine, theirs = sides.run()
            assert mine == theirs, made
            sides.same()
            sides.settled(pipeline.always)
        cases.append(1 + len(changes))
        shutil.rmtree(folder)

    check()
    report(capsys, "pipelines run by both", cases, 30)


# -- written by hand ---------------------------------------------------------------------------------------------------

CHAIN = {
    "in.txt": "in\n",
    "params.yaml": "n: 1\n",
    "dvc.yaml": """\
stages:
  one:
    cmd: cat in.txt > one; echo ${n} >> one
    deps: [in.txt]
    params: [n]
    outs: [one]
  many:
    foreach: [a, b]
    do:
      cmd: mkdir m-${item}; cp one m-${item}/x; echo ${item} > m-${item}/y
      deps: [one]
      outs:
        - m-${item}
  score:
    cmd: cat m-a/x m-b/y | wc -l > score.json
    deps: [m-a, m-b]
    metrics: [score.json: {cache: false}]
""",
}


@pytest.mark.parametrize("pushed_by", ["dvkf", "dvc"])
def test_a_run_pushed_by_one_is_restored_by_the_other(dvc: Dvc, tmp_path: Path, pushed_by: str) -> None:
    """On a clone that has neither cache nor dvc.lock; what is gone from the remote is no hit."""
    sides = Sides(tmp_path, CHAIN, dvc)
    store = str(tmp_path / "store")
    sides.both(lambda root: dvc(root, "remote", "add", "-q", "-d", "s", store).ok())
    if pushed_by == "dvkf":
        sides.repro_mine()
        dvkf(sides.mine, "push", "--run-cache", "-q").ok()
        said, root = (lambda: sides.repro_theirs("--pull")), sides.theirs
    else:
        sides.repro_theirs()
        dvc(sides.theirs, "push", "--run-cache", "-q").ok()
        said, root = (lambda: sides.repro_mine(rules=Rules(pull=True))), sides.mine
    stages = ["one", "many@a", "many@b", "score"]
    # DVC does not push what stays out of the cache, so nobody can restore what it wrote there.
    assert said() == (Said([], stages) if pushed_by == "dvkf" else Said(stages[3:], stages[:3]))
    sides.same()
    sides.settled()
    if pushed_by == "dvkf":
        return
    # A file of one output is gone from everywhere: DVC takes the manifest on the remote for the whole.
    gone = Repo.open(root).cache.read_tree(_locked(root, "m-b"))
    (digest,) = (digest for path, digest in gone.items() if path == "y")
    (tmp_path / "store/files/md5" / digest[:2] / digest[2:]).unlink()
    shutil.rmtree(root / ".dvc" / "cache")
    for path in ("m-a", "m-b"):
        shutil.rmtree(root / path)
    for path in ("one", "score.json", "dvc.lock"):
        (root / path).unlink()
    assert said() == Said(["many@b", "score"], ["one", "many@a"])
    dvc(root, "status", "-q").ok()


def _locked(root: Path, path: str) -> str:
    (found,) = (output.digest for output in Repo.open(root).outputs() if output.path == path)
    assert found
    return found


@pytest.mark.parametrize("verb", ["push", "fetch", "pull", "checkout", "status"])
def test_the_name_of_a_group_means_all_its_outputs(dvc: Dvc, tmp_path: Path, verb: str) -> None:
    """As a target of verbs on data; in a file of another folder with the file's name."""
    files = {f"sub/{name}": text for name, text in CHAIN.items()} | CHAIN
    sides = Sides(tmp_path, files, dvc)
    sides.both(lambda root: dvc(root, "remote", "add", "-q", "-d", "s", "../store").ok())
    sides.run()
    for target in ("many", "dvc.yaml:many", "sub/dvc.yaml:many", "many@b"):
        for root, tool in ((sides.mine, dvkf), (sides.theirs, dvc)):
            if verb in ("fetch", "pull"):
                tool(root, "push", "-q").ok()
                shutil.rmtree(root / ".dvc" / "cache" / "files")
            for path in (root, root / "sub"):
                for name in ("m-a", "m-b"):
                    shutil.rmtree(path / name, ignore_errors=True)
            said = tool(root, verb, target, *(["--json"] if verb == "status" else [])).ok()
            if verb == "status":
                (root / "said").write_text(json.dumps(said.json(), sort_keys=True))
        places = (".", "store", ".dvc/cache/files") if verb != "push" else ("../store/files",)
        for place in places:
            assert _files(sides.mine / place) == _files(sides.theirs / place), (target, place)
        assert _stored(sides.mine) == _stored(sides.theirs)
        for root, tool in ((sides.mine, dvkf), (sides.theirs, dvc)):
            tool(root, "checkout" if verb not in ("fetch", "pull") else "pull", "-q").ok()
            shutil.rmtree(root.parent / "store", ignore_errors=True)


def _stored(root: Path) -> list[set[str]]:
    places = (root / ".dvc" / "cache" / "files", root.parent / "store" / "files")
    return [{p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()} for place in places]


def test_datasets(dvc: Dvc, tmp_path: Path) -> None:
    """A stage that reads ``ds://name``: the same status and entry, and it runs when the version is another one."""
    data = tmp_path / "data"
    data.mkdir()
    git(data, "init", "-q")
    dvc(data, "init", "-q").ok()

    def version(text: str) -> None:
        (data / "cats").write_text(text)
        dvc(data, "add", "-q", "cats").ok()
        git(data, "add", "-A")
        git(data, "commit", "-qm", text)

    version("meow")
    body = {
        "datasets": [{"name": "cats", "url": str(data), "type": "dvc", "path": "cats"}],
        "stages": {
            "s": {"cmd": "cat in.txt > o", "deps": ["in.txt", "ds://cats"], "outs": ["o"]},
            "t": {"cmd": "cat o > p", "deps": ["o"], "outs": ["p"]},
        },
    }
    # In one file the dataset, in another a stage that reads it.
    inner = {"stages": {"u": {"cmd": "echo u > u", "deps": ["ds://cats"], "outs": ["u"]}}}
    files = {"dvc.yaml": json.dumps(body), "sub/dvc.yaml": json.dumps(inner), "in.txt": "in\n"}
    sides = Sides(tmp_path, files, dvc)
    assert dvkf_status(sides.mine) == dvc(sides.mine, "status", "--json").json()
    assert dvkf_status(sides.mine)["s"][0]["changed deps"]["ds://cats"] == "not in sync"
    mine, theirs = sides.run()
    assert mine.failed and theirs.failed and not mine.ran
    sides.both(lambda root: dvc(root, "dataset", "update", "-q", "cats").ok())
    assert dvkf_status(sides.mine) == dvc(sides.mine, "status", "--json").json()
    mine, theirs = sides.run()
    assert mine == theirs == Said(["s", "t", "sub/dvc.yaml:u"])
    sides.same()
    sides.settled()
    version("purr")
    sides.settled()  # until it is updated
    sides.both(lambda root: dvc(root, "dataset", "update", "-q", "cats").ok())
    assert dvkf_status(sides.mine) == dvc(sides.mine, "status", "--json").json()
    assert dvkf_status(sides.mine)["s"] == [{"changed deps": {"ds://cats": "modified"}}]
    mine, theirs = sides.run()
    assert mine == theirs == Said(["s", "sub/dvc.yaml:u"])
    sides.same()
    sides.settled()
    # Declared anew, what is recorded is of another one.
    text = (sides.mine / "dvc.yaml").read_text()
    sides.write({"dvc.yaml": text.replace('"path": "cats"', '"path": "dogs"')})
    assert dvkf_status(sides.mine) == dvc(sides.mine, "status", "--json").json()


def test_frozen_stages_and_imports(dvc: Dvc, tmp_path: Path) -> None:
    """A frozen stage is passed over; an import that follows its source is brought up to date before it is read."""
    files = {
        **CHAIN,
        "other.txt": "other\n",
        "got.txt.dvc": "deps:\n- path: other.txt\nouts:\n- path: got.txt\n",
        "late.txt.dvc": "deps:\n- path: one\nouts:\n- path: late.txt\n",
        "sub/dvc.yaml": "stages:\n  read:\n    cmd: cat ../got.txt ../late.txt > r\n"
        "    deps: [../got.txt, ../late.txt]\n    outs: [r]\n",
    }
    sides = Sides(tmp_path, files, dvc)
    mine, theirs = sides.run()
    assert not theirs.failed and mine == theirs
    sides.same()
    sides.settled()
    sides.write({"other.txt": "new\n"})
    mine, theirs = sides.run()
    assert mine == theirs
    sides.same()
    sides.settled()
    text = CHAIN["dvc.yaml"].replace("    outs: [one]", "    outs: [one]\n    frozen: true")
    sides.write({"dvc.yaml": text, "in.txt": "changed\n"})
    assert dvkf_status(sides.mine) == dvc(sides.mine, "status", "--json").json()
    mine, theirs = sides.run()
    assert mine == theirs == Said()
    sides.same()
    sides.write({"dvc.yaml": CHAIN["dvc.yaml"]})
    mine, theirs = sides.run()
    assert mine == theirs and "one" in mine.ran
    sides.same()
    sides.settled()
