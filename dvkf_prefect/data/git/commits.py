"""Authors, times and messages of commits, and their pages at a git host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.git.origin import origin_url
from dvkf_prefect.urls import commit_url

_FORMAT = "%x1e%H%x1f%an%x1f%aI%x1f%s%x1f%(trailers:key=Prefect-Flow-Run,valueonly,separator=%x2C)"


@dataclass(frozen=True)
class Commit:
    """A commit.

    Attributes:
        rev: Its full hash.
        author: Name of its author.
        time: Time of its author.
        subject: First line of its message.
        flow_run: ID of the Prefect flow run that made it; empty for others.
        url: Its page at the git host; empty if the remote ``origin`` is none of a web server.
    """

    rev: str
    author: str
    time: datetime
    subject: str
    flow_run: str = ""
    url: str = ""


def read_commits(git: Git, revs: Iterable[str]) -> dict[str, Commit]:
    """Return commits by hash, by one call of git.

    Args:
        git: The work tree.
        revs: Full hashes.

    Raises:
        GitError: There is no such commit.
    """
    wanted = list(dict.fromkeys(revs))
    if not wanted:
        return {}
    remote = origin_url(git)
    text = git.run("log", "--no-walk=unsorted", f"--format={_FORMAT}", *wanted, "--")
    found = {}
    for record in text.split("\x1e")[1:]:
        rev, author, time, subject, flow_run = record.strip("\n").split("\x1f")
        moment = datetime.fromisoformat(time.replace("Z", "+00:00"))
        found[rev] = Commit(rev, author, moment, subject, flow_run.strip(), commit_url(remote, rev))
    return found
