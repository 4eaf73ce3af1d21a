"""Names of places: local paths and URIs, told apart and put together."""

import os
import re


def scheme(uri: str) -> str:
    """Return the scheme of `uri` in lower case; empty for a plain path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*)://", uri)
    return found.group(1).lower() if found else ""


def is_local(uri: str) -> bool:
    """Return whether `uri` is a path of this machine."""
    return scheme(uri) in ("", "file", "local")


def local_path(uri: str) -> str:
    """Return the absolute path of a local `uri`."""
    assert is_local(uri), uri
    path = uri.split("://", 1)[1] if "://" in uri else uri
    return os.path.abspath(os.path.expanduser(path))


def absolute(uri: str) -> str:
    """Return `uri` so that it means the same in every working directory."""
    return local_path(uri) if is_local(uri) else uri.rstrip("/")


def join(root: str, path: str) -> str:
    """Return the place of `path` (forward slashes) below `root`; a path that is a URI stands for itself."""
    return f"{root.rstrip('/')}/{path}" if root and "://" not in path else path


def redact(uri: str) -> str:
    """Return `uri` without user, password, and query: fit for messages and logs."""
    if "://" not in uri:
        return uri
    scheme, rest = uri.split("://", 1)
    rest = rest.split("?", 1)[0] if scheme in ("http", "https") or "X-Amz-" in rest else rest
    place, slash, path = rest.partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"
