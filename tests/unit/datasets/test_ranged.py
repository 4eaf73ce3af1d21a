import io

import hypothesis
import hypothesis.strategies as st
import pytest

from clips.storage import ranged
from clips.storage.ranged import BLOCK_BYTES, KEPT_BLOCKS, RangedFile


class Source:
    """Bytes read by ranges, and which ranges that were."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[tuple[int, int]] = []

    def __call__(self, start: int, length: int) -> bytes:
        self.ranges.append((start, length))
        return self.data[start : start + length]


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 50)),
        st.tuples(st.just("set"), st.integers(0, 130)),
        st.tuples(st.just("cur"), st.integers(0, 20)),
        st.tuples(st.just("end"), st.integers(-100, 10)),
    ),
    max_size=20,
)


@hypothesis.given(_STEPS)
def test_it_reads_as_a_file_in_memory_does(steps: list[tuple[str, int]]) -> None:
    data = bytes(range(130))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranged, "BLOCK_BYTES", 10)
        file = RangedFile(Source(data), size=100, start=20)
        same = io.BytesIO(data[20:120])
        for step, number in steps:
            if step == "read":
                assert file.read(number) == same.read(number)
            else:
                whence = {"set": io.SEEK_SET, "cur": io.SEEK_CUR, "end": io.SEEK_END}[step]
                assert file.seek(number, whence) == same.seek(number, whence)
            assert file.tell() == same.tell()


def test_small_reads_fetch_blocks_and_the_last_ones_are_kept() -> None:
    source = Source(bytes((KEPT_BLOCKS + 1) * BLOCK_BYTES))
    file = RangedFile(source, size=len(source.data))
    for _ in range(3):
        file.seek(100)
        file.read(1000)
        file.seek(-100, io.SEEK_END)
        file.read(1000)
    last = KEPT_BLOCKS * BLOCK_BYTES
    assert source.ranges == [(0, BLOCK_BYTES), (last, BLOCK_BYTES)]
    for number in range(1, KEPT_BLOCKS):
        file.seek(number * BLOCK_BYTES)
        file.read(1)
    file.seek(0)
    file.read(1)
    assert source.ranges[-1] == (0, BLOCK_BYTES)  # the least recently used had to go


def test_a_large_read_is_one_request() -> None:
    source = Source(bytes(5 * BLOCK_BYTES))
    file = RangedFile(source, size=len(source.data))
    file.seek(10)
    assert len(file.read()) == len(source.data) - 10
    assert source.ranges == [(10, len(source.data) - 10)]


def test_fewer_bytes_than_there_should_be_are_an_error() -> None:
    with pytest.raises(EOFError, match=r"^5 bytes at 0 where 10 should be$"):
        RangedFile(Source(b"12345"), size=10).read()
    with pytest.raises(ValueError, match=r"^position -1 lies before the beginning of the file$"):
        RangedFile(Source(b""), size=10).seek(-1)
