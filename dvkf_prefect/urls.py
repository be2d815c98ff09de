"""Removal of passwords, tokens and signatures from urls and texts, for display."""

from __future__ import annotations

import re

# Compiled on first use: most runs show no url.
# Schemes with plain login names; for any other scheme a user may be a token, as on GitHub.
_USERS = frozenset(
    {"ssh", "sftp", "scp", "git+ssh", "ssh+git", "hdfs", "webhdfs", "azure", "abfs", "abfss", "az"}
)
_URL = r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s\"'<>`]*)"
_SCP = r"(?<![\w/@:.+-])([A-Za-z0-9._~%+-]+):([^\s@/:]+)@([A-Za-z0-9.-]+:)"
_SIGNED = (
    r"(?is)((?:^|[?&;\s])(?:sig|signature|token|[a-z_]*(?:api_?key|access_?token|secret|password)|x-amz-[a-z0-9-]+"
    r"|x-goog-[a-z0-9-]+|awsaccesskeyid)=)[^&\s\"'<>]+"
    r"|<(StringToSign|StringToSignBytes|CanonicalRequest|CanonicalRequestBytes|SignatureProvided)>.*?</\2>"
    r"|(Bearer |Basic (?-i:(?=\S+[A-Z0-9=])))[A-Za-z0-9+/=._~-]{8,}"
    r"|(\b(?:private-token|x-auth-token|x-api-key|authorization)[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?)[^\s\"',}]+"
)


def public_url(url: str) -> str:
    """Return the url without credentials: userinfo, query and fragment.

    The user of an ssh or hdfs url is not secret and stays; its password is removed.

    Example:
        >>> public_url("ssh://me:pass@host:22/data"), public_url("https://TOKEN@host/r.git?sig=x")
        ('ssh://me@host:22/data', 'https://host/r.git')
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return re.sub(_SCP, r"\1@\3", url)
    plain = _path_of(rest)
    authority, slash, path = plain.partition("/")
    # A password may contain the characters that end a host: everything up to the last `@` may be one.
    if "@" not in authority and "@" in rest and _looks_cut(authority, rest):
        authority, slash, path = rest.rpartition("@")[2].partition("/")
        return f"{scheme}://{_path_of(authority + slash + path)}"
    user, at, host = authority.rpartition("@")
    name = user.partition(":")[0] if scheme.lower() in _USERS else ""
    return f"{scheme}://{name}{at if name else ''}{host}{slash}{path}"


def _path_of(rest: str) -> str:
    return rest.partition("?")[0].partition("#")[0]


def _looks_cut(authority: str, rest: str) -> bool:
    """Return True if a ``/``, ``?`` or ``#`` of a password cut ``user:pass``: the rest is not a valid port."""
    _, colon, port = authority.partition(":")
    return bool(colon) and not port.isdigit() and not authority.startswith("[") and "@" in rest


def holds_secret(url: str) -> bool:
    """Return True if a url grants access: by userinfo beyond a plain user, or by a signature."""
    return public_url(url) != (_path_of(url) if "://" in url else url) or bool(re.search(_SIGNED, url))


def without_secrets(text: str) -> str:
    """Return a text, such as a library's message, without the secrets in its urls and headers.

    Example:
        >>> without_secrets("fatal: 'https://me:pass@host/r.git/' not found")
        "fatal: 'https://host/r.git/' not found"
    """
    if "://" in text:
        text = re.sub(_URL, lambda found: _shown(found[0]), text)
    if "=" in text or ":" in text or "<" in text or "earer " in text or "asic " in text:
        text = re.sub(_SIGNED, lambda found: f"{found[1] or found[3] or found[4] or ''}***", text)
    return text


def _shown(url: str) -> str:
    """Return a url found in a text for display, keeping trailing punctuation such as a full stop."""
    plain = public_url(url)
    if plain == url:
        return url
    tail = re.search(r"[.,;:)\]}]*$", url)
    ending = tail[0] if tail and ("?" in url or "#" in url) else ""
    return plain if plain.endswith(ending) else plain + ending


def commit_url(remote: str, rev: str) -> str:
    """Return the page of a commit at the web server of a git remote; empty for a folder and for any other url.

    GitHub, Gitea and Forgejo have it below ``/commit/``, GitLab below ``/-/commit/``, Bitbucket below ``/commits/``.
    Other hosts count as the first, unless the name holds ``gitlab``.

    Args:
        remote: Url of the remote, over HTTP or ssh.
        rev: Full hash of the commit.

    Example:
        >>> commit_url("git@github.com:team/shop.git", "4f2a"), commit_url("/srv/shop.git", "4f2a")
        ('https://github.com/team/shop/commit/4f2a', '')
    """
    plain = public_url(remote).rstrip("/").removesuffix(".git")
    found = re.fullmatch(r"(https?)://([\w.-]+(?::\d+)?)/([\w.~/-]+)", plain, re.ASCII)
    if found:
        scheme, host, path = found.groups()
    else:
        # A port of ssh is none of the web server.
        found = re.fullmatch(r"(?:ssh://)?(?:[\w.-]+@)([\w.-]+)(?::\d+/|[:/])([\w.~/-]+)", plain, re.ASCII)
        if not found:
            return ""
        scheme, (host, path) = "https", found.groups()
    place = "/-/commit/" if "gitlab" in host else "/commits/" if host == "bitbucket.org" else "/commit/"
    return f"{scheme}://{host}/{path.strip('/')}{place}{rev}"
