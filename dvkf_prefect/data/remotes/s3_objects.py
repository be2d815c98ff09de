"""Requests to S3 that fsspec's interface lacks: copies inside the service, and listings by the start of a key.

Parts of an upload that was killed stay on the service, in no listing of objects, until the upload is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

# S3 copies up to 5 GiB at once, but an answer has to come before the read timeout.
LARGEST_COPY = 1 << 30
# Size of a part of a larger copy: 10,000 parts make 5 TB, the largest object.
PART = 512 << 20
_PARTS_AT_ONCE = 8


def copy(fs: Any, source: str, target: str, size: int) -> None:
    """Copy an object inside the service, above 1 GiB part by part; a failed multipart copy leaves no parts.

    Args:
        fs: The s3fs filesystem.
        source: Bucket and key of the object.
        target: Bucket and key of the copy.
        size: Size of the object in bytes.
    """
    from fsspec.asyn import sync

    if size <= LARGEST_COPY:
        sync(fs.loop, fs._copy_basic, source, target)
    else:
        sync(fs.loop, _copy_parts, fs, source, target, size)


async def _copy_parts(fs: Any, source: str, target: str, size: int) -> None:
    bucket, key, _ = fs.split_path(target)
    from_bucket, from_key, _ = fs.split_path(source)
    begun = await fs._call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    upload = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}
    turns = asyncio.Semaphore(_PARTS_AT_ONCE)

    async def part(number: int, start: int) -> dict[str, Any]:
        span = f"bytes={start}-{min(start + PART, size) - 1}"
        async with turns:
            answer = await fs._call_s3(
                "upload_part_copy",
                PartNumber=number,
                CopySource={"Bucket": from_bucket, "Key": from_key},
                CopySourceRange=span,
                **upload,
            )
        return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

    parts = [asyncio.ensure_future(part(n, start)) for n, start in enumerate(range(0, size, PART), start=1)]
    try:
        done = await asyncio.gather(*parts)
        await fs._call_s3("complete_multipart_upload", MultipartUpload={"Parts": list(done)}, **upload)
    except BaseException:
        for each in parts:
            each.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        with suppress(FileNotFoundError):  # another process dropped it
            await fs._call_s3("abort_multipart_upload", **upload)
        raise


def starting_with(fs: Any, path: str) -> Iterator[tuple[str, int, str | None]]:
    """Yield ``(bucket/key, bytes, etag)`` of every object whose key starts with a text.

    The requests are those of KServe's storage initializer: HEAD of the bucket, then a listing by prefix. The first
    fails without the permission ListBucket. Source: kserve 0.20, ``kserve_storage.py:504``.

    Args:
        fs: The s3fs filesystem.
        path: Bucket and start of the key.
    """
    from fsspec.asyn import sync

    bucket, _, start = path.partition("/")
    sync(fs.loop, fs._call_s3, "head_bucket", Bucket=bucket)
    arguments = {"Bucket": bucket, "Prefix": start}
    while True:
        answer = sync(fs.loop, fs._call_s3, "list_objects_v2", **arguments)
        for item in answer.get("Contents", ()):
            yield f"{bucket}/{item['Key']}", int(item["Size"]), str(item.get("ETag", "")).strip('"') or None
        if not answer.get("IsTruncated"):
            return
        arguments["ContinuationToken"] = answer["NextContinuationToken"]


def drop_uploads(fs: Any, path: str) -> int:
    """Abort the uploads in parts to keys that start with a text; return their number.

    Args:
        fs: The s3fs filesystem.
        path: Bucket and start of the key.
    """
    from fsspec.asyn import sync

    bucket, _, start = path.partition("/")
    arguments = {"Bucket": bucket, "Prefix": start}
    count = 0
    while True:
        answer = sync(fs.loop, fs._call_s3, "list_multipart_uploads", **arguments)
        for item in answer.get("Uploads", ()):
            with suppress(FileNotFoundError):  # it has ended meanwhile
                upload = {"Key": item["Key"], "UploadId": item["UploadId"]}
                sync(fs.loop, fs._call_s3, "abort_multipart_upload", Bucket=bucket, **upload)
            count += 1
        if not answer.get("IsTruncated"):
            return count
        arguments["KeyMarker"] = answer["NextKeyMarker"]
        arguments["UploadIdMarker"] = answer["NextUploadIdMarker"]
