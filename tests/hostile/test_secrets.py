"""No verb shows what gives access by a url, whatever goes wrong."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError
from repos import make_repo
from servers import serving

from dvkf_prefect.blocks.remotes import DvcRemote
from dvkf_prefect.blocks.repositories import DvcRepository
from dvkf_prefect.cli import main
from dvkf_prefect.data.imports.external import open_external
from dvkf_prefect.errors import DvkfError, GitError, RemoteError
from dvkf_prefect.formats.outputs import Origin
from dvkf_prefect.repo import Repo
from dvkf_prefect.urls import holds_secret, public_url, without_secrets

SECRET = "ghp_0123456789abcdefSECRET"


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repo:
    root = tmp_path / "repo"
    made = make_repo(root, remote=tmp_path / "store")
    monkeypatch.chdir(root)
    return made


class Refusing(BaseHTTPRequestHandler):
    """Answers nothing but failures, and repeats the request in them."""

    status = 403

    def _refuse(self) -> None:
        body = f"no: {self.path}".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_PROPFIND = do_MKCOL = _refuse

    def log_message(self, *_: object) -> None:
        pass


_PORTS = ["closed", "403", "500"]


@pytest.fixture(params=_PORTS)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a service that fails."""
    handler = type("Handler", (Refusing,), {"status": 500 if request.param == "500" else 403})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port = server.server_address[1]
    if request.param == "closed":
        server.server_close()
        yield port
        return
    with serving(server):
        yield port


_FORMS = [
    "http://me:{s}@{h}/x",
    "http://{s}@{h}/x",
    "http://{h}/x?X-Amz-Signature={s}",
    "http://me:p/{s}@{h}/x",
]


