"""The child's side of a leash: ``python -I -S _watcher.py FD PROGRAM ARGS…``, light to start.

Two processes stand between the starter and the program. The guard has the process id that the starter knows; below
it is the reaper. Both are subreapers: they inherit the program's orphaned descendants, of any session, and kill
them. If one of the two is killed, the other does the killing.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


def watch(fd: int) -> None:
    """Turn this process into a guard, and return in a grandchild: the program.

    The program leads its own process group and gets the signals sent to the guard. It ends, with all its descendants,
    on failure and on a stopping signal. They also end when the other end of ``fd`` closes or a guard is killed. After
    a success, the processes left in its session are killed; daemons with their own session are kept.

    Args:
        fd: The child's end of the leash; the program does not inherit it.
    """
    prctl = _prctl()
    prctl(_SUBREAPER, 1)
    before = {number: signal.getsignal(number) for number in _FORWARDED}
    orders, order_writer = os.pipe()
    answer, result = os.pipe()
    reaper = os.fork()
    if reaper:
        os.close(orders)
        os.close(result)
        heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
        _guard(fd, reaper, order_writer, answer, heard)
    os.close(order_writer)
    os.close(answer)
    # The subreaper flag does not survive a fork.
    prctl(_SUBREAPER, 1)
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    wakeup, woken = os.pipe()
    own = os.getpid()
    program = os.fork()
    if not program:
        for other in (orders, result, wakeup, woken):
            os.close(other)
        with suppress(OSError):
            os.setpgid(0, 0)
        prctl(_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != own:  # the parent was killed before the death signal was set
            os._exit(128 + signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        return
    with suppress(OSError):
        os.setpgid(program, program)
    _reap(fd, program, orders, result, wakeup, woken)


def _guard(fd: int, reaper: int, order_writer: int, answer: int, heard: Iterable[int]) -> None:
    """Forward signals to the reaper and exit with the program's status; does not return."""

    def forward(number: int, frame: object) -> None:
        with suppress(OSError):
            os.write(order_writer, bytes([number]))

    for number in heard:
        signal.signal(number, forward)
    _keep_only(fd, order_writer, answer)
    status = b""
    while len(status) < 4:
        chunk = os.read(answer, 4 - len(status))
        if not chunk:  # the reaper was killed, and its descendants are now this process's children
            _kill(_descendants())
            os._exit(_die(signal.SIGKILL))
        status += chunk
    with suppress(ChildProcessError):
        os.waitpid(reaper, 0)
    code = os.waitstatus_to_exitcode(int.from_bytes(status, "little"))
    os._exit(_die(-code) if code < 0 else code)


def _reap(fd: int, program: int, orders: int, result: int, wakeup: int, woken: int) -> None:
    """Wait for the program and kill the processes it leaves; does not return."""
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _keep_only(fd, orders, result, wakeup, woken)
    waiting = select.poll()
    for each in (fd, orders, wakeup):
        waiting.register(each, select.POLLIN)
    stopped = False
    status = _collect(program)  # the program may have ended before SIGCHLD was handled
    while status is None:
        ready = [each for each, _ in waiting.poll()]
        if wakeup in ready:
            os.read(wakeup, 4096)
            status = _collect(program)
        if orders in ready:
            numbers = os.read(orders, 64)
            stopped = stopped or any(number in _STOPPING for number in numbers)
            for number in numbers:
                with suppress(ProcessLookupError):
                    os.killpg(program, number)
            if not numbers:  # the guard was killed
                break
        if fd in ready and not _is_held(fd):
            break
    if status is None:
        stopped = True
        with suppress(ProcessLookupError):
            os.kill(program, signal.SIGKILL)
        with suppress(ChildProcessError):
            status = os.waitpid(program, 0)[1]
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(program, signal.SIGKILL)
    _kill(_descendants() if stopped or status else _of_session())
    with suppress(OSError):
        os.write(result, (signal.SIGKILL if status is None else status).to_bytes(4, "little"))
    os._exit(0)


def _is_held(fd: int) -> bool:
    try:
        return bool(os.read(fd, 1))
    except OSError:
        return False


def _collect(program: int) -> int | None:
    """Reap every child that has ended; return the program's status if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if not pid:
            return found
        if pid == program:
            found = status


def _kill(found: Iterable[int]) -> None:
    """Kill processes until none are found; each pass also finds those started meanwhile."""
    # Bounded: a process that cannot be killed, of another user for instance, must not block this one for ever.
    for _ in range(200):
        pids = list(found)
        killed = 0
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        _collect(0)
        if not killed:
            return
        time.sleep(0.005)


class _Look:
    """Descendants of this process, read from /proc on every iteration."""

    def __init__(self, *, session: bool) -> None:
        self._session = session

    def __iter__(self) -> Iterator[int]:
        own = os.getpid()
        try:
            if os.readlink("/proc/self") != str(own):
                return  # /proc belongs to another pid namespace
            names = os.listdir("/proc")
        except OSError:
            return
        below: dict[int, list[tuple[int, int, bool]]] = {}
        for name in names:
            if name.isdigit():
                with suppress(OSError, ValueError, IndexError):
                    with open(f"/proc/{name}/stat", "rb") as file:
                        fields = file.read().rpartition(b") ")[2].split()
                    alive = fields[0] not in (b"Z", b"X")
                    below.setdefault(int(fields[1]), []).append((int(name), int(fields[3]), alive))
        session = os.getsid(0)
        queue = [own]
        while queue:
            for pid, sid, alive in below.get(queue.pop(), ()):
                queue.append(pid)
                if alive and (not self._session or sid == session):
                    yield pid


def _descendants() -> _Look:
    return _Look(session=False)


def _of_session() -> _Look:
    return _Look(session=True)


def _die(number: int) -> int:
    """End this process by a signal, without a second core file."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


def _keep_only(*kept: int) -> None:
    """Close all other file descriptors, so that a reader of the program's output waits for the program alone."""
    with suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write("dvkf-watcher")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    low = 3
    for fd in sorted(kept):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def _prctl() -> Callable[[int, int], object]:
    """Return Linux's ``prctl``, or a no-op if unavailable; descendants in their own sessions then escape."""
    try:
        import ctypes

        call = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return lambda option, value: None
    return lambda option, value: call(option, ctypes.c_ulong(value), 0, 0, 0)


def _main(arguments: list[str]) -> int:
    fd = int(arguments[0])
    watch(fd)
    os.close(fd)
    # Python ignores these signals at start-up, and the program would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(arguments[1], arguments[1:])  # noqa: S606 (replacing this process is the purpose)
    except OSError as error:
        sys.stderr.write(f"{arguments[1]}: {error.strerror}\n")
    return 127


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
