import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest

from clips import storage
from clips.storage import FileInfo, StorageError, listing

_NAMES = st.text("ab.-0\u00e9\U0001f40d", min_size=1, max_size=3).filter(
    lambda name: name.strip(".")
)
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)


def paths(uri: str) -> list[str]:
    return [file.path for file in storage.iterate_files(uri)]


def without_conflicts(found: set[str]) -> list[str]:
    """A name cannot be a file and a folder at once."""
    return [p for p in sorted(found) if not any(other.startswith(f"{p}/") for other in found)]


@hypothesis.given(st.sets(_PATHS, max_size=12).map(without_conflicts))
@hypothesis.settings(max_examples=50)
def test_a_folder_is_listed_in_the_order_of_the_bytes_of_whole_paths(found: list[str]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for path in found:
            file = Path(root, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
        assert paths(root) == sorted(found, key=str.encode)


def test_a_bucket_is_listed_in_the_same_order_page_by_page(s3: Any) -> None:
    names = [
        "a.mp4",
        "a/b/c.mp4",
        "a/b.mp4",
        "a-b.mp4",
        "\u00e9.mp4",
        "\U0001f40d.mp4",
        "a b.mp4",
        "b",
    ]
    s3.buckets["videos"] = {name: b"x" for name in names} | {"folder/": b""}
    s3.page = 2
    assert paths("s3://videos") == sorted(names, key=str.encode)
    assert len(s3.requests) == 5
    assert paths("s3://videos/a") == ["b.mp4", "b/c.mp4"]


def test_the_first_files_come_before_the_last_page_is_asked_for(s3: Any) -> None:
    s3.buckets["videos"] = {f"{number:03}": b"" for number in range(100)}
    s3.page = 10
    files = storage.iterate_files("s3://videos")
    assert [next(files).path for _ in range(15)] == [f"{number:03}" for number in range(15)]
    assert len(s3.requests) == 2


def test_a_busy_server_in_the_middle_of_a_listing_is_asked_again(s3: Any) -> None:
    s3.buckets["videos"] = {f"{number:03}": b"" for number in range(30)}
    s3.page = 10
    files = storage.iterate_files("s3://videos")
    first = next(files).path
    s3.failures[:] = [(503, "SlowDown"), (500, "InternalError")]
    assert [first, *(file.path for file in files)] == [f"{number:03}" for number in range(30)]


def test_a_place_that_is_not_there_differs_from_an_empty_one(s3: Any, tmp_path: Path) -> None:
    assert paths("s3://videos") == paths(str(tmp_path)) == []
    for uri in ("s3://videos/none", f"{tmp_path}/none"):
        with pytest.raises(
            StorageError, match=r"^there is nothing at .*/none; check the spelling$"
        ):
            paths(uri)


def test_links_are_followed_once_and_one_to_nowhere_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "deep" / "a.mp4").write_bytes(b"123")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "set" / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "disk")
    (tmp_path / "set" / "nowhere.mp4").symlink_to(tmp_path / "none")
    os.utime(tmp_path / "disk" / "deep" / "a.mp4", ns=(7, 7))
    assert list(storage.iterate_files(str(tmp_path / "set"))) == [
        FileInfo("again/deep/a.mp4", 3, "7-3"),
        FileInfo("linked/deep/a.mp4", 3, "7-3"),
        FileInfo("nowhere.mp4", 0, None),
    ]


def test_a_file_deleted_while_we_list_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"")
    files = storage.iterate_files(str(tmp_path))
    assert next(files).path == "a"
    (tmp_path / "b").unlink()
    assert [file.path for file in files] == ["c"]


def test_folders_are_opened_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"")
    opened: list[str] = []
    scan = os.scandir

    def watched(folder: str) -> Any:
        opened.append(os.path.basename(folder))
        return scan(folder)

    monkeypatch.setattr(listing.os, "scandir", watched)
    files: Iterator[FileInfo] = storage.iterate_files(str(tmp_path))
    assert next(files).path == "a/file"
    assert opened == [tmp_path.name, "a"]


def test_other_stores_are_listed_in_the_same_order() -> None:
    names = ["a.b", "a/b", "a-b"]
    for name in names:
        storage.write_bytes(f"memory://list/{name}", b"12")
    assert list(storage.iterate_files("memory://list")) == [
        FileInfo("a-b", 2, None),
        FileInfo("a.b", 2, None),
        FileInfo("a/b", 2, None),
    ]


def test_a_web_server_cannot_be_listed() -> None:
    with pytest.raises(StorageError, match=r"^cannot open http://h/ \(a web server lists no files"):
        paths("http://h/")
