"""Child processes that die with their parent, however it dies.

A child gets its own session and holds one end of a socket pair whose other end only the parent has. Two watchers
above the child read it: when the parent closes it, or is gone (SIGKILL included), they kill the child and all its
descendants, in whatever session. Unlike ``PR_SET_PDEATHSIG`` this does not depend on the thread that started the
child. See `dvkf_prefect.processes._watcher`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from dvkf_prefect.processes import _watcher

_held: weakref.WeakSet[Leash] = weakref.WeakSet()

# What `-P` does from Python 3.11 on: `-m` would put the current folder first on the search path, and so import a
# repository's own random.py. PYTHONPATH stays, and no setting is left in the environment of what runs below.
_BOOT = (
    "import sys; sys.path[:1] = [p for p in sys.path[:1] if p]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_argv(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours with this Python, importing nothing from the current folder.

    Args:
        module: Its dotted name.
        arguments: What it is given.
    """
    return [sys.executable, "-c", _BOOT, module, *arguments]


class Leash:
    """A bond between this process and one child, for code that forks by itself.

    Make it before ``os.fork``; in the child call ``os.setsid`` and then `follow`; in the parent keep it, and
    `close` it when the child has ended. `spawn` does all this for programs.
    """

    def __init__(self) -> None:
        self._parent, self._child = socket.socketpair()
        _held.add(self)

    def fileno(self) -> int:
        """The child's end; inheritable only if the one who starts the child makes it so."""
        return self._child.fileno()

    def follow(self) -> None:
        """In the child, once it leads its own session: turn it into a guard, and return in a process below it.

        The guard ends as that process does, hands signals on to it, and dies with the parent, all descendants first.
        """
        self._parent.close()
        _watcher.watch(self._child.fileno())
        self._child.close()

    def hold(self) -> None:
        """In the parent, once the child is started: give up the child's end."""
        self._child.close()

    def close(self, timeout: float = 5.0) -> None:
        """Kill what is left of the child and its descendants, and wait until it is killed.

        Args:
            timeout: Seconds to wait for their end.
        """
        self._child.close()
        self.hang_up()
        with suppress(OSError):
            self._parent.settimeout(timeout)
            self._parent.recv(1)
        self._parent.close()

    def hang_up(self) -> None:
        """Have the child and its descendants killed, without waiting for it."""
        with suppress(OSError):
            self._parent.shutdown(socket.SHUT_WR)

    def _drop(self) -> None:
        self._parent.close()


def _drop_inherited() -> None:
    # A forked child must not keep its brothers alive by holding the parent's ends of their leashes.
    for leash in list(_held):
        leash._drop()


os.register_at_fork(after_in_child=_drop_inherited)


class LeashedProcess(subprocess.Popen[bytes]):
    """A `subprocess.Popen` whose descendants end with this process."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: str | Path | None,
        stdin: int | IO[bytes] | None,
        stdout: int | IO[bytes] | None,
        stderr: int | IO[bytes] | None,
        pass_fds: Sequence[int],
    ) -> None:
        self._leash: Leash | None = Leash()
        fd = self._leash.fileno()
        try:
            super().__init__(
                [sys.executable, "-I", "-S", _watcher.__file__, str(fd), *argv],
                env=env,
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(fd, *pass_fds),
                start_new_session=True,
            )
        except BaseException:
            self._release()
            raise
        self._leash.hold()

    def poll(self) -> int | None:
        """Like `subprocess.Popen.poll`; when the program has ended, so has the rest of its session."""
        code = super().poll()
        if code is not None:
            self._release()
        return code

    def wait(self, timeout: float | None = None) -> int:
        """Like `subprocess.Popen.wait`; when it returns, the rest of the session has been killed too."""
        code = super().wait(timeout)
        self._release()
        return code

    def kill(self) -> None:
        """Kill the program and all its descendants."""
        self._release()

    def _release(self) -> None:
        leash, self._leash = self._leash, None
        if leash is not None:
            leash.close()


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
) -> LeashedProcess:
    """Start a program in its own session; it and all its descendants die with this process.

    Args:
        argv: The program, found by PATH, and its arguments. One that cannot be executed ends with exit code
            127 and a line on its standard error.
        env: Its whole environment, or None for this process's.
        cwd: Its working directory.
        stdin: As for `subprocess.Popen`; nothing by default.
        stdout: As for `subprocess.Popen`.
        stderr: As for `subprocess.Popen`.
        pass_fds: Further file descriptors it inherits.

    Returns:
        The process; its number is that of a guard, which hands signals on. What the program leaves behind in its
        session is killed when it ends. Daemons that made a session of their own are left, if it ended well.

    Example:
        >>> import subprocess
        >>> spawn(["printf", "hello"], stdout=subprocess.PIPE).communicate()[0]
        b'hello'
    """
    return LeashedProcess(
        argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds
    )


def end(process: LeashedProcess, grace: float = 5.0) -> int:
    """Stop a program that `spawn` started, and all its descendants.

    Args:
        process: What `spawn` returned.
        grace: Seconds between SIGTERM and SIGKILL.

    Returns:
        Its exit code; negative for the signal that ended it.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
