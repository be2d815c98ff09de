"""`dvkf prefect init` and `check`: the files of a repository's own deployments, and what a server lacks for them."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prefect.events import DeploymentEventTrigger
from repos import make_repo
from ruamel.yaml import YAML
from servers import PrefectServer

from dvkf_prefect import DvcRemote, DvcRepository, cli, data_trigger, flows
from dvkf_prefect.deploy.check import check_deployments
from dvkf_prefect.deploy.project import flow_file
from dvkf_prefect.repo import Repo

from .conftest import git

TREE = Path(__file__).parents[2]
PAGE = TREE / "docs/how-to/deploy.md"
STAGES = "stages:\n  prepare:\n    cmd: echo 1 > out.txt\n    outs: [out.txt]\n"
MODELS = (
    STAGES + "artifacts:\n  signs: {path: out.txt, type: model}\n  rows: {path: out.txt, type: dataset}\n"
)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    repo = make_repo(tmp_path / "My Digits", remote=tmp_path / "store")
    (repo.root / "dvc.yaml").write_text(MODELS)
    git(repo.root, "add", "--all")
    git(repo.root, "commit", "--quiet", "--message", "Version 1")
    monkeypatch.chdir(repo.root)
    return repo


def deployments(root: Path) -> dict[str, Any]:
    document = YAML(typ="safe").load(root / "prefect.yaml")
    return {each["name"]: each for each in document["deployments"]}


def test_the_flows_are_those_of_the_tree() -> None:
    for name in ("ingest", "repro", "train", "serve", "watch"):
        assert flow_file(name) == (TREE / f"flows/{name}.py").read_text()


def test_a_clone_deploys_each_flow() -> None:
    deployed = {each["entrypoint"].rpartition(":")[2] for each in deployments(TREE).values()}
    assert deployed == set(flows.__all__)


def test_files_of_a_process_pool(own: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prefect", "init", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin"]) == 0
    said = capsys.readouterr().out
    assert (
        "blocks.py written\nflows/promote.py written\nflows/repro.py written\nflows/serve.py written\nflows/train.py"
        " written\n" in said
    )
    assert (
        "\tprefect work-pool create my-digits --type process\n\tpython blocks.py\n\tprefect deploy --all\n"
        in said
    )
    found = deployments(own.root)
    assert list(found) == ["repro", "train", "serve", "promote", "rollback"]
    assert found["train"]["schedules"] == [{"cron": "0 3 * * *", "timezone": "Europe/Berlin"}]
    assert "schedules" not in found["repro"]
    assert found["train"]["parameters"] == {
        "repository": "my-digits",
        "pipelines": "my-digits",
        "model": "signs",
    }
    assert found["serve"]["parameters"] == {
        "repository": "my-digits",
        "server": "my-digits",
        "model": "signs",
    }
    assert found["repro"]["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    # Again: nothing to write. With a change: all stay, and each is named.
    assert cli.main(["prefect", "init", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin"]) == 0
    assert "All files are up to date." in capsys.readouterr().out
    (own.root / "blocks.py").write_text("mine\n")
    (own.root / "flows/repro.py").unlink()
    assert cli.main(["prefect", "init", "--name", "other"]) == 251
    assert "blocks.py, prefect.yaml: in " in capsys.readouterr().err
    assert (own.root / "blocks.py").read_text() == "mine\n" and not (own.root / "flows/repro.py").exists()
    assert cli.main(["prefect", "init", "-q", "--name", "other", "--force"]) == 0
    assert deployments(own.root)["repro"]["work_pool"] == {"name": "other"}


def test_pushed_data_starts_the_deployment_by_choice(own: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prefect", "init", "-q", "--on-push"]) != 0
    assert "reads tracked data. Track it with `dvkf add`, or omit --on-push." in capsys.readouterr().err
    (own.root / "rows.csv").write_text("1\n")
    own.add(["rows.csv"])
    (own.root / "dvc.yaml").write_text(MODELS.replace("    outs:", "    deps: [rows.csv]\n    outs:"))
    assert cli.main(["prefect", "init", "-q", "--on-push"]) == 0
    found = deployments(own.root)
    assert [name for name, each in found.items() if "triggers" in each] == ["train"]
    (written,) = found["train"]["triggers"]
    trigger = data_trigger(DvcRepository(path=str(own.root)))
    assert DeploymentEventTrigger.model_validate(written) == trigger
    assert found["watch"]["schedules"] == [{"interval": 300}]
    assert (own.root / "flows/watch.py").read_text() == (TREE / "flows/watch.py").read_text()


def test_an_inbox_has_its_deployment(own: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prefect", "init", "-q", "--inbox", "/in"]) == 251
    assert "Give --inbox, --dataset and --schema." in capsys.readouterr().err
    options = ["--inbox", "/in", "--dataset", "data/users", "--schema", "users.yaml"]
    assert cli.main(["prefect", "init", "-q", *options]) == 0
    found = deployments(own.root)["ingest"]
    assert found["schedules"] == [{"interval": 300}] and found["concurrency_limit"]["limit"] == 1
    assert found["parameters"] == {
        "repository": "my-digits",
        "inbox": "/in",
        "dataset": "data/users",
        "table_schema": "users.yaml",
    }
    assert (own.root / "flows/ingest.py").read_text() == (TREE / "flows/ingest.py").read_text()


def test_each_model_has_its_deployments(own: Repo) -> None:
    (own.root / "dvc.yaml").write_text(MODELS + "  Next_One: {path: out.txt, type: model}\n")
    assert cli.main(["prefect", "init", "-q", "--cron", "@daily"]) == 0
    found = deployments(own.root)
    kinds = ("train", "serve", "promote", "rollback")
    assert list(found) == ["repro", *(f"{kind}-{model}" for model in ("next-one", "signs") for kind in kinds)]
    assert [name for name, each in found.items() if "schedules" in each] == ["train-next-one"]
    assert found["rollback-next-one"]["parameters"]["model"] == "Next_One"


def test_models_whose_names_differ_in_punctuation_have_deployments_of_their_own(own: Repo) -> None:
    """Both had one name, so that Prefect kept the last of them alone."""
    names = ["a-b", "a.b", "a_b", "...", "größe", "other"]
    models = "".join(f"  '{name}': {{path: out.txt, type: model}}\n" for name in names)
    (own.root / "dvc.yaml").write_text(STAGES + "artifacts:\n" + models)
    assert cli.main(["prefect", "init", "-q"]) == 0
    document = YAML(typ="safe").load(own.root / "prefect.yaml")
    trained = [each for each in document["deployments"] if each["name"].startswith("train")]
    of_model = {each["parameters"]["model"]: each["name"] for each in trained}
    assert set(of_model) == set(names) and len(set(of_model.values())) == len(names)
    assert (of_model["a-b"], of_model["other"]) == ("train-a-b", "train-other")
    assert all(re.fullmatch("train(-[a-z0-9]+)+", name) for name in of_model.values())


def test_files_without_models(own: Repo) -> None:
    (own.root / "dvc.yaml").write_text(STAGES)
    assert cli.main(["prefect", "init", "-q", "--cron", "@daily"]) == 0
    assert list(deployments(own.root)) == ["repro"]
    assert "schedules" in deployments(own.root)["repro"]
    assert sorted(path.name for path in (own.root / "flows").iterdir()) == ["repro.py"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--type", "docker"], "image: a docker work pool needs one. Give its name with --image."),
        (["--image", "flows:1"], "image: a process work pool has no image. Remove --image."),
        (["--type", "docker", "--image", "flows:1"], "has none, which no container reaches. Add one with"),
        (["--name", "My Name"], "name: 'My Name' is not a name of a block."),
        (["--cron", "61 * * * *"], "schedule: '61 * * * *' in 'UTC': Invalid cron string"),
        (
            ["--cron", "@daily", "--timezone", "Moon/Sea"],
            "schedule: '@daily' in 'Moon/Sea': Invalid timezone",
        ),
    ],
)
def test_what_init_refuses(
    own: Repo, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prefect", "init", *options]) in (251, 255)
    assert said in capsys.readouterr().err
    assert not (own.root / "prefect.yaml").exists() and not (own.root / "flows").exists()


def test_files_of_containers(own: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prefect", "init", "--type", "kubernetes", "--image", "registry.example.org/flows:1"]
    git(own.root, "remote", "add", "origin", "https://me:secret@git.example.org/team/digits.git")
    assert cli.main(command) != 0
    assert "origin: its URL holds a password." in capsys.readouterr().err
    git(own.root, "remote", "set-url", "origin", "git@git.example.org:team/digits.git")
    assert cli.main(command) != 0
    assert (
        "which no container reaches. Set one with `dvkf remote add -d NAME URL`." in capsys.readouterr().err
    )
    assert cli.main(["remote", "add", "-q", "-d", "lake", "s3://lake/digits"]) == 0
    (own.root / "requirements.txt").write_text("scikit-learn\n")
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert (
        "docker push registry.example.org/flows:1\n\tprefect work-pool create my-digits --type kubernetes"
        in said
    )
    assert (
        'DvcRepository(path="git@git.example.org:team/digits.git").save("my-digits"'
        in (own.root / "blocks.py").read_text()
    )
    recipe = (own.root / "Dockerfile.prefect").read_text()
    assert "COPY Dockerfile.prefect requirements.tx[t] wheel[s] /tmp/install/" in recipe
    assert "--find-links /tmp/install dvkf-prefect==" in recipe
    assert " -r /tmp/install/requirements.txt\n" in recipe
    # A server of models would end with its container.
    assert list(deployments(own.root)) == ["repro", "train"]
    pool = deployments(own.root)["train"]["work_pool"]
    assert pool == {"name": "my-digits", "job_variables": {"image": "registry.example.org/flows:1"}}


def test_check_names_what_is_missing(own: Repo, prefect_server: None) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    def failed() -> dict[str, str]:
        return {c.name: f"{c.found}; {c.next_step}" for c in check_deployments(own.root) if c.state != "ok"}

    (own.root.parent / "store").mkdir(exist_ok=True)
    assert failed() == {"prefect.yaml": f"not in {own.root}; `dvkf prefect init` writes it"}
    (own.root / "dvc.yaml").write_text(STAGES)
    assert cli.main(["prefect", "init", "-q", "--name", "own", "--cron", "0 3 * * *"]) == 0
    pool = {"work pool own": "not on the server; `prefect work-pool create own --type process`"}
    saved = "not saved on the server; `python blocks.py`"
    blocks = {"block dvc-repository/own": saved, "block kubeflow-pipelines/own": saved}
    absent = {"deployment repro/repro": "not deployed; `prefect deploy --name repro`"}
    assert failed() == {**blocks, **pool, **absent}
    runpy.run_path(str(own.root / "blocks.py"))
    assert failed() == {**pool, **absent}
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="own", type="process"))
        nobody = {"workers of own": "none is online, so runs wait; `prefect worker start --pool own`"}
        assert failed() == {**nobody, **absent}
        client.send_worker_heartbeat("own", "worker 1", 30)
        assert failed() == absent

        flow_id = client.request("POST", "/flows/", json={"name": "repro"}).json()["id"]
        parameters: dict[str, object] = {"repository": "own", "pipelines": "own"}
        made = {
            "name": "repro",
            "flow_id": flow_id,
            "entrypoint": "flows/repro.py:repro",
            "work_pool_name": "own",
            "parameters": parameters,
            "schedules": [{"schedule": {"cron": "0 3 * * *", "timezone": "UTC"}, "active": False}],
        }

        def deploy(**changed: object) -> None:
            client.request("POST", "/deployments/", json={**made, **changed})

        deploy(parameters={**parameters, "force": True})
        step = "`prefect deploy --name repro`"
        assert failed() == {"deployment repro/repro": f"differs from prefect.yaml in parameters; {step}"}
        deploy()
        assert failed() == {"deployment repro/repro": f"its schedules of prefect.yaml are not active; {step}"}
        deploy(schedules=[{**made["schedules"][0], "active": True}])  # type: ignore[index]
        assert failed() == {}
        checks = {check.name: check.found for check in check_deployments(own.root)}
        assert checks["deployment repro/repro"] == "cron 0 3 * * * UTC"
        assert checks["block dvc-repository/own"] == str(own.root)
        assert checks["remote of block dvc-repository/own"].startswith("'store' (")
        assert checks["workers of own"] == "worker 1"

    # The remote of the block, with its credentials; containers; values that are no names.
    remote = "remote of block dvc-repository/own"
    nowhere = DvcRemote(url="http://127.0.0.1:1/lake")
    DvcRepository(path=str(own.root), remote=nowhere).save("own", overwrite=True)
    assert "127.0.0.1:1/lake" in failed()[remote]
    DvcRepository(path=str(own.root)).save("own", overwrite=True)
    described = (own.root / "prefect.yaml").read_text()
    in_image = described.replace(
        "      name: own\n", "      name: own\n      job_variables: {image: 'flows:1'}\n"
    )
    (own.root / "prefect.yaml").write_text(in_image)
    assert "is a folder, which containers do not have" in failed()["block dvc-repository/own"]
    by_fields = described.replace("repository: own", "repository: {path: .}")
    (own.root / "prefect.yaml").write_text(by_fields)
    assert set(failed()) == {"deployment repro/repro"}
    (own.root / "prefect.yaml").write_text("name: own\nbuild: {here: a: b}\n")
    assert failed()["prefect.yaml"].endswith(", line 2; correct the file")
    (own.root / "prefect.yaml").write_text(described)

    # Files that are wrong, and a folder that is gone.
    (own.root / "flows/repro.py").write_text("import not_there_at_all\n")
    assert "not_there_at_all" in failed()["flow flows/repro.py:repro"]
    text = (own.root / "prefect.yaml").read_text()
    (own.root / "prefect.yaml").write_text(text.replace("    entrypoint: flows/repro.py:repro\n", ""))
    assert failed() == {"prefect.yaml": "deployment repro lacks entrypoint; correct the file"}
    (own.root / "prefect.yaml").write_text(text)
    own.root.rename(own.root.with_name("moved"))
    lost = {c.name: c.found for c in check_deployments(own.root.with_name("moved")) if c.state == "fail"}
    assert str(own.root) in lost["block dvc-repository/own"]


def test_check_without_a_server(
    own: Repo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    assert cli.main(["prefect", "init", "-q"]) == 0
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert cli.main(["prefect", "check", "--json"]) == 1
    *_, last = json.loads(capsys.readouterr().out)
    assert (last["name"], last["state"]) == ("server", "fail")
    assert last["found"] == "no address is set, so workers refuse to run"
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert cli.main(["prefect", "check"]) == 1
    assert "fail server: http://127.0.0.1:1/api: " in capsys.readouterr().out


def test_check_of_a_server_that_refuses_the_key(own: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    """Prefect's health check needs no key, so the first question after it was a traceback."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith("/health") else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    assert cli.main(["prefect", "init", "-q"]) == 0
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            assert cli.main(["prefect", "check"]) == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "401 Unauthorized; correct PREFECT_API_KEY or PREFECT_API_AUTH_STRING" in capsys.readouterr().out


