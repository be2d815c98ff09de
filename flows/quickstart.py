"""Demo on one machine, with real data: all of the package from data versions to a rollback.

Versions of data, training, a registered model, serving, new data, promotion, rollback:

    make demo

It needs only this package, and creates `.demo/repo`, an ordinary git and DVC repository. It can run again at any time:
completed steps are skipped, with a message.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prefect import flow

from dvkf_prefect import (
    DvcRepository,
    DvkfError,
    KubeflowPipelines,
    LeashedProcess,
    ModelRegistry,
    ModelServer,
    ModelVersion,
    Repo,
    add_data,
    artifact_key,
    checkout_data,
    commit_results,
    compare_metrics,
    deploy_model,
    diff_data,
    promote_model,
    push_data,
    register_model,
    repro_pipeline,
    request_predictions,
    rollback_model,
    show_overview,
    show_plots,
)

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / ".demo"
MODEL = "digits"
HELD_OUT = 360
FIRST = 700
LABEL = "quickstart"
HEADER = b"P5 8 8 16\n"


@dataclass
class Report:
    """Messages of the demo."""

    started: float = field(default_factory=time.monotonic)

    def step(self, title: str) -> None:
        """Print the title of a step."""
        print(f"\n[{time.monotonic() - self.started:5.1f} s] {title}", flush=True)

    def say(self, text: str) -> None:
        """Print a fact of the current step."""
        print(f"          {text}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Print a skipped step and its reason."""
        self.say(f"skipped {what}: {why}")


report = Report()


