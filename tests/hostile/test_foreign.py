"""Configurations of others run no command and read no file of credentials."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from repos import make_repo

from dvkf_prefect.cli import main
from dvkf_prefect.data.imports.external import open_external
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.errors import Place
from dvkf_prefect.data.remotes.protocols import protocol_of
from dvkf_prefect.data.repository.config import Config
from dvkf_prefect.data.repository.trust import is_trusted
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.repo import Repo

WEBDAV = "[core]\n    remote = w\n['remote \"w\"']\n    url = webdavs://127.0.0.1:9/x\n"
S3 = (
    "[core]\n    remote = w\n['remote \"w\"']\n    url = s3://b/x\n    endpointurl = http://127.0.0.1:9\n"
    "    region = us-east-1\n    profile = p\n"
)
OUTS = "outs:\n- md5: a0000000000000000000000000000000\n  size: 5\n  hash: md5\n  path: {}\n"


def git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def settings(mark: Path) -> dict[str, str]:
    """Configurations that run a command, by the option that does."""
    return {
        "bearer_token_command": f"{WEBDAV}    bearer_token_command = touch {mark}\n",
        "configpath": f"{S3}    configpath = ../aws.ini\n",
        "credentialpath": f"{S3}    credentialpath = ../aws-keys.ini\n",
    }


def write(root: Path, text: str, mark: Path, *, file: str = "config") -> None:
    (root / ".dvc" / file).write_text(text)
    (root / "aws.ini").write_text(f"[profile p]\ncredential_process = touch {mark}\n")
    (root / "aws-keys.ini").write_text(f"[p]\ncredential_process = touch {mark}\n")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "PWNED"


@pytest.fixture
def source(tmp_path: Path) -> Repo:
    root = tmp_path / "source"
    made = make_repo(root)
    (root / "d.dvc").write_text(OUTS.format("d"))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    return made


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    root = tmp_path / "here"
    made = make_repo(root)
    monkeypatch.chdir(root)
    return made


@pytest.mark.parametrize("option", ["bearer_token_command", "configpath", "credentialpath"])
@pytest.mark.parametrize("place", ["bare", "folder", "revision", "file"])
def test_no_command_of_a_source_runs(
    source: Repo,
    here: Repo,
    tmp_path: Path,
    mark: Path,
    option: str,
    place: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`get`, `list`, `import` and `update` ran the commands in the configuration of what they read from."""
    write(source.root, settings(mark)[option], mark)
    git(source.root, "add", "-A")
    git(source.root, "commit", "-q", "-m", "second")
    git(tmp_path, "clone", "-q", "--bare", str(source.root), "bare.git")
    url = str(source.root) if place in ("folder", "revision") else str(tmp_path / "bare.git")
    url = f"file://{url}" if place == "file" else url
    rev = ["--rev", "main"] if place == "revision" else []
    for verb in (["get", url, "d"], ["import", url, "d"]):
        assert main([*verb, *rev]) != 0
        assert option in capfd.readouterr().err
    main(["list", url, "d", *rev])
    main(["du", url, *rev])
    assert not mark.exists()


