"""Programs that build and run images: Docker, podman, and kaniko's executor, which only builds."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dvkf_prefect.errors import RunnerError

Kind = Literal["docker", "podman", "kaniko"]
KINDS: tuple[Kind, ...] = ("docker", "podman", "kaniko")
_KANIKO = "/kaniko/executor"
_PROBE_SECONDS = 30
_LINES = 15


class EngineError(RunnerError):
    """No program builds or runs images here, or it failed."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A program that handles images.

    Attributes:
        kind: ``docker``, ``podman`` or ``kaniko``.
        path: Its executable file.
    """

    kind: Kind
    path: str

    def build(
        self,
        context: Path,
        tag: str,
        *,
        push: bool = False,
        options: Sequence[str] = (),
        show: Callable[[str], object] | None = None,
    ) -> None:
        """Build an image.

        Args:
            context: Folder with the Dockerfile and its files.
            tag: Name of the image, with its registry and tag.
            push: Send it to its registry.
            options: Further options of the program's build command.
            show: Called with each line of the program's output.

        Raises:
            EngineError: It failed.
        """
        if self.kind == "kaniko":
            if not push:
                raise EngineError("kaniko does not keep images. Push to a registry (--push).")
            where = [f"--context=dir://{context}", "--dockerfile=Dockerfile", f"--destination={tag}"]
            self._call([*where, *options], show)
            return
        self._call(
            ["build", "--tag", tag, "--file", str(context / "Dockerfile"), *options, str(context)], show
        )
        if push:
            self._call(["push", tag], show)

    def run(
        self,
        image: str,
        command: Sequence[str],
        *,
        user: str = "",
        environment: Mapping[str, str],
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a new container, with the rights that a stage's container has on a cluster.

        Since KFP 2.16 that container drops all capabilities, gains no privileges, and has the runtime's default
        seccomp profile, which is the default of these programs too. There is no network.

        Args:
            image: Name of the image.
            command: The command, in place of the image's own.
            user: User, as uid or ``uid:gid``; the image's own if empty.
            environment: Further variables.
            timeout: Maximum seconds.

        Raises:
            EngineError: The program did not start a container, or took too long.
        """
        name = f"dvkf-check-{uuid.uuid4().hex[:12]}"
        words = [
            self.path,
            "run",
            "--rm",
            "--name",
            name,
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
        ]
        words += ["--network=none"]
        words += [f"--user={user}"] if user else []
        words += [f"--env={key}={value}" for key, value in environment.items()]
        words += [f"--entrypoint={command[0]}", image, *command[1:]]
        try:
            return subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            subprocess.run([self.path, "rm", "--force", name], capture_output=True)
            raise EngineError(
                f"image {image}: its check took more than {timeout:.0f} s and was stopped. Allow more time "
                "(--timeout)."
            ) from error
        except OSError as error:
            raise EngineError(f"{self.path} cannot be run: {error.strerror}") from error

    def _call(self, words: Sequence[str], show: Callable[[str], object] | None) -> None:
        """Run a command, and keep its last lines for the message of a failure."""
        last: list[str] = []
        try:
            with subprocess.Popen(
                [self.path, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if show:
                        show(line)
                    last = [*last[1 - _LINES :], line]
        except OSError as error:
            raise EngineError(f"{self.path} cannot be run: {error.strerror}") from error
        if process.returncode:
            said = "".join(last).strip()
            raise EngineError(f"{self.kind} {words[0]} ended with {process.returncode}:\n{said}")


def find_engine(kind: str = "", *, runs: bool = False) -> Engine:
    """Return the first program that is installed and usable.

    Args:
        kind: ``docker``, ``podman`` or ``kaniko``; the first usable one if empty.
        runs: It must run containers too, which kaniko does not.

    Raises:
        EngineError: There is none.
    """
    problems = []
    for each in KINDS:
        if (kind and each != kind) or (runs and each == "kaniko"):
            continue
        path = shutil.which(each)
        if each == "kaniko":
            path = shutil.which(_KANIKO) or shutil.which("kaniko-executor")
        if path is None:
            problems.append(f"{each} is not installed")
        elif each != "kaniko" and (problem := _problem(path)):
            problems.append(f"{each} does not answer: {problem}")
        else:
            return Engine(each, path)
    raise EngineError(
        f"no program to {'run' if runs else 'build'} images: {'; '.join(problems)}. Install Docker or podman, or "
        "write the build's files with `dvkf image build --context FOLDER` and build them elsewhere"
    )


def _problem(path: str) -> str:
    """Return the reason why the program cannot be used; "" if it can."""
    try:
        done = subprocess.run(
            [path, "info"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PROBE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return (said[-1] if said else f"exit code {done.returncode}") if done.returncode else ""