@pytest.mark.parametrize(
    ("form", "port", "verbose"),
    [
        # Each pair of two of these in `make test`, all combinations in `make test-all`.
        pytest.param(form, port, verbose, marks=[] if (f + p + v) % 2 == 0 else pytest.mark.long)
        for f, form in enumerate(_FORMS)
        for p, port in enumerate(_PORTS)
        for v, verbose in enumerate([[], ["-v"]])
    ],
    indirect=["port"],
)
def test_no_verb_shows_the_secret_of_a_url(
    repo: Repo, port: int, form: str, verbose: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """import, get, list, get-url, import-url and list-url printed whole urls; a token as user was printed by all."""
    url = form.format(s=SECRET, h=f"127.0.0.1:{port}")
    verbs = [
        ["import", url, "d"],
        ["get", url, "d"],
        ["get", url, "d", "--rev", "main"],
        ["list", url],
        ["du", url],
        ["get-url", url],
        ["import-url", url, "f"],
        ["list-url", url],
        ["get", url, "d", "--show-url"],
        ["import-url", url],
        ["get", url],
    ]
    Path("f.dvc").unlink(missing_ok=True)
    for arguments in verbs:
        try:
            main([*arguments, *verbose])
        except SystemExit as ended:
            assert ended.code == 254
        told = "".join(capfd.readouterr())
        assert SECRET not in told, arguments


@pytest.mark.parametrize("form", ["http://me:{s}@{h}/x", "http://{s}@{h}/x", "webdav://{s}@{h}/x"])
def test_no_verb_shows_the_secret_of_a_remotes_url(
    repo: Repo, port: int, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    url = form.format(s=SECRET, h=f"127.0.0.1:{port}")
    Path("f").write_text("1")
    assert main(["add", "-q", "f"]) == 0
    assert main(["remote", "modify", "--local", "store", "url", url]) == 0
    for arguments in (
        ["push"], ["status", "-c"], ["doctor"], ["version"], ["fetch"], ["pull"], ["gc", "-cwf"], ["verify", "-c"],
        ["remote", "list"], ["push", "-v"], ["remote", "add", "other", url], ["remote", "modify", "other", "type", "x"],
    ):  # fmt: skip
        main(arguments)
        told = "".join(capfd.readouterr())
        assert SECRET not in told, arguments


def test_imports_are_shown_without_secrets(repo: Repo, port: int, capfd: pytest.CaptureFixture[str]) -> None:
    outs = "outs:\n- md5: a0000000000000000000000000000000\n  size: 5\n  hash: md5\n  path: {}\n"
    url = f"http://{SECRET}@127.0.0.1:{port}/r.git"
    Path("i.dvc").write_text(
        f"frozen: true\ndeps:\n- path: d\n  repo:\n    url: {url}\n    rev_lock: main\n" + outs.format("i")
    )
    Path("u.dvc").write_text(
        f"deps:\n- path: http://127.0.0.1:{port}/f?sig={SECRET}\n  checksum: x\n" + outs.format("u")
    )
    for arguments in (
        ["pull"],
        ["fetch"],
        ["status"],
        ["update", "i.dvc", "u.dvc"],
        ["status", "-c"],
        ["import", url],
    ):
        try:
            main(arguments)
        except SystemExit as ended:
            assert ended.code == 254
        assert SECRET not in "".join(capfd.readouterr()), arguments


def test_errors_and_names_hold_no_secret(tmp_path: Path) -> None:
    url = f"https://{SECRET}@127.0.0.1:9/r.git"
    with pytest.raises(GitError) as caught, open_external(url):
        pass
    told = [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
    told += [str(Origin("d", repo={"url": url})), str(Origin(f"http://h/f?sig={SECRET}"))]
    told += [str(RemoteError(f"no {url}")), repr(DvkfError(f"no {url}"))]
    assert SECRET not in "".join(told)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ssh://me:pass@host:22/d", "ssh://me@host:22/d"),
        ("https://TOKEN@github.com/o/r.git", "https://github.com/o/r.git"),
        ("https://me:p@ss@host/x", "https://host/x"),
        ("https://me:p/ss@host/x", "https://host/x"),
        ("https://me:p?ss@host/x", "https://host/x"),
        ("https://me:p#ss@host/x?y=1", "https://host/x"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("s3://bucket/key@x", "s3://bucket/key@x"),
        ("hdfs://me@host/d", "hdfs://me@host/d"),
        (
            "abfs://container@account.dfs.core.windows.net/x",
            "abfs://container@account.dfs.core.windows.net/x",
        ),
        ("git@host:o/r.git", "git@host:o/r.git"),
        ("me:pass@host:o/r.git", "me@host:o/r.git"),
        ("file:///a@b/c", "file:///a@b/c"),
        ("https://host/x?sv=1&sig=abc#frag", "https://host/x"),
    ],
)
def test_public_url(url: str, shown: str) -> None:
    assert public_url(url) == shown
    assert public_url(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        f"fatal: unable to access 'https://me:{SECRET}@host/r.git/': Could not resolve",
        f"403, message='no', url=URL('https://host/f?X-Amz-Signature={SECRET}&x=1')",
        f"HEAD https://{SECRET}@host/r.git.",
        f"Authorization: Bearer {SECRET}",
        f"{{'Authorization': 'token {SECRET}'}}",
        f"private-token: {SECRET}",
        f"GET /b/k?sv=1&sig={SECRET} HTTP/1.1",
        f"<StringToSign>AWS4\n{SECRET}</StringToSign>",
        f"access_token={SECRET}",
    ],
)
def test_a_librarys_message_is_cleaned(text: str) -> None:
    assert SECRET not in without_secrets(text)


def test_ordinary_messages_stay() -> None:
    for text in (
        "remote 'store' (s3://bucket/data) has no 'files/md5/ab/cd'",
        "basic needs 'user' and 'password'",
        "model 'vision:net@v1.0.0': it exists",
        "see https://dvc.org/doc.",
        "Basic authentication",
        "a.dvc, line 3: expected a mapping",
        "user@host:/srv/data is not there",
    ):
        assert without_secrets(text) == text


def test_blocks_take_no_url_with_a_secret() -> None:
    for url in (f"https://{SECRET}@host/d", f"https://me:{SECRET}@host/d", f"https://host/d?sig={SECRET}"):
        assert holds_secret(url)
        for make in (lambda url=url: DvcRepository(path=url), lambda url=url: DvcRemote(url=url)):
            with pytest.raises(ValidationError) as caught:
                make()
            assert SECRET not in str(caught.value)
    assert DvcRepository(path="ssh://git@host/r.git").path
    assert DvcRepository(path="git@host:o/r.git").path
    assert DvcRemote(url="ssh://me@host/d").url


def test_the_local_configuration_is_for_its_user_only(repo: Repo) -> None:
    path = repo.dvc_dir / "config.local"
    before = os.umask(0)
    try:
        assert main(["remote", "modify", "--local", "store", "jobs", "1"]) == 0
        assert path.stat().st_mode & 0o777 == 0o600
        path.chmod(0o644)
        assert main(["remote", "modify", "--local", "store", "jobs", "2"]) == 0
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
