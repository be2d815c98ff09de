"""One randomised run: a made-up graph of stages, dispatchers that are killed, and a server, proxy and pods that fail.

The seed decides everything but the timing. Commands write what they do to a journal outside of the repository: the
folder that they ran in names their workflow, task and attempt. So the journal is the oracle: `Scene.check` compares it
with the states that dispatchers report, with dvc.lock, and with the server's runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import random
import re
import shutil
import threading
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import repos
from processes import wait_until
from ruamel.yaml import YAML

from dvkf_prefect.kubeflow.cluster.login import Login
from dvkf_prefect.kubeflow.cluster.patience import Patience
from dvkf_prefect.kubeflow.cluster.runner import ClusterSettings
from dvkf_prefect.kubeflow.compile.pod_settings import Placement, Volume, parse_defaults
from dvkf_prefect.kubeflow.exchange.runs import RUNS
from dvkf_prefect.processes.holder import Holder

from .fake.store import Refused

TOKEN, HUB = "t0ken-planted-for-the-login", "s3cret-planted-for-the-pods"
SECRETS = (TOKEN, HUB)
_JOB = """\
# NAME KIND OUT SECONDS DEPS: writes to the journal what it does, and puts the digest of its inputs out.
name=$1 kind=$2 out=$3 seconds=$4
shift 4
here=$(dirname "$0")
echo "begin $name $PWD" >> "$here/journal"
test -n "$HUB" || exit 9
sleep "$seconds"
if [ -e "$here/fail-$name" ] && mv "$here/fail-$name" "$here/failed-$name-$$" 2>/dev/null; then
  echo "fail $name $PWD" >> "$here/journal"
  exit 3
fi
target=$out
if [ "$kind" = folder ]; then mkdir -p "$out"; echo "$name" > "$out/y"; target=$out/x; fi
find "$@" -type f | sort | xargs cat | md5sum > "$target"
echo "end $name $PWD" >> "$here/journal"
"""


@dataclasses.dataclass
class Made:
    """A stage of the graph.

    Attributes:
        name: Name of the stage.
        kind: ``file``, ``folder`` or ``metric``.
        out: Its output.
        deps: Paths that it reads.
        seconds: Duration of its command.
    """

    name: str
    kind: str
    out: str
    deps: list[str]
    seconds: float

    def text(self, job: Path) -> str:
        """Return the stage as a part of dvc.yaml."""
        deps = " ".join(self.deps)
        cmd = f"sh {job} {self.name} {self.kind} {self.out} {self.seconds} {deps}"
        out = f"metrics: [{self.out}: {{cache: false}}]" if self.kind == "metric" else f"outs: [{self.out}]"
        return f"  {self.name}:\n    cmd: {cmd}\n    deps: [{', '.join(self.deps)}]\n    {out}\n"


def graph(rng: random.Random) -> list[Made]:
    """Return stages of a random shape; names collide with those of Argo's nodes at times."""
    names = ["executor", "root", "x", "x-driver", "größe", *(f"s{i}" for i in range(9))]
    rng.shuffle(names)
    made: list[Made] = []
    for i, name in enumerate(names[: rng.randint(2, 6)]):
        before = [
            stage.out + ("/x" if stage.kind == "folder" and rng.random() < 0.5 else "") for stage in made
        ]
        deps = rng.sample(before, min(len(before), rng.randint(0, 2)))
        deps = deps or [f"src{i}"]
        kind = rng.choice(["file", "file", "folder", "metric"])
        out = {"file": f"o{i}.txt", "folder": f"o{i}", "metric": f"m{i}.json"}[kind]
        made.append(Made(name, kind, out, deps, rng.choice([0, 0, 0.1, 0.4])))
    return made


