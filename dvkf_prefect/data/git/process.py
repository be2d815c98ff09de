"""Git processes with a timeout, and a check for special files that git waits for.

Git opens its ignore, attribute and configuration files without a check. A fifo in place of one of them blocks it for
ever. If git is silent for some seconds, its files are therefore checked, and the error names the special file.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dvkf_prefect.errors import DvkfError, GitError, GitTimeoutError, ParseError
from dvkf_prefect.files import read_description

ANSWER = 60.0
"""Timeout of one answer of a git process from local files, in seconds."""
# Seconds of silence after which git's files are checked.
_SUSPICIOUS = 2.0
# Time limit of such a check in seconds.
_LOOK = 3.0
# Files of a work tree that git reads during any command.
_READ_BY_GIT = frozenset((".gitignore", ".gitattributes", ".gitmodules", ".mailmap"))
# Commands that may use the terminal, through ssh, a hook, a filter or a signing program.
_TALKING = frozenset(("add", "commit", "tag", "fetch", "clone", "ls-remote", "push"))


def run(
    arguments: Sequence[str],
    root: Path,
    *,
    options: Sequence[str] = (),
    stdin: bytes | None = None,
    timeout: float,
    env: Mapping[str, str],
) -> subprocess.CompletedProcess[bytes]:
    """Run one git command to its end.

    Args:
        arguments: The command and its arguments.
        root: The work tree.
        options: Options of git itself.
        stdin: Bytes for standard input; None for none.
        timeout: Timeout in seconds.
        env: Environment of the process.

    Raises:
        GitError: Git is not installed, or cannot take the arguments.
        GitTimeoutError: The timeout expired.
        ParseError: Git waits for a file that is not a regular one.
    """
    apart = arguments[0] not in _TALKING or not _has_terminal()
    process = _start(
        arguments,
        root,
        options,
        env,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stderr=subprocess.PIPE,
        apart=apart,
    )
    deadline = time.monotonic() + timeout
    wait = min(_SUSPICIOUS, timeout)
    try:
        while True:
            try:
                out, said = process.communicate(stdin, timeout=wait)
                return subprocess.CompletedProcess(process.args, process.returncode, out, said)
            except subprocess.TimeoutExpired:
                refuse_special_files(root)
                wait = deadline - time.monotonic()
                if wait <= 0:
                    raise _silent(arguments[0], root, timeout) from None
    except BaseException:
        end(process, group=apart)
        raise


def start(arguments: Sequence[str], root: Path, *, options: Sequence[str], env: Mapping[str, str]) -> Server:
    """Start a git command that answers questions.

    Args:
        arguments: The command and its arguments.
        root: The work tree.
        options: Options of git itself.
        env: Environment of the process.

    Raises:
        GitError: Git is not installed.
    """
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process = _start(arguments, root, options, env, stdin=pipe, stderr=null, apart=True)
    return Server(process, arguments[0], root)


def _start(
    arguments: Sequence[str],
    root: Path,
    options: Sequence[str],
    env: Mapping[str, str] | None,
    *,
    stdin: int,
    stderr: int,
    apart: bool,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            ["git", "-C", str(root), *options, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            start_new_session=apart,
        )
    except FileNotFoundError as error:
        raise GitError("the git command is not installed or not on PATH") from error
    except ValueError as error:
        raise GitError(f"`git {arguments[0]}` in {root}: {error}") from error


class Server:
    """A git process that answers one question after another.

    Args:
        process: The process, with pipes.
        command: Git command, for messages.
        root: The work tree.
    """

    def __init__(self, process: subprocess.Popen[bytes], command: str, root: Path) -> None:
        assert process.stdin and process.stdout
        self._process = process
        self._command = command
        self._root = root
        self._stdin, self._stdout = process.stdin, process.stdout
        self._poll = select.poll()
        self._poll.register(self._stdout, select.POLLIN)

    def ask(self, question: bytes) -> None:
        """Send a question smaller than a pipe's capacity; the last answer must be read completely.

        Raises:
            BrokenPipeError: The process has ended.
        """
        self._stdin.write(question)
        self._stdin.flush()

    def wait(self) -> None:
        """Wait until there is data to read, or the process has ended.

        Raises:
            GitTimeoutError: The timeout expired; the process was killed.
            ParseError: It waits for a file that is not a regular one; the process was killed.
        """
        if self._poll.poll(_SUSPICIOUS * 1000):
            return
        try:
            refuse_special_files(self._root)
            if not self._poll.poll((ANSWER - _SUSPICIOUS) * 1000):
                raise _silent(self._command, self._root, ANSWER)
        except BaseException:
            end(self._process, group=True)
            raise

    def read_some(self) -> bytes:
        """Return the available part of an answer, at least a byte; empty if the process has ended."""
        self.wait()
        return os.read(self._stdout.fileno(), 65_536)

    def read_line(self) -> bytes:
        """Return the first line of an answer."""
        self.wait()
        return self._stdout.readline()

    def read(self, size: int) -> bytes:
        """Return ``size`` more bytes of an answer."""
        return self._stdout.read(size)

    def close(self) -> None:
        """Close the pipes and wait for the process; kill it if it does not end."""
        with suppress(OSError):
            self._stdin.close()
        self._stdout.close()
        try:
            self._process.wait(_SUSPICIOUS)
        except subprocess.TimeoutExpired:
            end(self._process, group=True)


def end(process: subprocess.Popen[bytes], *, group: bool) -> None:
    """Kill a process, with its whole session if it has its own."""
    with suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    # A process that hangs in a dead disk ends when the disk returns.
    with suppress(subprocess.TimeoutExpired):
        process.wait(_SUSPICIOUS)


def refuse_special_files(root: Path) -> None:
    """Search a few seconds for a fifo or a device in place of a file that git reads.

    Raises:
        ParseError: Such a file exists; the error names it.
    """
    deadline = time.monotonic() + _LOOK
    for file in _read_by_git(root):
        with suppress(OSError):
            if _blocks(file):
                raise ParseError(
                    file, "not a regular file, and git would wait for it. Replace it with a file."
                )
        if time.monotonic() > deadline:
            return


def _blocks(file: str) -> bool:
    mode = os.stat(file).st_mode
    if stat.S_ISCHR(mode):
        return not os.path.samefile(file, os.devnull)
    return stat.S_ISFIFO(mode) or stat.S_ISBLK(mode)


def _read_by_git(root: Path) -> Iterator[str]:
    """Yield files that git may read, level by level: those in its own folders, then its files in the work tree."""
    top = next((str(folder) for folder in (root, *root.parents) if (folder / ".git").exists()), str(root))
    for folder in _git_folders(top):
        yield from (file for file, _ in _walk(folder, skip="objects"))
    yield from (file for file, name in _walk(top, skip=".git") if name in _READ_BY_GIT)


def _git_folders(top: str) -> Iterator[str]:
    folder = f"{top}/.git"
    with suppress(OSError, DvkfError):
        if os.path.isfile(folder):
            text = read_description(folder).decode(errors="surrogateescape")
            folder = os.path.join(top, text.removeprefix("gitdir:").strip())
        yield folder
        text = read_description(f"{folder}/commondir").decode(errors="surrogateescape")
        yield os.path.join(folder, text.strip())


def _walk(top: str, *, skip: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of all entries except folders, the nearest first; skip one folder at the top."""
    level = [top]
    while level:
        below: list[str] = []
        for folder in level:
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield entry.path, entry.name
                    elif entry.name != skip or folder != top:
                        below.append(entry.path)
        level = below


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _silent(command: str, root: Path, timeout: float) -> GitTimeoutError:
    return GitTimeoutError(
        f"`git {command}` in {root} did not answer in {timeout:.0f} s and was stopped. Run it by hand to see "
        "why."
    )
