"""Git tags that form a model registry: their grammar, reading and writing.

Source: GTO 1.9 (https://mlem.ai/doc/gto), whose tags these are. Annotated tags only:

| tag | meaning |
|---|---|
| ``model@v1.0.0`` | the commit is version v1.0.0 of the model |
| ``model@v1.0.0!`` | that version is withdrawn |
| ``model#prod#3`` | the commit's version holds the stage ``prod``; 3 counts the model's assignments |
| ``model#prod!#4`` | it no longer holds the stage |
| ``model@deprecated`` | the model is no longer kept |

A model declared in ``folder/dvc.yaml`` is ``folder:model``, in a tag ``folder=model``. GTO cannot order two tags of
one model with the same time. So a tag written here is always younger than the model's tags before it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, NamedTuple

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.errors import GitError, ModelError

Action = Literal["register", "deregister", "assign", "unassign", "deprecate"]
#: GTO's names of the events, and their order within one second (``gto.base``).
EVENTS: Mapping[Action, str] = {
    "deprecate": "deprecation",
    "register": "registration",
    "deregister": "deregistration",
    "assign": "assignment",
    "unassign": "unassignment",
}
_RANKS = {action: rank for rank, action in enumerate(EVENTS, start=2)}

FIRST_VERSION = "v0.0.1"
_DIRNAME = r"[a-zA-Z0-9\-_./]+"
_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9\-/_]*[a-zA-Z0-9])?"
_IDENTIFIER = r"(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)"
_SEMVER = (
    rf"v(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)(?:-{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?"
)
_NAME_RE = re.compile(_NAME, re.ASCII)
_FULL_NAME_RE = re.compile(rf"(?:{_DIRNAME}:)?{_NAME}", re.ASCII)
_VERSION_RE = re.compile(_SEMVER, re.ASCII)
_TAG_RE = re.compile(
    rf"(?P<model>(?:{_DIRNAME}=)?{_NAME})"
    rf"(?:(?:#(?P<stage>{_NAME})|@(?P<version>{_SEMVER}))(?P<cancel>!?)|@(?P<deprecated>deprecated))"
    r"(?:#(?P<counter>[0-9]+))?",
    re.ASCII,
)
_TRAILER_RE = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*): (.*)", re.ASCII)
_FORMAT = (
    "%(objecttype)%00%(refname:strip=2)%00%(type)%00%(object)%00%(taggername)%00%(taggeremail:trim)%00"
    "%(taggerdate:raw)%00%(contents:signature)%00%(contents)%00"
)
_FIELDS = _FORMAT.count("%00")
# Neither GTO nor this module writes longer names, and their numbers might exceed the digits Python parses.
_LONGEST = 1000
# A day before the end of the year 9999, which every time zone can represent. Times outside 1970 to this limit count
# as oldest.
_LATEST = 253_402_214_400
# Highest counter that a new tag continues from: a pushed tag must not exhaust the numbers.
COUNTERS = 10**15


@dataclass(frozen=True)
class TagEvent:
    """Meaning of one registry tag.

    Attributes:
        action: Kind of event.
        model: Name of the model.
        version: Version registered or withdrawn; `ModelRegistry.history` adds that of a stage's tag.
        stage: Stage assigned or removed.
        counter: Number at the end of the tag.
        rev: Commit of the tag.
        created: Time of the tag.
        author: Name of the tagger.
        email: E-mail address of the tagger.
        message: Message of the tag, without trailers.
        trailers: ``Key: value`` lines of the message's last paragraph.
        tag: Name of the tag.
        body: Whole message, with its trailers.
    """

    action: Action
    model: str
    version: str | None
    stage: str | None
    counter: int | None
    rev: str
    created: datetime
    author: str
    email: str
    message: str
    trailers: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""
    body: str = ""

    @property
    def rank(self) -> int:
        """Position among events of the same second, GTO's ``priority``."""
        return _RANKS[self.action]

    def as_dict(self) -> dict[str, Any]:
        """Return the event as ``gto history --json`` prints it, with the time in seconds since 1970."""
        return {
            "timestamp": self.created.timestamp(),
            "artifact": self.model,
            "event": EVENTS[self.action],
            "priority": self.rank,
            "version": self.version,
            "stage": self.stage,
            "commit": self.rev,
            "author": self.author,
            "author_email": self.email,
            "message": self.body,
            "ref": self.tag,
        }

    def __str__(self) -> str:
        what = f"'{self.model}'" if self.version is None else f"'{self.model}' {self.version}"
        return {
            "register": f"{what} was registered",
            "deregister": f"{what} was deregistered",
            "deprecate": f"{what} was deprecated",
            "assign": f"stage '{self.stage}' was assigned to {what}",
            "unassign": f"stage '{self.stage}' was removed from {what}",
        }[self.action]


