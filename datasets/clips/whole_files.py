"""Large files written piece by piece, whole or not at all.

A file grows on local disk under another name and takes its place, in a folder or a bucket, when it is
finished: a reader sees the old one or the new one, and an interrupted writer leaves neither half.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator

from clips import storage
from clips.storage.access import attempt, guard


@contextlib.contextmanager
def whole_file(uri: str) -> Iterator[str]:
    """Give the path of a local file to write; when the block ends well, it is moved to `uri`.

    Raises:
        StorageError: The place cannot be written.
    """
    if storage.is_local(uri):
        path = storage.local_path(uri)
        folder, name = os.path.split(path)
        draft = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}")

        def make() -> None:
            os.makedirs(folder, exist_ok=True)
            open(draft, "xb").close()

        guard(uri, make)
        try:
            yield draft
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(draft)
        return
    with tempfile.TemporaryDirectory(prefix="clips-file-") as folder:
        draft = os.path.join(folder, "file")
        yield draft
        attempt(uri, lambda fs, path: fs.put_file(draft, path))
