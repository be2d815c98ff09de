"""Streaming reads of remote files, where fsspec would load the whole file into memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

_CHUNK = 1 << 20
_NO_SUCH_RANGE = 416


def s3(fs: Any, path: str, start: int, version: str | None) -> Iterator[bytes]:
    """Yield an S3 object from a byte on, through s3fs."""
    from fsspec.asyn import sync

    bucket, key, named = fs.split_path(path)
    arguments = {"Bucket": bucket, "Key": key}
    if version or named:
        arguments["VersionId"] = version or named
    if start:
        arguments["Range"] = f"bytes={start}-"

    async def ask() -> Any:
        return (await fs._call_s3("get_object", **arguments))["Body"]

    try:
        body = sync(fs.loop, ask)
    except OSError as error:
        if start and _is_past_end(error):
            return
        raise
    try:
        yield from _pieces(fs, body.read)
    finally:
        fs.loop.call_soon_threadsafe(body.close)


def s3_pages(fs: Any, path: str, token: str | None) -> tuple[list[dict[str, Any]], str | None]:
    """Return one page of the S3 objects below a folder, as s3fs formats them, and the next page's token."""
    from fsspec.asyn import sync

    bucket, key, _ = fs.split_path(path)
    arguments = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/" if key else ""}
    if token is not None:
        arguments["ContinuationToken"] = token

    async def ask() -> Any:
        return await fs._call_s3("list_objects_v2", **arguments)

    answer = sync(fs.loop, ask)
    found = [
        {**item, "name": f"{bucket}/{item['Key']}", "size": item["Size"], "type": "file"}
        for item in answer.get("Contents", ())
        if not item["Key"].endswith("/")
    ]
    following = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
    return found, following


def web(fs: Any, path: str, start: int, version: str | None) -> Iterator[bytes]:
    """Yield a file of a web server from a byte on; without range support, skip the bytes before."""
    from fsspec.asyn import sync

    async def ask() -> Any:
        session = await fs.set_session()
        headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        answer = await session.get(fs.encode_url(path), **{**fs.kwargs, "headers": headers})
        if not (start and answer.status == _NO_SUCH_RANGE):
            fs._raise_not_found_for_status(answer, path)
        return answer

    answer = sync(fs.loop, ask)
    try:
        if answer.status != _NO_SUCH_RANGE:
            yield from _after(_pieces(fs, answer.content.read), 0 if answer.status == 206 else start)
    finally:
        fs.loop.call_soon_threadsafe(answer.close)


def webdav(fs: Any, path: str, start: int, version: str | None) -> Iterator[bytes]:
    """Yield a file of a WebDAV server from a byte on."""
    client = fs.client
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with client.http.stream("GET", client.join_url(path), headers=headers, follow_redirects=True) as answer:
        if start and answer.status_code == _NO_SUCH_RANGE:
            return
        answer.raise_for_status()
        yield from _after(answer.iter_bytes(), 0 if answer.status_code == 206 else start)


def _is_past_end(error: BaseException) -> bool:
    return any("InvalidRange" in str(item) or "(416)" in str(item) for item in (error, error.__cause__))


def _pieces(fs: Any, read: Callable[[int], Awaitable[bytes]]) -> Iterator[bytes]:
    from fsspec.asyn import sync

    while chunk := sync(fs.loop, read, _CHUNK):
        yield chunk


def _after(chunks: Iterator[bytes], start: int) -> Iterator[bytes]:
    """Yield the bytes after the first ``start``."""
    for chunk in chunks:
        if start < len(chunk):
            yield chunk[start:]
        start = max(0, start - len(chunk))