def check_model_name(name: str) -> None:
    """Refuse a model name that GTO would refuse.

    Raises:
        ModelError: The name is not valid; the message gives the rule.
    """
    if not _FULL_NAME_RE.fullmatch(name):
        raise ModelError(
            f"'{name}' is not a model name. Use letters, digits, '_', '-' and '/' between a letter or digit at each "
            "end, with 'folder:' before it for one declared in folder/dvc.yaml."
        )


def check_stage_name(name: str) -> None:
    """Refuse a stage name that GTO would refuse.

    Raises:
        ModelError: The name is not valid; the message gives the rule.
    """
    if not _NAME_RE.fullmatch(name):
        raise ModelError(
            f"'{name}' is not a stage name. Use letters, digits, '_', '-' and '/' between letters or digits."
        )


def is_version(text: str) -> bool:
    """Return True if a text is a version: ``v`` and a semantic version."""
    return bool(_VERSION_RE.fullmatch(text))


def version_key(version: str) -> tuple[object, ...]:
    """Return the sort key of a version: semantic versioning's precedence.

    Example:
        >>> sorted(["v1.0.0", "v1.0.0-rc.2", "v1.0.0-rc.10", "v0.9.9"], key=version_key)
        ['v0.9.9', 'v1.0.0-rc.2', 'v1.0.0-rc.10', 'v1.0.0']
    """
    core, _, rest = version[1:].partition("+")[0].partition("-")
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in rest.split(".")) if rest else ()
    return (*(int(number) for number in core.split(".")), not rest, parts)


def bump(version: str, part: Literal["major", "minor", "patch"]) -> str:
    """Return the next version.

    Example:
        >>> bump("v1.2.3", "minor")
        'v1.3.0'
    """
    major, minor, patch = (int(n) for n in version[1:].partition("+")[0].partition("-")[0].split("."))
    if part == "major":
        return f"v{major + 1}.0.0"
    if part == "minor":
        return f"v{major}.{minor + 1}.0"
    return f"v{major}.{minor}.{patch + 1}"


def tag_name(
    action: Action, model: str, *, version: str = "", stage: str = "", counter: int | None = None
) -> str:
    """Return the name of a tag."""
    suffix = {
        "register": f"@{version}",
        "deregister": f"@{version}!",
        "assign": f"#{stage}",
        "unassign": f"#{stage}!",
        "deprecate": "@deprecated",
    }[action]
    return model.replace(":", "=") + suffix + ("" if counter is None else f"#{counter}")


class TagName(NamedTuple):
    """Parts of a tag's name; the fields are those of `TagEvent`."""

    action: Action
    model: str
    version: str | None = None
    stage: str | None = None
    counter: int | None = None


def parse_tag_name(tag: str) -> TagName | None:
    """Parse the name of a tag; None if it is not one of the registry's.

    Example:
        >>> parse_tag_name("vision=net#prod!#4")
        TagName(action='unassign', model='vision:net', version=None, stage='prod', counter=4)
    """
    match = _TAG_RE.fullmatch(tag) if len(tag) <= _LONGEST else None
    if not match:
        return None
    action: Action = "deprecate"
    if match["version"]:
        action = "deregister" if match["cancel"] else "register"
    elif match["stage"]:
        action = "unassign" if match["cancel"] else "assign"
    counter = int(match["counter"]) if match["counter"] else None
    return TagName(action, match["model"].replace("=", ":"), match["version"], match["stage"], counter)


