"""A remote file read at any position, in blocks, through the retries of this package.

Not fsspec's own file: that one fails for good when a request in the middle of reading fails, and
its requests cannot be counted. Blocks lie at multiples of 1 MB (measured, decode.md: 64 KB blocks
need 13 requests for a clip where 1 MB blocks need 2 or 3); the last few are kept, since a demuxer
goes back and forth between the index and the data.
"""

import io
from collections import OrderedDict
from collections.abc import Callable

BLOCK_BYTES = 1 << 20
KEPT_BLOCKS = 8
"""Blocks in memory: what one open file costs at most."""


class RangedFile(io.RawIOBase):
    """The bytes `start` .. `start + size` of something that is read by ranges."""

    def __init__(
        self, read_range: Callable[[int, int], bytes], *, size: int, start: int = 0
    ) -> None:
        """Open.

        Args:
            read_range: From (position, length) to the bytes there; one request.
            size: Length of this file.
            start: Where it begins in what `read_range` reads.
        """
        super().__init__()
        self._read_range = read_range
        self._size = size
        self._start = start
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; past the end there is nothing to read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"position {base + offset} lies before the beginning of the file")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Return `size` bytes, fewer only at the end; negative: all that remain."""
        left = max(self._size - self._position, 0)
        size = left if size < 0 else min(size, left)
        first, past = self._position, self._position + size
        if size > BLOCK_BYTES:  # at once, and not worth keeping
            data = self._fetch(first, size)
        else:
            numbers = range(first // BLOCK_BYTES, -(-past // BLOCK_BYTES))
            joined = b"".join(self._block(number) for number in numbers)
            skipped = first % BLOCK_BYTES
            data = joined[skipped : skipped + size]
        self._position += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill `buffer`; return how many bytes there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        begin = number * BLOCK_BYTES
        data = self._fetch(begin, min(BLOCK_BYTES, self._size - begin))
        self._blocks[number] = data
        if len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)
        return data

    def _fetch(self, begin: int, length: int) -> bytes:
        data = self._read_range(self._start + begin, length)
        if len(data) < length:
            raise EOFError(f"{len(data)} bytes at {begin} where {length} should be")
        return data