def expected(made: list[Made], sources: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return the files of each stage's output, by name below it; "" for the output itself."""
    files: dict[str, dict[str, str]] = {path: {"": text} for path, text in sources.items()}
    for stage in made:
        read = []
        for dep in stage.deps:
            top, _, rest = dep.partition("/")
            read += [(f"{top}/{n}" if n else top, t) for n, t in files[top].items() if not rest or n == rest]
        text = hashlib.md5("".join(t for _, t in sorted(read)).encode()).hexdigest() + "  -\n"
        files[stage.out] = {"x": text, "y": f"{stage.name}\n"} if stage.kind == "folder" else {"": text}
    return files


class Scene:
    """A repository, a server and what happens to them.

    Args:
        seed: Seed of all decisions.
        folder: Folder of all files.
        kfp: The server.
        forks: Host of processes.
        env: Environment of dispatchers.
    """

    def __init__(self, seed: int, folder: Path, kfp: Any, forks: Any, env: dict[str, str]) -> None:
        self.rng = random.Random(seed)
        self.folder, self.kfp, self.forks, self.env = folder, kfp, forks, env
        self.log = folder / "dispatchers.log"
        self.oracle = folder / "oracle"
        self.journal = self.oracle / "journal"
        self.made = graph(self.rng)
        self.sources = {f"src{i}": f"{self.rng.random()}\n" for i in range(len(self.made))}
        self.figures: Counter[str] = Counter()
        self.evicted: set[tuple[str, str]] = set()
        self.terminated: set[str] = set()
        self.doubled: set[str] = set()
        self.calm = threading.Event()
        self._lost_before = 0
        self._make()

    def _make(self) -> None:
        self.oracle.mkdir()
        (self.oracle / "job.sh").write_text(_JOB)
        self.journal.touch()
        (self.folder / "remote").mkdir()
        self.root = self.folder / "one" / "repo"
        text = "stages:\n" + "".join(stage.text(self.oracle / "job.sh") for stage in self.made)
        files = {"dvc.yaml": text, **self.sources}
        repos.make_repo(self.root, files, remote=self.folder / "remote/store", commit="Start")
        for stage in self.made:
            if self.rng.random() < 0.15:
                (self.oracle / f"fail-{stage.name}").touch()
        rng, kfp = self.rng, self.kfp
        kfp.popen = self.forks.popen
        kfp.secrets["hub"] = {"token": HUB}
        kfp.tokens = {TOKEN}
        kfp.multi_user = rng.random() < 0.5
        kfp.allowed = {TOKEN: {kfp.namespace}}
        kfp.ui_host = rng.random() < 0.7
        kfp.honours_run_id = rng.random() < 0.8
        kfp.agent_lag = rng.choice([0.0, 0.05, 0.5, 1.5])
        kfp.delay = rng.choice([0.0, 0.0, 0.3])
        kfp.gc_grace = 1.0
        kfp.grace = 0.5
        kfp.term_reaches_python = rng.random() < 0.5
        self.kube_config = self.folder / "kubeconfig"
        self.kube_config.write_text(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n"
            f"clusters: [{{name: test, cluster: {{server: '{kfp.host}'}}}}]\n"
            "contexts: [{name: test, context: {cluster: test, user: test}}]\n"
            f"users: [{{name: test, user: {{token: {TOKEN}}}}}]\n"
        )
        own = parse_defaults({"secrets": [{"name": "hub", "env": {"token": "HUB"}}]})
        volume = Volume("data", str(self.folder / "remote"))
        settings = ClusterSettings(
            kfp.host,
            image="registry.example.org/stages:1",
            defaults=Placement(volumes=(volume,), secrets=own.secrets),
            login=Login(TOKEN),
            patience=Patience(poll_from=0.05, poll_to=0.2, run=90, cancel=20, start=5, schedule=5),
            ask_kubernetes=rng.random() < 0.5,
            kube_config=str(self.kube_config),
            outage=20,
        )
        self.job = self.folder / "settings"
        self.job.write_bytes(pickle.dumps(settings))

    # -- what goes wrong -----------------------------------------------------------------------------------------------

    def disturb(self, share: float) -> None:
        """Let a share of requests fail, and pods and runs be ended at random."""
        chance = random.Random(self.rng.random())
        passing = [502, 503, 504, "unsent", "drop", "drop-after", "504-after", "cut", "slow", "locked"]

        def chaos(method: str, path: str) -> int | str | None:
            if self.calm.is_set() or chance.random() > share:
                return None
            starts = method == "POST" and path.endswith("/runs")
            if starts and chance.random() < 0.15:
                return "deadlock"
            if not starts and chance.random() < 0.2:
                return "twice"
            return chance.choice(passing)

        self.kfp.chaos = chaos

    def _act(self, ended: threading.Event, evicts: float, stops: float) -> None:
        """Evict pods and terminate runs at random until the round ends."""
        chance = random.Random(self.rng.random())
        while not ended.wait(0.1):
            for run in list(self.kfp.runs.values()):
                running = [
                    t for t in run.tasks.values() if t.process is not None and t.process.poll() is None
                ]
                if running and chance.random() < evicts:
                    task = chance.choice(running)
                    self.evicted.add((run.id, task.name))
                    task.lost = True
                    self.figures["evicted pods"] += 1
                if running and chance.random() < stops and run.state == "RUNNING":
                    self.terminated.add(run.id)
                    self.figures["terminated runs"] += 1
                    with suppress(Refused):  # it ended meanwhile
                        run.terminate()

    # -- dispatchers ---------------------------------------------------------------------------------------------------

    def play(self, most: int = 8) -> None:
        """Dispatch again and again until all stages are done; the last rounds are undisturbed.

        Raises:
            AssertionError: The stages are not done after the last round, or something is wrong on the way.
        """
        rng = self.rng
        twin = rng.random() < 0.35
        roots = [self.root]
        if twin:
            roots.append(Path(shutil.copytree(self.root, self.folder / "two" / "repo", symlinks=True)))
            self.figures["two dispatchers"] += 1
        self.disturb(rng.choice([0.0, 0.05, 0.15, 0.3]))
        evicts, stops = rng.choice([0, 0, 0.05]), rng.choice([0, 0, 0, 0.03])
        kills = rng.randint(0, 3)
        for turn in range(most):
            if turn >= 4:
                self.calm.set()
                evicts = stops = kills = 0
            ended = threading.Event()
            actor = threading.Thread(target=self._act, args=(ended, evicts, stops))
            actor.start()
            before = set(self.kfp.runs)
            dispatchers = [self._start(root, turn) for root in roots]
            killed = False
            if kills:
                kills -= 1
                killed = True
                time.sleep(rng.uniform(0, 2.5))
                for process, _ in dispatchers if rng.random() < 0.7 else dispatchers[:1]:
                    if process.poll() is None:
                        process.kill()
                        self.figures["killed dispatchers"] += 1
            for process, _ in dispatchers:
                process.wait(120)
            ended.set()
            actor.join()
            self.figures["dispatchers"] += len(dispatchers)
            done = [
                self._judge(root, report, before)
                for root, (_, report) in zip(roots, dispatchers, strict=True)
            ]
            if all(done) and not killed:
                break
        else:
            raise AssertionError(
                f"not all stages are done after {most} rounds:\n{self.log.read_text()[-3000:]}"
            )
        self.check(roots)

    def _start(self, root: Path, turn: int) -> tuple[Any, Path]:
        report = self.folder / f"report-{root.parent.name}-{turn}.json"
        arguments = (str(self.job), str(root), str(report))
        env = {**self.env, "HOME": str(self.folder), "PYTHONPATH": str(Path(__file__).parents[1])}
        process = self.forks.call(
            str(Path(__file__).with_name("dispatcher.py")),
            "dispatch",
            *arguments,
            cwd=self.folder,
            env=env,
            log=self.log,
        )
        return process, report

    # -- the oracle ----------------------------------------------------------------------------------------------------

    def entries(self) -> list[tuple[str, str, str, str]]:
        """Return the journal: what, stage, workflow and attempt."""
        found = []
        for line in self.journal.read_text().splitlines():
            what, stage, place = line.split(" ", 2)
            if not place:
                # The shell of a pod that was killed began after its folder was gone: $PWD is empty.
                continue
            match = re.search(r"/cluster/([^/]+)/([^/]+)/(try-\d+)/", place)
            assert match, line
            found.append((what, stage, match[1], match[3]))
        return found

    def locked(self, root: Path) -> dict[str, Any]:
        file = root / "dvc.lock"
        return YAML(typ="safe").load(file.read_text())["stages"] if file.exists() else {}

    def _judge(self, root: Path, report: Path, before: set[str]) -> bool:
        """Compare a dispatcher's report and its records with the journal; return True if all stages are done."""
        journal = self.entries()
        ended = {stage for what, stage, *_ in journal if what == "end"}
        recorded = self.locked(root)
        assert set(recorded) <= ended, f"recorded without having run: {set(recorded) - ended}"
        self._compare(recorded)
        if not report.exists():
            return False
        outcome = json.loads(report.read_text())
        report.rename(report.with_suffix(".read"))
        self.figures["verdicts"] += len(outcome["failed"]) + len(outcome.get("ran", ()))
        if outcome["error"]:
            self.figures["not started or given up"] += 1
            assert re.match(
                r"(RunnerError|KfpUnreachableError|KfpAnswerError|LeftOverError): ", outcome["error"]
            ), outcome
            assert "Traceback" not in outcome["error"]
            return False
        for stage in (*outcome["ran"], *outcome["restored"], *outcome["skipped"]):
            assert stage in ended and stage in recorded, f"{stage} is reported as done: {outcome}"
        names = {run.workflow.name for key, run in self.kfp.runs.items()}
        for stage, message in outcome["failed"].items():
            mine = [(what, w) for what, s, w, _ in journal if s == stage and w in names]
            if "exit code 3" in message:
                assert any(what == "fail" for what, _ in mine), f"{stage} did not fail: {message}"
            elif "was stopped before its end" in message:
                assert self.terminated or self.kfp.happened, f"{stage} was not stopped: {message}"
            elif "without a result" in message:
                assert self.evicted, f"{stage} was not lost: {message}"
            else:
                allowed = r"was not run|can no longer be followed|was terminated|could not be started"
                assert re.search(allowed, message), f"{stage}: {message}"
        return not outcome["failed"] and not outcome["blocked"] and len(recorded) == len(self.made)

    def _compare(self, recorded: dict[str, Any]) -> None:
        """Compare entries of dvc.lock with the contents that the stages must have written and read."""
        files = expected(self.made, self.sources)
        for stage in self.made:
            entry = recorded.get(stage.name)
            if entry is None:
                continue
            assert [dep["path"] for dep in entry["deps"]] == sorted(stage.deps), entry
            for item in (*entry["deps"], *entry["outs"]):
                top, _, rest = item["path"].partition("/")
                digest, size = _digest({rest and "": files[top][rest]} if rest else files[top])
                assert (item["md5"], item["size"]) == (digest, size), f"{stage.name}: {item}"

    def check(self, roots: list[Path]) -> None:
        """Compare what is left with what may be left."""
        kfp = self.kfp
        by_run = Counter(workflow.run_id for workflow in kfp.workflows)
        self.figures["runs"] += len(by_run)
        self.figures["workflows"] += len(kfp.workflows)
        lost = {w.run_id for w in kfp.workflows} - set(kfp.runs)
        assert set(by_run.values()) <= {1}, f"workflows of a run: {by_run}"
        assert len(lost) == kfp.happened["deadlock"], lost
        self.figures["lost inserts"] += len(lost)
        wait_until(
            lambda: all(w.ended or w.collected for w in kfp.workflows),
            problem="a workflow runs and no dispatcher waits",
        )
        wait_until(lambda: not self._alive(), problem="a pod runs after its workflow")
        for root in roots:
            assert set(self.locked(root)) == {stage.name for stage in self.made}
            self._compare(self.locked(root))
        self._claims()
        self._overlaps(lost)
        self._secrets()
        for kind, count in kfp.happened.items():
            self.figures[f"fault {kind}"] += count
        self.figures["requests"] += len(kfp.requests)
        self.figures["calls of Kubernetes"] += len(kfp.asked_kubernetes)
        self.figures["stages"] += len(self.made)
        self.figures["executions"] += sum(what == "begin" for what, *_ in self.entries())

    def _alive(self) -> list[Any]:
        tasks = [task for workflow in self.kfp.workflows for task in workflow.tasks.values()]
        return [task for task in tasks if task.process is not None and task.process.poll() is None]

    def _claims(self) -> None:
        """Hold that no claim is left, but of a dispatcher killed before its request whose stages others ran since.

        Nobody looks for such a run again: `gc` removes the claim by its age.
        """
        sent = {workflow.run_id for workflow in self.kfp.workflows}
        runs = self.folder / "remote/store" / RUNS
        for claim in runs.rglob("claims/*"):
            run = claim.parents[1]
            files = [file for file in run.rglob("*") if file.is_file()]
            unsent = run.parent == runs and run.name not in sent and files == [claim]
            assert unsent and Holder.from_json(claim.read_bytes()).gone, f"a claim is left: {claim}"
            self.figures["claims of runs that were never sent"] += 1

    def _overlaps(self, lost: set[str]) -> None:
        """Hold that no stage ran twice at once, but in a run that the server lost or that was terminated."""
        runs = {workflow.name: workflow.run_id for workflow in self.kfp.workflows}
        open_: dict[str, str] = {}
        for what, stage, workflow, attempt in self.entries():
            here = f"{workflow}/{attempt}"
            if what == "begin":
                other = open_.get(stage, "").partition("/")[0]
                run = runs.get(other, "")
                fine = (
                    not other
                    or run in lost
                    or run in self.terminated
                    or any(r == run for r, _ in self.evicted)
                )
                ended = not other or kfp_ended(self.kfp, run)
                assert fine or ended, f"{stage} ran in {other} and {workflow} at once"
                open_[stage] = here
            elif open_.get(stage) == here:
                del open_[stage]

    def _secrets(self) -> None:
        """Hold that no secret is in any file, in a pipeline or in git."""
        kept = {self.job, self.kube_config}
        for file in self.folder.rglob("*"):
            if file.is_file() and file not in kept:
                data = file.read_bytes()
                if ".git/objects" in str(file) and data[:1] == b"\x78":
                    data = zlib.decompress(data)
                self.figures["files searched"] += 1
                assert not any(secret.encode() in data for secret in SECRETS), f"a secret is in {file}"
        told = json.dumps([run.body for run in self.kfp.runs.values()])
        told += json.dumps([workflow.manifest() for workflow in self.kfp.workflows])
        told += json.dumps(self.kfp.requests)
        assert not any(secret in told for secret in SECRETS)


def kfp_ended(kfp: Any, run_id: str) -> bool:
    return run_id in kfp.runs and kfp.runs[run_id].workflow.ended


def _digest(files: dict[str, str]) -> tuple[str, int]:
    """Return the digest and size of a file ("") or a folder as dvc.lock has them."""
    size = sum(len(text.encode()) for text in files.values())
    sums = {name: hashlib.md5(text.encode()).hexdigest() for name, text in files.items()}
    if "" in sums:
        return sums[""], size
    listed = json.dumps([{"md5": sums[name], "relpath": name} for name in sorted(sums)])
    return hashlib.md5(listed.encode()).hexdigest() + ".dir", size


def shown(figures: Counter[str]) -> str:
    """Return figures in one line."""
    return ", ".join(f"{name} {count}" for name, count in sorted(figures.items()))
