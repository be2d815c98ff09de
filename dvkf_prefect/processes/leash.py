"""Child processes that die with their parent, even if the parent is killed.

A child gets its own session and holds one end of a socket pair. Only the parent holds the other end. Two watchers
above the child read it. When the parent closes its end or dies (SIGKILL included), they kill the child and its
descendants, of any session. Unlike ``PR_SET_PDEATHSIG`` this does not depend on the thread that started the child.
See `dvkf_prefect.processes._watcher`.
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

# The effect of `-P` (Python 3.11 and later). `-m` would put the current folder first on the search path and import
# a repository's own random.py. PYTHONPATH stays, and no setting is left in the environment of the processes below.
_BOOT = (
    "import sys; sys.path[:1] = [p for p in sys.path[:1] if p]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_argv(module: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules with this Python, importing nothing from the current folder.

    Args:
        module: Dotted name of the module.
        arguments: Command-line arguments of the module.
    """
    return [sys.executable, "-c", _BOOT, module, *arguments]


class Leash:
    """Bond between this process and one child, for code that forks by itself.

    Create it before ``os.fork``. In the child call ``os.setsid``, then `follow`. In the parent keep it, and `close`
    it when the child has ended. `LeashedProcess` does all this for programs.
    """

    def __init__(self) -> None:
        self._parent, self._child = socket.socketpair()
        _held.add(self)

    def fileno(self) -> int:
        """Return the child's end; it is inheritable only if the starter of the child makes it so."""
        return self._child.fileno()

    def follow(self) -> None:
        """Turn the child, once it leads its own session, into a guard; return in a process below it.

        The guard forwards signals to that process and ends with the same status. It dies with the parent, after all
        its descendants.
        """
        self._parent.close()
        _watcher.watch(self._child.fileno())
        self._child.close()

    def hold(self) -> None:
        """Give up the child's end; call it in the parent once the child is started."""
        self._child.close()

    def close(self, timeout: float = 5.0) -> None:
        """Kill the child and its remaining descendants, and wait for their end.

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
        """Have the child and its descendants killed, without waiting for their end."""
        with suppress(OSError):
            self._parent.shutdown(socket.SHUT_WR)

    def _drop(self) -> None:
        self._parent.close()


def _drop_inherited() -> None:
    # A forked child must not keep its siblings alive by holding the parent's ends of their leashes.
    for leash in list(_held):
        leash._drop()


os.register_at_fork(after_in_child=_drop_inherited)


class LeashedProcess(subprocess.Popen[bytes]):
    """A program in its own session; it and all its descendants die with this process, even if this one is killed.

    It is a `subprocess.Popen`, whose pid is that of a guard, which forwards signals. Processes left in the program's
    session are killed when it ends. Daemons with their own session are kept if the program succeeded.

    Args:
        argv: The program, found by PATH, and its arguments. One that cannot be executed ends with exit code 127 and
            a line on its standard error.
        env: Whole environment of the program, or None for this process's.
        cwd: Working directory of the program.
        stdin: As for `subprocess.Popen`; nothing by default.
        stdout: As for `subprocess.Popen`.
        stderr: As for `subprocess.Popen`.
        pass_fds: Further file descriptors that the program inherits.

    Example:
        >>> import subprocess
        >>> LeashedProcess(["printf", "hello"], stdout=subprocess.PIPE).communicate()[0]
        b'hello'
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
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
        """Poll like `subprocess.Popen.poll`; once the program has ended, the rest of its session is killed."""
        code = super().poll()
        if code is not None:
            self._release()
        return code

    def wait(self, timeout: float | None = None) -> int:
        """Wait like `subprocess.Popen.wait`; on return the rest of the session has been killed too."""
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


def end(process: LeashedProcess, grace: float = 5.0) -> int:
    """Stop a program and all its descendants.

    Args:
        process: The program.
        grace: Seconds between SIGTERM and SIGKILL.

    Returns:
        Exit code of the program; negative for the signal that ended it.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
