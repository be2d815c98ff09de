"""Parts of data urls, with keys taken literally."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

ALIASES = {"gcs": "gs", "az": "azure", "abfs": "azure", "s3a": "s3", "sftp": "ssh"}
# In these urls, `?` starts a query, and `%20` is a space.
WEB = frozenset(("http", "https", "webdav", "webdavs"))


def split_url(url: str) -> SplitResult:
    """Split a url; ``?``, ``#`` and ``%`` in the path of a store or a host are characters of a name.

    The scheme is lower-cased and replaced by its usual name.

    Source: DVC, ``aws s3`` and s5cmd read the keys of ``s3://`` urls literally.

    Example:
        >>> split_url("s3://bucket/team#1/what?").path
        '/team#1/what?'
        >>> split_url("sftp://me@host:22/50%25").path
        '/50%25'
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    scheme = ALIASES.get(scheme, scheme)
    if scheme in WEB:
        return urlsplit(url)
    host, slash, path = rest.partition("/")
    return SplitResult(scheme, host, slash + path, "", "")


def join_url(parts: SplitResult) -> str:
    """Return the url of the parts; the reverse of `split_url`."""
    if parts.scheme in WEB:
        return parts.geturl()
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def without_query(url: str) -> str:
    """Return a url without its query to a web server.

    Example:
        >>> without_query("https://host/data.csv?token=1"), without_query("s3://bucket/what?")
        ('https://host/data.csv', 's3://bucket/what?')
    """
    return join_url(split_url(url)._replace(query="", fragment=""))
