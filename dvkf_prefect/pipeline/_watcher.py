"""The child's side of a leash: ``python -I -S _watcher.py FD PROGRAM ARGS…``, light to start."""

from __future__ import annotations

import os
import signal
import sys


def watch(fd: int) -> None:
    """Fork a watcher that kills this process's group when the other end of ``fd`` closes.

    The watcher is a grandchild, so that a program that waits for all its children never waits for it, and
    it keeps no other file descriptor, so that nobody who reads the program's output waits for it either.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(fd, 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    while True:
        try:
            if not os.read(3, 1):
                break
        except OSError:
            break
    os.kill(0, signal.SIGKILL)
    os._exit(0)


def _main(arguments: list[str]) -> int:
    fd = int(arguments[0])
    watch(fd)
    os.close(fd)
    # Python ignores these from its start, and a program would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(arguments[1], arguments[1:])  # noqa: S606 (to become another program is its purpose)
    except OSError as error:
        sys.stderr.write(f"{arguments[1]}: {error.strerror}\n")
    return 127


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