@pytest.mark.parametrize("option", ["bearer_token_command", "configpath", "credentialpath"])
@pytest.mark.parametrize(
    "verb",
    [["pull"], ["fetch"], ["push"], ["status", "-c"], ["gc", "-cw", "-f"], ["verify", "-c"]],
)
def test_a_committed_configuration_needs_the_users_word(
    source: Repo, mark: Path, monkeypatch: pytest.MonkeyPatch, option: str, verb: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The clone of somebody's repository ran the commands in its committed configuration."""
    write(source.root, settings(mark)[option], mark)
    monkeypatch.chdir(source.root)
    assert main(verb) != 0
    told = capfd.readouterr().err
    assert f"dvkf remote modify --local w {option}" in told
    assert not mark.exists()


def test_the_users_word_is_taken(source: Repo, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(source.root, settings(mark)["bearer_token_command"], mark)
    monkeypatch.chdir(source.root)
    assert main(["remote", "modify", "--local", "w", "bearer_token_command", f"touch {mark}"]) == 0
    main(["pull"])
    assert mark.exists()


@pytest.mark.parametrize("where", ["same", "above", "variable"])
def test_a_source_may_be_trusted(
    source: Repo, here: Repo, mark: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source.root, settings(mark)["bearer_token_command"], mark)
    git(source.root, "add", "-A")
    git(source.root, "commit", "-q", "-m", "second")
    git(tmp_path, "clone", "-q", "--bare", str(source.root), "bare.git")
    trusted = str(tmp_path) if where == "above" else str(tmp_path / "bare.git")
    if where == "variable":
        monkeypatch.setenv("DVKF_TRUSTED_SOURCES", f"/elsewhere {trusted}")
    else:
        assert main(["config", "--global", "feature.trusted_sources", trusted]) == 0
    main(["get", str(tmp_path / "bare.git"), "d"])
    assert mark.exists()


def test_the_repository_itself_cannot_say_that_it_is_trusted(
    source: Repo, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"[feature]\n    trusted_sources = {source.root} / . *\n"
    write(source.root, settings(mark)["bearer_token_command"] + said, mark)
    monkeypatch.chdir(source.root)
    assert main(["pull"]) == 251
    assert not mark.exists()


@pytest.mark.parametrize("how", ["tracked", "link", "folder"])
def test_a_local_configuration_that_git_tracks_is_not_the_users(
    source: Repo, mark: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config.local` may be committed too, or be a link to a committed file."""
    dvc_dir = source.root / ".dvc"
    text = settings(mark)["bearer_token_command"]
    if how == "link":
        (source.root / "plain").write_text(text)
        (dvc_dir / "config.local").symlink_to("../plain")
    else:
        (dvc_dir / "config.local").write_text(text)
    if how == "folder":
        dvc_dir.rename(source.root / "meta")
        dvc_dir.symlink_to("meta")
    git(source.root, "add", "-A", "-f")
    git(source.root, "commit", "-q", "-m", "second")
    monkeypatch.chdir(source.root)
    assert main(["pull"]) != 0
    assert not mark.exists()


@pytest.mark.parametrize("key", ["config", "remote"])
def test_a_dvc_file_cannot_bring_settings_that_run_commands(
    source: Repo, here: Repo, tmp_path: Path, mark: Path, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(source.root), "bare.git")
    remote = f'{{url: "webdavs://127.0.0.1:9/x", bearer_token_command: "touch {mark}"}}'
    named = f"{{core: {{remote: q}}, remote: {{q: {remote}}}}}" if key == "config" else remote
    (source.root / ".dvc/config").write_text(WEBDAV)
    git(source.root, "commit", "-q", "-a", "-m", "second")
    git(tmp_path / "bare.git", "fetch", "-q", str(source.root), "+main:main")
    url = tmp_path / "bare.git"
    (here.root / "i.dvc").write_text(
        f"frozen: true\ndeps:\n- path: d\n  repo:\n    url: {url}\n    rev_lock: main\n    {key}: {named}\n"
        + OUTS.format("i")
    )
    assert main(["pull"]) == 1
    assert "bearer_token_command" in capfd.readouterr().err
    main(["update", "i.dvc"])
    assert not mark.exists()


def test_options_of_a_url_in_a_dvc_file_run_nothing(
    here: Repo, mark: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here.root / "i.dvc").write_text(
        "deps:\n- path: webdavs://127.0.0.1:9/x\n  md5: a0000000000000000000000000000000\n  size: 5\n  hash: md5\n"
        f"  fs_config:\n    bearer_token_command: touch {mark}\nouts:\n- path: i\n"
    )
    for verb in (["update", "i.dvc"], ["pull"], ["fetch"], ["status"]):
        main(verb)
    assert "bearer_token_command" in capfd.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize(
    "option", ["keyfile = ~/.ssh/id_rsa", "ask_password = true", "ask_passphrase = true"]
)
def test_a_source_uses_no_key_of_the_reader(source: Repo, tmp_path: Path, option: str) -> None:
    text = f"[core]\n    remote = w\n['remote \"w\"']\n    url = ssh://127.0.0.1:9/x\n    {option}\n"
    (source.root / ".dvc/config").write_text(text)
    git(source.root, "commit", "-q", "-a", "-m", "second")
    git(tmp_path, "clone", "-q", "--bare", str(source.root), "bare.git")
    name = option.split()[0]
    with open_external(str(tmp_path / "bare.git")) as opened, pytest.raises(ConfigError, match=name):
        opened.remote()
    # In one's own clone it is what people have.
    assert Config(source.root / ".dvc").remote(None)[1][name]


def test_a_secret_for_a_remote_of_that_name_is_not_sent_elsewhere(
    source: Repo, tmp_path: Path, here: Repo
) -> None:
    (source.root / ".dvc/config").write_text(WEBDAV)
    git(source.root, "commit", "-q", "-a", "-m", "second")
    git(tmp_path, "clone", "-q", "--bare", str(source.root), "bare.git")
    glob = Config(None).files["global"]
    glob.parent.mkdir(parents=True, exist_ok=True)
    glob.write_text("['remote \"w\"']\n    url = webdavs://own.example/x\n    password = hunter22\n")
    with open_external(str(tmp_path / "bare.git")) as opened, pytest.raises(ConfigError, match="not sent"):
        opened.remote()


def test_trust_is_by_whole_parts_of_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVKF_TRUSTED_SOURCES", "https://host/team git@host:team/ /srv/mine")
    for source in (
        "https://host/team",
        "https://host/team/r.git",
        "git@host:team/r",
        "/srv/mine/r",
        "file:///srv/mine",
    ):
        assert is_trusted(source), source
    for source in (
        "https://host/teamevil/r.git",
        "https://host/team/../evil/r.git",
        "https://host/team/%2e%2e/evil",
        "https://host",
        "http://host/team/r",
        "git@host:teamevil",
        "/srv/mine/../other",
        "/srv/minevil",
    ):
        assert not is_trusted(source), source


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=x/d",
        "ssh://host;touch x/d",
        "ssh://host`touch x`/d",
        "ssh://$(touch x)@host/d",
        "ssh://-x@host/d",
        "ssh://a b@host/d",
    ],
)
def test_the_host_of_an_ssh_remote_is_a_plain_name(url: str) -> None:
    """The user's own ssh configuration may run a command with the host's name in it."""
    with pytest.raises(ConfigError, match="not a plain name"):
        open_storage(url, name="store")


def test_the_user_of_an_ssh_remote_is_a_plain_name() -> None:
    with pytest.raises(ConfigError, match="the user"):
        open_storage("ssh://host/d", {"user": "a;b"}, name="store")
    for url in (
        "ssh://me@host.example:22/d",
        "ssh://10.0.0.1/d",
        "ssh://[::1]/d",
        "ssh://first.last@my_host/d",
    ):
        assert protocol_of(url, {}, Place("store", url)).arguments["host"]
