"""Addresses that carry a secret: found and refused before they can get into a manifest, a message, or a log.

A manifest is copied, logged, and kept with every run. A password or a signature in the address of a
video, or of the list that names it, would be published with it, and it would stop working within
hours. So such an address is refused, and the text names what is secret in it, never its value.
"""

import re
import urllib.parse

from clips import storage

_SECRET = re.compile(
    "^(sig|sas|key|jwt|pwd|pass|passwd|policy|keypairid|hdnea|hdnts|auth|acl)$"
    "|signature|token|secret|password|credential|apikey|accesskey|accountkey|authorization|^xamz|^xgoog"
)
"""Names of query parameters that sign an address or let its bearer in, in lower case, letters only."""


def secret_in(uri: str) -> str | None:
    """Return what is secret in `uri`, without its value; None if nothing is."""
    if "://" not in uri:
        return None
    place, _, rest = uri.split("://", 1)[1].partition("/")
    if "@" in place.partition("?")[0]:
        return "a user or password"
    query = f"{place}/{rest}".partition("?")[2].partition("#")[0]
    for name, _ in urllib.parse.parse_qsl(query.replace(";", "&"), keep_blank_values=True):
        if _SECRET.search(re.sub("[^a-z]", "", name.lower())):
            return f"the parameter {name!r}, which signs it or lets its bearer in"
    return None


def shown(text: str) -> str:
    """Return an address, or a line that starts with one, fit for messages."""
    plain = storage.redact(text)
    return plain.partition("?")[0] if secret_in(text) else plain


def refuse_secrets(uri: str, *, what: str) -> None:
    """Do nothing for an address that may be written down.

    Args:
        uri: The address.
        what: Its name in the message (`source`).

    Raises:
        ValueError: It holds a secret; the text says which kind, and what to use instead.
    """
    secret = secret_in(uri)
    if secret:
        raise ValueError(f"{what} {shown(uri)} {refusal(secret)}")


def refusal(secret: str) -> str:
    """Return why an address with this secret is refused."""
    return (
        f"holds {secret}: it would stand readable in the manifest and stop working when it expires; "
        "use an address without it: s3:// or gs:// with credentials from the environment, or a public one"
    )