def test_the_printed_commands_name_a_server_if_none_is_set(
    own: Repo, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an address the worker refuses to run."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    export = "\texport PREFECT_API_URL=http://127.0.0.1:4200/api\n"
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert cli.main(["prefect", "init"]) == 0
    assert f"{export}\tprefect work-pool create" in capsys.readouterr().out
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert cli.main(["prefect", "init"]) == 0
    assert export not in capsys.readouterr().out


@pytest.fixture
def pasted(own: Repo, tmp_path: Path) -> Iterator[tuple[PrefectServer, str]]:
    """The server and the worker that the page's commands make in a repository, on another port."""
    server = PrefectServer(tmp_path)
    del server.environment["PREFECT_API_URL"], server.environment["PREFECT_SERVER_UI_API_URL"]
    server.environment["PREFECT_SERVER_API_PORT"] = str(server.port)
    (tmp_path / "tree").symlink_to(own.root)
    text = PAGE.read_text().replace("4200", str(server.port))
    (init,), (start,), (export, *prepare, work), (_, *look) = (
        each.splitlines() for each in re.findall(r"```sh\n(.*?)```", text, re.S)
    )
    with ExitStack() as started:
        server.run("bash", "-ec", init)
        git(own.root, "add", "--all")
        git(own.root, "commit", "--quiet", "--message", "Deploy")
        started.enter_context(server.serving(*start.split()))
        server.run("bash", "-ec", "\n".join((export, *prepare)))
        server.environment["PREFECT_API_URL"] = server.api
        started.enter_context(server.running(*work.split()))
        yield server, "\n".join(look)


# Starts a server and a worker; what it proves of the deployments' runs, test_deployments proves in `make test`.
@pytest.mark.long
def test_the_page_can_be_pasted(own: Repo, pasted: tuple[PrefectServer, str]) -> None:
    from processes import wait_until

    server, look = pasted
    wait_until(lambda: server.post("/work_pools/digits/workers/filter", {}), 120)
    said = server.run("bash", "-ec", look)
    assert "fail" not in said
    assert "ok   workers of digits: " in said and "ok   deployment train/train: cron 0 3 * * * UTC" in said
    assert git(own.root, "log", "-1", "--format=%s") == "Repro: prepare"