def read_tags(git: Git) -> list[TagEvent]:
    """Read every registry tag, oldest first; those of the same second by name, as GTO reads them.

    Unreadable tags are skipped: one of them must not hide the others.
    """
    try:
        events = _read(git, "refs/tags")
    except GitError:
        # One broken tag fails git's whole listing, so read the tags one by one.
        events = []
        for name in git.run("for-each-ref", "--format=%(refname:strip=2)", "refs/tags").splitlines():
            if parse_tag_name(name):
                with suppress(GitError):
                    events += _read(git, f"refs/tags/{name}")
    return sorted(events, key=lambda event: (event.created, event.tag))


def _read(git: Git, refs: str) -> list[TagEvent]:
    listed = git.run_bytes("for-each-ref", f"--format={_FORMAT}", "--", refs).decode(errors="replace")
    # A newline follows each record; it becomes part of the next record's first field.
    fields = listed.split("\0")
    events = []
    for start in range(0, len(fields) - _FIELDS + 1, _FIELDS):
        kind, tag, target, rev, author, email, date, signature, message = fields[start : start + _FIELDS]
        parsed = parse_tag_name(tag)
        if kind.strip() != "tag" or target != "commit" or not parsed:
            continue
        body = message.removesuffix(signature) if signature else message
        text, trailers = split_message(body)
        when = _time(date)
        events.append(TagEvent(*parsed, rev, when, author, email, text, trailers, tag, body.strip()))
    return events


def _time(raw: str) -> datetime:
    """Return the time of a tag as git prints it; 1970 if it is missing or out of range."""
    match = re.fullmatch(r"(\d{1,18})(?: ([+-])(\d\d)(\d\d))?", raw, re.ASCII)
    if not match or int(match[1]) > _LATEST:
        return datetime.fromtimestamp(0, timezone.utc)
    offset = timedelta(hours=int(match[3] or 0), minutes=int(match[4] or 0))
    if match[2] == "-":
        offset = -offset
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(int(match[1]), timezone(offset))
    return datetime.fromtimestamp(int(match[1]), timezone.utc)


def split_message(message: str) -> tuple[str, dict[str, str]]:
    """Split a tag's message into its text and its trailers, git's ``Key: value`` lines in the last paragraph."""
    message = message.strip()
    text, blank, last = message.rpartition("\n\n")
    matches = [_TRAILER_RE.fullmatch(line) for line in last.split("\n")]
    trailers = {match[1]: match[2] for match in matches if match}
    if not blank or len(trailers) != len(matches):
        return message, {}
    return text.rstrip(), trailers


def join_message(text: str, trailers: Mapping[str, str]) -> str:
    """Append trailers to a message.

    Raises:
        ModelError: A key or value cannot be a trailer.
    """
    lines = [f"{key}: {value}" for key, value in trailers.items()]
    for line in lines:
        if not _TRAILER_RE.fullmatch(line):
            raise ModelError(
                f"'{line}' cannot be a trailer. Use letters, digits and '-', a colon and one line of text."
            )
    return "\n\n".join(part for part in (text.strip(), "\n".join(lines)) if part) + "\n"


def create_tag(git: Git, name: str, rev: str, message: str, *, after: Iterable[TagEvent] = ()) -> bool:
    """Create an annotated tag, younger than the given tags.

    Args:
        git: The work tree.
        name: Name of the tag.
        rev: Commit to tag.
        message: Message of the tag.
        after: Tags that must be read as older.

    Returns:
        False if a tag of that name already exists; nothing is changed then.

    Raises:
        GitError: Git refused, for example because no identity is configured.
    """
    newest = max((int(event.created.timestamp()) for event in after), default=0)
    moment = min(max(int(time.time()), newest + 1), _LATEST)
    zone = time.strftime("%z", time.localtime(moment))
    try:
        git.run(
            "tag", "--annotate", "--cleanup=whitespace", "--file=-", "--", name, rev,
            stdin=message.encode(),
            env={"GIT_COMMITTER_DATE": f"@{moment} {zone}"},
        )  # fmt: skip
    except GitError as error:
        # Git's second message means that another process is creating the tag at the same time.
        if "already exists" in str(error) or "File exists" in str(error):
            return False
        raise
    return True
