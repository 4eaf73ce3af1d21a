"""What FFmpeg's errors mean: a kind of `DecodeError` each."""

import contextlib
import errno
from collections.abc import Iterator

import av.error

from clips.decode import DecodeError, Kind
from clips.storage import StorageError


@contextlib.contextmanager
def decode_errors(doing: str) -> Iterator[None]:
    """Turn everything FFmpeg can raise into a `DecodeError`."""
    try:
        yield
    except (DecodeError, StorageError):  # of the storage: not the fault of the file
        raise
    except av.error.ExitError as error:  # the limit of a single read, which no packet ended
        raise DecodeError("timeout", f"{doing}: one read took over 2 x decode.seconds") from error
    except (av.error.FFmpegError, OSError, ValueError, IndexError, MemoryError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise DecodeError(_kind(error), f"{doing}: {text} ({type(error).__name__})") from error


def _kind(error: Exception) -> Kind:
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return "memory"
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError | av.error.BlockingIOError):
        return "corrupt"  # "try again" is what FFmpeg says of a stream without a beginning
    if isinstance(error, av.error.DecoderNotFoundError | av.error.PatchWelcomeError):
        return "unsupported"
    if isinstance(error, OSError) and error.errno == errno.EPERM:
        return "unsupported"  # a script that names other files: only its own bytes are ever read
    if isinstance(error, OSError) and not isinstance(error, av.error.ArgumentError):
        return "io"
    return "corrupt"
