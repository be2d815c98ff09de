"""The real `dvc` and ours as two functions of a folder and a command line, quick enough to call thousands of times.

`dvc` takes 0.4 s to start, most of it to import. Here one process imports it and forks itself for each command, so that
every command still has a process of its own: nothing that one has in memory is there for the next.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What `dvc` imports only when a command asks for it.
_LATE = [
    "dvc.api", "dvc.build", "dvc.cachemgr", "dvc.cli.completion", "dvc.commands.add", "dvc.commands.checkout",
    "dvc.commands.commit", "dvc.commands.data", "dvc.commands.data_sync", "dvc.commands.diff", "dvc.commands.gc",
    "dvc.commands.repro", "dvc.commands.status", "dvc.data_cloud", "dvc.repo", "dvc.repo.add", "dvc.repo.checkout",
    "dvc.repo.commit", "dvc.repo.data", "dvc.repo.diff", "dvc.repo.fetch", "dvc.repo.gc", "dvc.repo.index",
    "dvc.repo.open_repo", "dvc.repo.pull", "dvc.repo.push", "dvc.repo.reproduce", "dvc.repo.status",
    "dvc.repo.brancher", "dvc.repo.graph", "dvc.repo.worktree", "dvc.rwlock", "dvc.lock", "dvc.stage.cache",
    "dvc.stage.run", "dvc.ui", "dvc.utils.strictyaml", "dvc.fs.dvc", "dvc.fs.data", "dvc.output",
    "dvc.dependency.param", "dvc_data.hashfile.checkout", "dvc_data.hashfile.gc", "dvc_data.hashfile.status",
    "dvc_data.hashfile.transfer", "dvc_data.index.checkout", "dvc_data.index.build", "dvc_data.index.diff",
    "dvc_data.index.fetch", "dvc_data.index.push", "dvc_data.index.save", "dvc_objects.fs.generic",
    "dvc_objects.fs.local", "scmrepo.git", "scmrepo.git.backend.dulwich", "scmrepo.git.backend.gitpython",
    "scmrepo.git.backend.pygit2", "diskcache", "sqltrie", "rich.table", "tabulate", "voluptuous", "networkx",
    "configobj", "ruamel.yaml",
]  # fmt: skip

Tool = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    """How one command ended."""

    command: str
    code: int
    out: str
    err: str

    def ok(self, code: int = 0) -> Done:
        """Return it when it ended with ``code``."""
        assert self.code == code, f"{self.command}: {self.code}, expected {code}\n{self.out}\n{self.err}"
        return self

    def json(self) -> Any:
        """Return what it printed."""
        return json.loads(self.ok().out)


class Dvc:
    """The real `dvc`; ``dvc(folder, "status", "-q")`` runs one command."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder: Path, *arguments: str) -> Done:
        request = {"arguments": arguments, "folder": str(folder), "environment": dict(os.environ)}
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the process that runs dvc is gone"
        return Done(f"dvc {arguments} in {folder}", **json.loads(answer))

    def close(self) -> None:
        """End its process."""
        assert self._server.stdin and self._server.stdout
        self._server.stdin.close()
        self._server.wait(30)
        self._server.stdout.close()


def dvkf(folder: Path, *arguments: str) -> Done:
    """Run one of our commands, in this process."""
    from dvkf_prefect.cli import main

    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except SystemExit as stopped:
                code = int(stopped.code or 0)
    finally:
        os.chdir(before)
    return Done(f"dvkf {arguments} in {folder}", code, out.getvalue(), err.getvalue())


def git(folder: Path, *arguments: str) -> str:
    """Run git and return what it printed."""
    done = subprocess.run(
        ["git", "-c", "core.quotepath=off", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def _serve() -> None:
    import gc
    import importlib

    from dvc.cli.parser import get_main_parser

    get_main_parser()
    for name in _LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                _run(request, out.fileno(), err.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer: dict[str, Any] = {"code": code}
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                answer[name] = file.read().decode(errors="replace")
        print(json.dumps(answer), flush=True)


def _run(request: dict[str, Any], out: int, err: int) -> None:
    signal.alarm(120)
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        from dvc.cli import main

        code = main(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 255)


if __name__ == "__main__":
    _serve()
