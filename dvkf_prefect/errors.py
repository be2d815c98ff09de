"""Errors that the package raises on purpose.

Each message names the object, the place and the next step. If Python has an exception with the same meaning, the
class derives from it too, so ``except FileNotFoundError`` works as expected::

    DvkfError
    ├── NotARepositoryError      no `.dvc` folder here or above            (FileNotFoundError)
    ├── GitError                 git refused, or a revision does not exist
    │   └── GitTimeoutError      git did not answer in time
    ├── ConfigError              `.dvc/config` or an option is wrong       (ValueError)
    │   └── RemoteNotFoundError  no remote of that name                    (LookupError)
    ├── ParseError               a `.dvc`, dvc.yaml, dvc.lock or manifest does not parse (ValueError)
    ├── LockedError              another dvc or dvkf holds the repository  (TimeoutError)
    ├── DiskFullError            no space left where a file was being written (OSError)
    ├── OutputError              a tracked path cannot be used as requested
    │   ├── OutputNotFoundError  the target is not tracked, or not on disk (FileNotFoundError)
    │   ├── OutputOverlapError   two outputs claim one path
    │   ├── OutputInGitError     git tracks the path already
    │   ├── OutputChangedError   overwriting would lose content            (FileExistsError)
    │   └── UnsafePathError      a path would leave its root               (ValueError)
    ├── RemoteError              a remote cannot be used
    │   ├── RemoteUnreachableError  the service does not answer            (ConnectionError)
    │   └── RemoteDeniedError    the credentials were refused              (PermissionError)
    ├── ObjectError              an object cannot be used
    │   ├── MissingObjectError   the object does not exist                 (FileNotFoundError)
    │   ├── CorruptObjectError   the content does not hash to the name
    │   └── TransferError        some objects of a transfer failed; all others arrived
    ├── StageError               a stage of a pipeline cannot run, or failed
    │   ├── StageNotFoundError   no stage of that name                     (LookupError)
    │   ├── StageGraphError      a cycle, or two stages write one path
    │   ├── StageFailedError     its command ended with an error
    │   ├── StageOutputError     it did not write a declared output
    │   ├── StageWriteError      it wrote or changed undeclared files
    │   └── StageCancelledError  it was stopped before its end
    ├── RunnerError              the runner of the stages failed, not a stage
    ├── ModelError               a registered model cannot be used as requested
    │   ├── ModelNotFoundError   no such model or version                  (LookupError)
    │   ├── ModelDigestError     the file is not the version's digest
    │   └── PromotionError       a gate or an approval refused it, or it does not serve
    ├── RegistryError            a Kubeflow Model Registry refused or did not answer
    └── ServingError             a model server did not start, answer or stop
        ├── PredictionError      it rejected the request                   (ValueError)
        └── GateError            a gate refused a version, which gets no traffic
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence

from dvkf_prefect.text import printable
from dvkf_prefect.urls import without_secrets

# The next step after an error of the operating system.
_STEPS = {
    errno.EACCES: "Check the permissions of the path and of its folders.",
    errno.EPERM: "Check the permissions of the path and of its folders.",
    errno.EROFS: "Mount the disk writable, or use another one.",
    errno.ENOENT: "Create it, or correct the path.",
    errno.ENOTDIR: "Name a folder, or remove the file in its place.",
    errno.EISDIR: "Name a file, or remove the folder in its place.",
    errno.EEXIST: "Remove it, or name another path.",
    errno.ENOTEMPTY: "Remove its files, or name another path.",
    errno.ENOSPC: "Free some space, and run the command again.",
    errno.EDQUOT: "Free some space, and run the command again.",
    errno.EMFILE: "Raise the limit of open files: `ulimit -n`.",
    errno.ENFILE: "Raise the limit of open files: `ulimit -n`.",
    errno.ELOOP: "Remove the link that leads to itself.",
    errno.ENAMETOOLONG: "Shorten the name.",
    errno.EBUSY: "End the program that uses it.",
    errno.ETXTBSY: "End the program that uses it.",
    errno.EIO: "Check the disk.",
    errno.ESTALE: "Mount the disk again.",
}


def reason(error: Exception) -> str:
    """Return what an error says without its path; for one of the operating system with the next step.

    Example:
        >>> reason(IsADirectoryError(21, "Is a directory", "data"))
        'is a directory. Name a file, or remove the folder in its place.'
    """
    if not isinstance(error, OSError) or isinstance(error, DvkfError) or not error.strerror:
        return str(error)
    said = str(error.strerror)
    return f"{said[:1].lower()}{said[1:]}. {_STEPS.get(error.errno or 0, '')}".rstrip()


def explained(error: Exception) -> str:
    """Return what an error says; for one of the operating system with its path and the next step.

    Example:
        >>> explained(PermissionError(13, "Permission denied", "data/a"))
        'data/a: permission denied. Check the permissions of the path and of its folders.'
    """
    if isinstance(error, DvkfError) or not isinstance(error, OSError) or not error.filename:
        return reason(error)
    path = os.fsdecode(error.filename2 or error.filename) if not isinstance(error.filename, int) else ""
    folder, name = os.path.split(path)
    # A file under a passing name says nothing; its folder does.
    if name.startswith(".") and "dvkf-" in name:
        path = folder or "."
    return f"{path}: {reason(error)}" if path else reason(error)


class DvkfError(Exception):
    """Base of every error here; ``exit_code`` is the exit code of the command line.

    Messages quote names and values of repositories. In their text, control and hidden characters are escaped, and
    credentials in urls are removed.

    Attributes:
        blocked: Addresses of stages that `repro` did not start, because this failure came first.
    """

    exit_code = 255
    blocked: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the message, safe for a terminal, a log or a page."""
        return printable(without_secrets(super().__str__()), lines=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class NotARepositoryError(DvkfError, FileNotFoundError):
    """Neither this folder nor any above it has a ``.dvc`` folder."""

    exit_code = 253


class GitError(DvkfError):
    """Git refused a command, or a revision does not exist."""


class GitTimeoutError(GitError):
    """Git did not answer in time, and was ended."""


class ConfigError(DvkfError, ValueError):
    """A configuration file or option has an unknown name or an invalid value."""

    exit_code = 251


class RemoteNotFoundError(ConfigError, LookupError):
    """No remote of that name is configured, or no default remote is set."""

    exit_code = 255


class ParseError(DvkfError, ValueError):
    """A file of the repository violates its format.

    Args:
        file: The file, relative to the repository if possible.
        expected: Text that names the value found and the value expected.
        line: Line number, counted from 1.
    """

    def __init__(self, file: str, expected: str, *, line: int | None = None) -> None:
        self.file = file
        self.line = line
        self.expected = expected
        place = file if line is None else f"{file}, line {line}"
        super().__init__(f"{place}: {expected}")


class LockedError(DvkfError, TimeoutError):
    """Another ``dvc`` or ``dvkf`` held the repository's lock for the whole wait."""


class DiskFullError(DvkfError, OSError):
    """The disk is full; previously complete files are intact."""


class OutputError(DvkfError):
    """A tracked path cannot be used as requested."""


class OutputNotFoundError(OutputError, FileNotFoundError):
    """The target is not a tracked output, or is not on disk."""


class OutputOverlapError(OutputError):
    """Two outputs claim one path, or one lies inside the other."""


class OutputInGitError(OutputError):
    """Git tracks the path already."""


class OutputChangedError(OutputError, FileExistsError):
    """Overwriting files would lose their only copy.

    Args:
        paths: The files, relative to the repository root.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)
        shown = "\n".join(f"  {p}" for p in self.paths[:20])
        more = f"\n  and {len(self.paths) - 20} more" if len(self.paths) > 20 else ""
        super().__init__(
            f"{len(self.paths)} file(s) have changes that are not in the cache and would be lost:\n"
            f"{shown}{more}\nKeep them with `dvkf commit` or `dvkf add`, or discard them with --force."
        )


class UnsafePathError(OutputError, ValueError):
    """A path in a manifest, a lock file or an argument would leave its root."""


class RemoteError(DvkfError):
    """A remote cannot be used."""


class RemoteUnreachableError(RemoteError, ConnectionError):
    """The service at the remote's address does not answer."""


class RemoteDeniedError(RemoteError, PermissionError):
    """The remote refused the credentials."""


class ObjectError(DvkfError):
    """An object of a cache or a remote cannot be used."""


class MissingObjectError(ObjectError, FileNotFoundError):
    """The object does not exist in the given place."""


class CorruptObjectError(ObjectError):
    """The object's bytes do not hash to its name."""


class TransferError(ObjectError):
    """Some objects of a transfer failed; all others arrived.

    Args:
        place: User-facing name of the remote or folder.
        failures: Error messages by the file of the output.
        missing: Files with content in neither place; all others failed for another reason.
    """

    def __init__(self, place: str, failures: Mapping[str, str], *, missing: Iterable[str] = ()) -> None:
        self.place = place
        self.failures = dict(failures)
        self.missing = frozenset(missing).intersection(self.failures)
        names = sorted(self.failures)
        shown = "\n".join(f"  {name}: {self.failures[name]}" for name in names[:20])
        more = f"\n  and {len(names) - 20} more" if len(names) > 20 else ""
        super().__init__(f"{len(names)} file(s) failed at {place}; all others arrived:\n{shown}{more}")

    @property
    def only_missing(self) -> bool:
        """True if every failure is content missing from both places."""
        return len(self.missing) == len(self.failures)


class StageError(DvkfError):
    """A stage of a pipeline cannot run, or failed."""


class StageNotFoundError(StageError, LookupError):
    """No stage has that name."""


class StageGraphError(StageError):
    """The stages form a cycle, or two of them write one path."""


class StageFailedError(StageError):
    """A stage's command ended with an error.

    Args:
        stage: The stage's name.
        command: The command that failed.
        exit_code: Exit code; the negative signal number if a signal ended it.
        log_tail: End of its output.
    """

    def __init__(self, stage: str, command: str, exit_code: int, log_tail: str) -> None:
        self.stage = stage
        self.command = command
        self.status = exit_code
        self.log_tail = log_tail
        tail = log_tail.strip() or "(it printed nothing)"
        super().__init__(
            f"stage '{stage}' failed: `{command}` ended with exit code {exit_code}. The end of its "
            f"log:\n{tail}"
        )


class StageOutputError(StageError):
    """A stage succeeded but did not write a declared output."""


class StageWriteError(StageError):
    """A stage wrote files outside its outputs, or changed one of its dependencies."""


class StageCancelledError(StageError):
    """A stage was stopped before its end."""


class RunnerError(DvkfError):
    """The runner of the stages failed, not a stage."""


class ModelError(DvkfError):
    """A registered model cannot be used as requested."""


class ModelNotFoundError(ModelError, LookupError):
    """No model, version or assignment of that name is registered."""


class ModelDigestError(ModelError):
    """A model's file does not hash to the digest of its registered version; it was not loaded."""


class PromotionError(ModelError):
    """A version was not promoted: a gate or the approval refused it, or it does not serve. What was before stands."""


class RegistryError(DvkfError):
    """A Kubeflow Model Registry refused a call, or did not answer."""


class ServingError(DvkfError):
    """A model server did not start, answer or stop."""


class PredictionError(ServingError, ValueError):
    """A model server rejected the request."""


class GateError(ServingError):
    """A gate refused a version, which gets no traffic.

    Args:
        message: Message with the findings that refuse it.
        findings: All findings as plain values: ``gate``, ``passed``, ``detail``, ``required`` and ``blocks``.
    """

    def __init__(self, message: str, findings: Sequence[Mapping[str, object]] = ()) -> None:
        self.findings = tuple(findings)
        super().__init__(message)