def main() -> int:
    """Run the flow in a process of its own, on a Prefect server that ends with this one unless one is configured."""
    DEMO.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(DEMO / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # The logs of runs are for the UI; here the demo prints its own messages.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
    }
    server = None
    if "PREFECT_API_URL" not in environment:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        print("Starting a Prefect server for this run. The first start creates its database ...", flush=True)
        with (DEMO / "server.log").open("wb") as log:
            command = [
                sys.executable,
                "-m",
                "prefect",
                "server",
                "start",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ]
            server = LeashedProcess(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    flow_process = LeashedProcess([sys.executable, __file__, "--run"], env=environment)
    try:
        while flow_process.poll() is None:
            if server is not None and server.poll() is not None:
                tail = (DEMO / "server.log").read_text(errors="replace")[-2000:]
                print(f"ERROR: the Prefect server ended. The end of its log:\n{tail}", file=sys.stderr)
                return 1
            time.sleep(0.1)
        return flow_process.returncode
    finally:
        stop(flow_process)
        if server is not None:
            stop(server)


def stop(process: LeashedProcess, grace: float = 5.0) -> None:
    """Stop a program and all its descendants; kill them after ``grace`` seconds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run() -> int:
    """Run the flow and write its summary to a file."""
    api = os.environ["PREFECT_API_URL"]
    try:
        wait_for(api)
        summary = quickstart()
    except (DvkfError, TimeoutError, subprocess.CalledProcessError) as error:
        print(f"\nERROR: {error}", file=sys.stderr)
        return 1
    summary["prefect_api"] = api
    partial = DEMO / "summary.json.tmp"
    partial.write_text(json.dumps(summary, indent=2) + "\n")
    partial.replace(DEMO / "summary.json")
    print_summary(summary)
    return 0


def wait_for(api: str, timeout: float = 120.0) -> None:
    """Wait until a Prefect server answers.

    Raises:
        TimeoutError: It does not in ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{api}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError(f"no Prefect server answers at {api} ({timeout:.0f} s)")


@flow(name="quickstart")
def quickstart() -> dict[str, Any]:
    """Two versions of the data, two models, a promotion and a rollback."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    report.step("A repository")
    repo = make_repository()
    repository = DvcRepository(path=str(repo.root), label=LABEL)
    pipelines = KubeflowPipelines(backend="kubeflow-local")
    server = ModelServer(state_dir=str(DEMO / "serving"), detached=False)
    registry = ModelRegistry(repo)

    digits = load_digits()
    rows = range(len(digits.target))
    known, held_out = train_test_split(rows, test_size=HELD_OUT, random_state=7, stratify=digits.target)
    classes = [digits.target[row] for row in known]
    first, _ = train_test_split(known, train_size=FIRST, random_state=7, stratify=classes)

    skipped_stages: list[str] = []
    versions: list[ModelVersion] = []
    for number, chosen in enumerate((first, known), start=1):
        report.step(f"Version {number} of the data: {len(chosen)} training images, {HELD_OUT} held out")
        registered = [version for version in reversed(registry.list()) if version.name == MODEL]
        if len(registered) >= number:
            done = registered[number - 1]
            report.skip(
                f"training on version {number}",
                f"{MODEL} {done.version} of commit {done.rev[:7]} is registered",
            )
            versions.append(done)
            if number == 2:
                result = repro_pipeline(repository, pipelines)
                skipped_stages = [*result.skipped, *result.restored]
                for decision in result.decisions:
                    report.say(str(decision))
            continue
        write_images(repo.root / "data/train", digits, chosen)
        write_images(repo.root / "data/holdout", digits, held_out)
        for version in add_data(repository, ["data/train", "data/holdout"]):
            report.say(
                f"{version.path}: {version.nfiles} files, {version.size:,} bytes, {version.digest[:8]}"
            )
        if number > 1:
            change = diff_data(repository, "HEAD")
            files = [e for e in change.added if not e.path.endswith("/")]
            report.say(
                f"against version {number - 1}: {len(files)} files added, {len(change.deleted)} deleted"
            )

        report.step(f"The pipeline on version {number}, by Kubeflow Pipelines' local runner")
        result = repro_pipeline(repository, pipelines)
        for decision in result.decisions:
            report.say(str(decision))
        if number > 1:
            skipped_stages = [*result.skipped, *result.restored]
        for row in compare_metrics(repository):
            before = f" (was {row.old})" if row.old is not None else ""
            report.say(f"{row.name} {row.new}{before}")
        show_plots(repository)

        report.step(f"Version {number} recorded")
        commit = commit_results(repository, f"Train on version {number} of the data")
        report.say(f"commit {commit[:7]}" if commit else "nothing new to commit")
        sent = push_data(repository)
        report.say(f"pushed {sent.files} objects, {sent.size:,} bytes to the remote '{sent.remote}'")
        model = register_model(repository, MODEL, message=f"Trained on {len(chosen)} images")
        report.say(f"registered {MODEL} {model.version}")
        versions.append(model)
        if number == 1:
            report.step(f"Serve {MODEL} {model.version}")
            promote_model(repository, MODEL, model.version, "prod")
            endpoint = deploy_model(repository, server, MODEL, "#prod")
            names = sorted(predictions_at(repo, model))[:: HELD_OUT // 10][:10]
            answers = request_predictions(repository, server, MODEL, [image_of(repo, name) for name in names])
            report.say(f"{endpoint.version} answers at {endpoint.url}")
            report.say(f"10 held-out images: {[int(value) for value in answers]}")

    scores = {f"v{n}": metrics_of(repo, version.rev) for n, version in enumerate(versions, start=1)}
    old, new = versions
    images = example_images(repo, old, new)
    samples = [image_of(repo, name) for name in images]

    report.step(
        f"Promote {MODEL} {new.version}: {scores['v2']['accuracy']} against {scores['v1']['accuracy']}"
    )
    if scores["v2"]["accuracy"] < scores["v1"]["accuracy"]:
        raise DvkfError("the new model scores below the old one. It is not promoted.")
    for candidate in versions:
        promote_model(repository, MODEL, candidate.version, "prod")
    endpoint = deploy_model(repository, server, MODEL, "#prod")
    report.say(f"{endpoint.version} answers at {endpoint.url}")
    by_new = [int(value) for value in request_predictions(repository, server, MODEL, samples)]
    report.say(f"{len(samples)} held-out images: {by_new}")

    report.step("Roll back")
    back = rollback_model(repository, MODEL, "prod")
    endpoint = deploy_model(repository, server, MODEL, "#prod")
    report.say(f"{endpoint.version} answers at {endpoint.url} again")
    by_old = [int(value) for value in request_predictions(repository, server, MODEL, samples)]
    report.say(f"the same images:   {by_old}")
    report.say(f"their labels:      {[int(name.split('/')[0]) for name in images]}")
    show_overview(repository)
    server.serving().stop(MODEL)
    checkout_data(repository)

    return {
        "versions": [version_row(repo, version) for version in versions],
        "metrics": scores,
        "predictions": {"images": images, "v2": by_new, "after_rollback": by_old},
        "model_versions": [version.version for version in versions],
        "in_production": back.version,
        "skipped_on_rerun": skipped_stages,
    }


def make_repository() -> Repo:
    """Create the git and DVC repository with the pipeline's files, or open an existing one."""
    root = DEMO / "repo"
    if (root / ".dvc/config").exists() and git_knows(root, "rev-parse", "--verify", "HEAD"):
        report.skip("creating the repository", f"{root} exists")
        return Repo.open(root)
    # Without a first commit, the repository is the incomplete remainder of a run that was ended.
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    git(root, "init", "--quiet", "--initial-branch", "main")
    if not (git_knows(root, "var", "GIT_COMMITTER_IDENT") and git_knows(root, "config", "user.email")):
        git(root, "config", "user.name", "dvkf demo")
        git(root, "config", "user.email", "demo@localhost")
    repo = Repo.init(root)
    with repo.config.edit() as sections:
        sections["remote"]["store"] = {"url": str(DEMO / "remote")}
        sections["core"]["remote"] = "store"
    project = HERE / "digits"
    for file in sorted(project.iterdir()):
        if file.is_file():
            shutil.copy(file, root)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Begin with the pipeline")
    report.say(f"{root}, with the pipeline of {project}")
    return repo


def git(root: Path, *arguments: str) -> None:
    """Run git in the repository."""
    subprocess.run(["git", "-C", str(root), *arguments], check=True)


def git_knows(root: Path, *arguments: str) -> bool:
    """Return True if a git command succeeds and prints something."""
    return bool(subprocess.run(["git", "-C", str(root), *arguments], capture_output=True).stdout.strip())


def write_images(folder: Path, digits: Any, rows: Sequence[int]) -> None:
    """Write rows of the set as PGM images, one folder per class. Existing files are kept."""
    for row in rows:
        file = folder / str(digits.target[row]) / f"{row:04}.pgm"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            part.write_bytes(HEADER + bytes(int(value) for value in digits.data[row]))
            part.replace(file)
    for stray in folder.glob("*/*.part"):
        stray.unlink()


def metrics_of(repo: Repo, rev: str) -> dict[str, float]:
    """Return the metrics of a commit."""
    return {name: value for values in repo.metrics(rev).values() for name, value in values.items()}


def predictions_at(repo: Repo, version: ModelVersion) -> dict[str, str]:
    """Return the predictions of a version for each held-out image from its evaluation."""
    output = repo.version("predictions.csv", rev=version.rev)
    if not repo.cache.exists(output.digest):
        repo.fetch([output.path], rev=version.rev)
    lines = repo.cache.read_bytes(output.digest).decode().splitlines()[1:]
    return {name: predicted for name, _, predicted in (line.split(",") for line in lines)}


def example_images(repo: Repo, old: ModelVersion, new: ModelVersion, count: int = 10) -> list[str]:
    """Pick held-out images. The versions disagree about half of them."""
    before, after = predictions_at(repo, old), predictions_at(repo, new)
    differ = [name for name in sorted(after) if before[name] != after[name]][: count // 2]
    same = [name for name in sorted(after) if before[name] == after[name]]
    return differ + same[:: len(same) // count][: count - len(differ)]


def image_of(repo: Repo, name: str) -> list[float]:
    """Read a held-out image as an input of the model."""
    pixels = (repo.root / "data/holdout" / name).read_bytes().removeprefix(HEADER)
    return [value / 16 for value in pixels]


def version_row(repo: Repo, model: ModelVersion) -> dict[str, Any]:
    """Describe the training data of a model's commit."""
    data = repo.version("data/train", rev=model.rev)
    return {"rev": model.rev, "digest": data.digest, "files": data.nfiles, "bytes": data.size}


def print_summary(summary: dict[str, Any]) -> None:
    """Print the summary."""
    print("\n" + "-" * 78)
    for number, row in enumerate(summary["versions"], start=1):
        accuracy = summary["metrics"][f"v{number}"]["accuracy"]
        name = summary["model_versions"][number - 1]
        print(
            f"data v{number}: {row['files']:>5} files  {row['digest'][:8]}  ->  {MODEL} {name}  accuracy {accuracy}"
        )
    print(f"in production after the rollback: {MODEL} {summary['in_production']}")
    print(f"skipped in the pipeline's last run: {', '.join(summary['skipped_on_rerun']) or 'nothing'}")
    print(
        f"the repository:                   {os.path.relpath(DEMO / 'repo')} (git, dvc and dvkf all work in it)"
    )
    print("see the runs and the timelines:   make ui, then open http://127.0.0.1:4200")
    key = artifact_key("model", LABEL, MODEL)
    print(f"                                  e.g. http://127.0.0.1:4200/artifacts/key/{key}")
    print(
        f"took {time.monotonic() - report.started:.0f} s; summary as JSON: "
        f"{os.path.relpath(DEMO / 'summary.json')}"
    )


if __name__ == "__main__":
    sys.exit(run() if "--run" in sys.argv else main())
