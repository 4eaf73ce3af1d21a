"""Files wherever they are: folders, S3 buckets, and whatever else fsspec can reach.

A place is a string: a local path, or a URI (`s3://bucket/key`, `gs://...`, `https://...`,
`memory://...`). Credentials come only from the environment's own chain (variables, profile,
instance role), and are looked up anew when a server says that they have expired or no longer knows
them. The endpoint of S3 comes from `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`;
`AWS_REQUEST_PAYER=requester` says that we pay for what we read. Servers other than Amazon's reject
the newer checksum trailers, so both checksum variables are set to `when_required` unless the user
has set them.

Failures that pass are tried again, for 15 s or what `patience` says; the rest become one
`StorageError` that says what is wrong, where, and what to do, and never shows a password or a
signature.

Writes are atomic: a reader sees the old bytes or the new ones. `create_exclusive` is the only
claim that is safe between machines (measured, operations.md: s3fs's own exclusive mode silently
overwrites).
"""

from clips.storage.access import current_patience, forget_clients, patience
from clips.storage.errors import StorageError
from clips.storage.files import (
    create_exclusive,
    exists,
    fingerprint,
    is_folder,
    open_seekable,
    read_bytes,
    read_range,
    remove,
    size,
    stat,
    upload,
    write_bytes,
)
from clips.storage.listing import FileInfo, iterate_files, list_files, list_names
from clips.storage.names import absolute, is_local, join, local_path, redact
from clips.storage.traffic import Traffic, traffic

__all__ = [
    "FileInfo",
    "StorageError",
    "Traffic",
    "absolute",
    "create_exclusive",
    "current_patience",
    "exists",
    "fingerprint",
    "forget_clients",
    "is_folder",
    "is_local",
    "iterate_files",
    "join",
    "list_files",
    "list_names",
    "local_path",
    "open_seekable",
    "patience",
    "read_bytes",
    "read_range",
    "redact",
    "remove",
    "size",
    "stat",
    "traffic",
    "upload",
    "write_bytes",
]
