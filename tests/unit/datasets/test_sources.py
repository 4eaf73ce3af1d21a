import dataclasses
import os
import re
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clips import Manifest, StorageError, examine, find_videos
from clips.ingest import Entry, Rejected
from clips.synthetic import Encoding, encode, numbered_frames

MP4 = encode(numbered_frames(24, width=64, height=48), Encoding(gop=12))


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(MP4 if name.endswith(".mp4") else b"text")
    return folder


def ids(found: Any) -> list[str]:
    return [entry.video_id for entry in found.entries]


# --- folders -------------------------------------------------------------------------------


def test_a_folder_is_searched_at_any_depth_for_videos_only(tmp_path: Path) -> None:
    make(
        tmp_path,
        "b.mp4",
        "a/deep/c.MP4",
        "notes.txt",
        ".hidden.mp4",
        "__MACOSX/x.mp4",
        "a/.s/y.mp4",
    )
    found = find_videos(str(tmp_path))
    assert found.root == str(tmp_path)
    assert ids(found) == ["a/deep/c.MP4", "b.mp4"]
    assert {e.label for e in found.entries} == {None}
    assert found.entries[1].size == len(MP4)


def test_class_folders_are_labels_and_splits_above_them_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/run/1.mp4", "train/jump/x/2.mp4", "val/run/3.mp4")
    found = find_videos(str(tmp_path), labels="folders")
    assert [(e.video_id, e.label, e.split) for e in found.entries] == [
        ("train/jump/x/2.mp4", "jump", "train"),
        ("train/run/1.mp4", "run", "train"),
        ("val/run/3.mp4", "run", "val"),
    ]


def test_a_video_in_no_class_folder_is_a_mistake(tmp_path: Path) -> None:
    make(tmp_path, "run/1.mp4", "2.mp4")
    with pytest.raises(ValueError, match=r"^labels=folders: 2.mp4 lies in no class folder of /"):
        find_videos(str(tmp_path), labels="folders")


def test_nothing_found_says_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^no videos found in .*: it holds no files; videos end in .mp4,"
    ):
        find_videos(str(tmp_path))
    make(tmp_path, "a.txt", "b.jpg")
    with pytest.raises(ValueError, match=r"it holds 2 other files, but no video; videos end in"):
        find_videos(str(tmp_path))


def test_a_wrong_path_or_setting_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is nothing at .*/none; check the spelling$"):
        find_videos(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"^there is nothing at .*/none.mp4; check the spelling$"):
        find_videos(str(tmp_path / "none.mp4"))
    with pytest.raises(ValueError, match=r"^there is nothing at .*/none.csv; check the spelling$"):
        find_videos(str(tmp_path / "none.csv"))
    with pytest.raises(ValueError, match=r"^labels is 'csv'; allowed: none, folders$"):
        find_videos(str(tmp_path), labels="csv")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^root goes with a list file"):
        find_videos(str(tmp_path), root="/x")


def test_a_single_video_is_a_source(tmp_path: Path) -> None:
    make(tmp_path, "one.mp4")
    found = find_videos(str(tmp_path / "one.mp4"))
    assert (found.root, ids(found)) == (str(tmp_path), ["one.mp4"])


def test_a_bucket_prefix_is_a_source(s3: Any) -> None:
    s3.buckets["videos"] = {"set/run/1.mp4": MP4, "set/jump/2.mp4": MP4, "other/3.mp4": MP4}
    found = find_videos("s3://videos/set/", labels="folders")
    assert found.root == "s3://videos/set"
    assert [(e.video_id, e.label, e.etag) for e in found.entries] == [
        ("jump/2.mp4", "jump", str(len(MP4))),
        ("run/1.mp4", "run", str(len(MP4))),
    ]
    row = examine(found.entries[0], root=found.root)
    assert isinstance(row, dict)
    assert row["frames"] == 24
    assert Manifest.build([row], root=found.root).video(0).uri == "s3://videos/set/jump/2.mp4"


def test_a_missing_bucket_is_one_clear_line(s3: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^the bucket does not exist: s3://nowhere/set; check its name"
    ):
        find_videos("s3://nowhere/set")


# --- list files ----------------------------------------------------------------------------


def listed(tmp_path: Path, text: str, **options: Any) -> Any:
    make(tmp_path, "a/1.mp4", "b 2.mp4")
    (tmp_path / "train.csv").write_text(text)
    return find_videos(str(tmp_path / "train.csv"), **options)


def test_the_authors_lists_bring_labels(tmp_path: Path) -> None:
    found = listed(tmp_path, "a/1.mp4 7\na/none.mp4 3\r\n\n")
    assert [(e.video_id, e.label, e.size) for e in found.entries] == [("a/1.mp4", "7", len(MP4))]
    assert found.missing == (
        Rejected("a/none.mp4", "missing", "the list names it, but it is not there"),
    )


def test_the_authors_second_form_names_videos_without_labels(tmp_path: Path) -> None:
    assert [(e.video_id, e.label) for e in listed(tmp_path, "a/1.mp4 0 -1\n").entries] == [
        ("a/1.mp4", None)
    ]
    assert listed(tmp_path, "a/1.mp4 -1\n").entries[0].label is None


def test_a_csv_may_hold_spaces_spans_and_splits(tmp_path: Path) -> None:
    text = 'path,label,start_s,end_s,split\nb 2.mp4,jump high,1.5,3,val\n"a/1.mp4","run, fast",,,train\n'
    entries = [dataclasses.replace(e, etag=None) for e in listed(tmp_path, text).entries]
    assert entries == [
        Entry("a/1.mp4", len(MP4), label="run, fast", split="train"),
        Entry("b 2.mp4", len(MP4), label="jump high", split="val", start_s=1.5, end_s=3.0),
    ]


def test_listed_paths_may_be_absolute_or_relative_to_a_root(tmp_path: Path) -> None:
    make(tmp_path / "data", "x/1.mp4", "y/2.mp4")
    (tmp_path / "l.txt").write_text(f"{tmp_path}/data/x/1.mp4 0\n{tmp_path}/data/y/2.mp4 1\n")
    found = find_videos(str(tmp_path / "l.txt"))
    assert ids(found) == ["data/x/1.mp4", "data/y/2.mp4"]
    (tmp_path / "l.txt").write_text("x/1.mp4 0\n")
    found = find_videos(str(tmp_path / "l.txt"), root=str(tmp_path / "data"))
    assert (found.root, ids(found)) == (str(tmp_path / "data"), ["x/1.mp4"])
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text(
        f"{tmp_path}/data/x/1.mp4 0\n{tmp_path}/data/y/2.mp4 1\n"
    )
    found = find_videos(str(tmp_path / "lists" / "l.txt"))
    assert (found.root, ids(found)) == (str(tmp_path / "data"), ["x/1.mp4", "y/2.mp4"])


def test_a_list_in_a_bucket_is_looked_up_with_one_listing(s3: Any) -> None:
    s3.buckets["videos"] = {f"set/{i}.mp4": MP4 for i in range(50)}
    s3.buckets["videos"]["set/train.csv"] = b"".join(b"%d.mp4 1\n" % i for i in range(51))
    found = find_videos("s3://videos/set/train.csv")
    assert len(found.entries) == 50
    assert [r.video_id for r in found.missing] == ["50.mp4"]
    assert len(s3.requests) < 10


def test_a_few_of_very_many_are_asked_for_one_by_one(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clips.lookups._A_REQUEST", 10)
    s3.buckets["videos"] = {f"set/{i:03d}.mp4": MP4 for i in range(100)}
    (tmp_path / "l.txt").write_text("".join(f"{i:03d}.mp4 1\n" for i in (5, 60, 70, 999)))
    found = find_videos(str(tmp_path / "l.txt"), root="s3://videos/set")
    assert ids(found) == ["005.mp4", "060.mp4", "070.mp4"]
    assert [r.video_id for r in found.missing] == ["999.mp4"]
    asked = {line.split("?")[0] for line in s3.requests if line.startswith("HEAD")}
    assert asked == {f"HEAD /videos/set/{name}.mp4" for name in ("060", "070", "999")}


ALLOWED = (
    "allowed: 'path label' (one space, no spaces in the path), 'path 0 -1', 'path 1 TOTAL' for a folder of "
    "frames, or a CSV whose first line names its columns: path, and any of label, split, start_s, end_s"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a/1.mp4 1\nb 2.mp4 1\n",
            "{f}:2: more than one space in 'b 2.mp4 1': a path with spaces needs the CSV form\n"
            + ALLOWED,
        ),
        ("a/1.mp4\n", "{f}:1: no label after 'a/1.mp4'\n" + ALLOWED),
        (
            "a/1.mp4 1\n\n\nb\nc  1\n",
            "{f}:4: no label after 'b'\n{f}:5: more than one space in 'c  1': a path with spaces needs the CSV form\n"
            + ALLOWED,
        ),
        (
            "frames/1 2 300\n",
            "{f}:1: start 2 and total 300: a video has '0 -1', and a folder of frames starts at 0 or 1 and has one "
            "frame or more\n" + ALLOWED,
        ),
        ("path,label\na/1.mp4,\n", "{f}:2: no label for 'a/1.mp4' (-1 means none)\n" + ALLOWED),
        ("path,label\n,3\n", "{f}:2: no path\n" + ALLOWED),
        ("path,label\na,b,c\n", "{f}:2: 3 values for the 2 columns path,label\n" + ALLOWED),
        ("path,lable\na,b\n", "{f}:1: unknown column lable; " + ALLOWED),
        (
            "path,start_s\na,soon\n",
            "{f}:2: start_s is 'soon'; it must be a number of seconds, 0 or more\n" + ALLOWED,
        ),
        ("path,start_s,end_s\na,3,2\n", "{f}:2: end_s 2 is not after start_s 3\n" + ALLOWED),
        (
            "a 1\nb 1\na 2\n",
            "{f}:3: 'a' stands on line 1 already\n" + ALLOWED,
        ),
        ("", "{f} is empty; " + ALLOWED),
        ("path,label\n", "{f} has a header but no lines below it; " + ALLOWED),
    ],
)
def test_mistakes_in_a_list_name_the_line_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    expected = message.replace("{f}", str(tmp_path / "train.csv"))
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        listed(tmp_path, text)


def test_many_mistakes_are_shown_as_ten_and_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no label after 'x'") as caught:
        listed(tmp_path, "x\n" * 30)
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[10] == "and 20 more lines"


def test_a_binary_file_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"train.csv is not a text file; allowed: 'path label'"):
        find_videos(str(tmp_path / "train.csv"))


# --- addresses -----------------------------------------------------------------------------


@dataclasses.dataclass
class Web:
    """A web server: paths and what is there, bytes or a status; remembers what it was asked."""

    url: str
    pages: dict[str, bytes | int]
    requests: list[str] = dataclasses.field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.web.requests.append(f"{self.command} {self.path}")
        page = self.web.pages.get(self.path, 404)
        if isinstance(page, int):
            self.send_error(page)
            return
        self.send_response(200)
        if "nolength" not in self.path:
            self.send_header("Content-Length", str(len(page)))
        if "dated" in self.path:
            self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        else:
            self.send_header("ETag", f'"{zlib.crc32(page)}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_GET = do_HEAD


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("CLIPS_STORAGE_RETRY_SECONDS", "0.2")
    web = Web("", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"web": web}))
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield web
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_list_may_name_videos_on_a_web_server(tmp_path: Path, web: Web) -> None:
    web.pages = {
        "/set/a.mp4": MP4,
        "/set/b dated.mp4": MP4,
        "/set/c.mp4?v=2": MP4,
        "/set/secret.mp4": 403,
    }
    web.pages["/set/b%20dated.mp4"] = web.pages.pop("/set/b dated.mp4")
    names = ("a.mp4", "b dated.mp4", "c.mp4?v=2", "none.mp4", "secret.mp4", "nolength.mp4")
    web.pages["/set/nolength.mp4"] = MP4
    text = "path,label\n" + "".join(f"{web.url}/set/{name},1\n" for name in names)
    (tmp_path / "l.csv").write_text(text)
    found = find_videos(str(tmp_path / "l.csv"))
    assert found.root == f"{web.url}/set"
    assert [(e.video_id, e.size, e.etag) for e in found.entries] == [
        ("a.mp4", len(MP4), str(zlib.crc32(MP4))),
        ("b dated.mp4", len(MP4), "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("c.mp4?v=2", len(MP4), str(zlib.crc32(MP4))),
    ]
    assert [(r.video_id, r.reason) for r in found.missing] == [
        ("nolength.mp4", "unsupported"),
        ("none.mp4", "missing"),
        ("secret.mp4", "denied"),
    ]
    row = examine(found.entries[0], root=found.root)
    assert isinstance(row, dict)
    assert row["frames"] == 24


def test_a_web_server_that_is_down_ends_the_listing_and_rejects_nothing(
    tmp_path: Path, web: Web
) -> None:
    web.pages = {"/a.mp4": MP4, "/b.mp4": 503}
    (tmp_path / "l.csv").write_text(f"path\n{web.url}/a.mp4\n{web.url}/b.mp4\n")
    with pytest.raises(
        StorageError, match=r"cannot reach the storage of http://127.0.0.1:\d+/b.mp4"
    ):
        find_videos(str(tmp_path / "l.csv"))
    (tmp_path / "l.csv").write_text(f"path\n{web.url}/a.mp4\nhttp://127.0.0.1:9/b.mp4\n")
    with pytest.raises(StorageError, match=r"cannot reach the storage of http://127.0.0.1:9/b.mp4"):
        find_videos(str(tmp_path / "l.csv"))


def test_a_single_video_and_a_list_on_a_web_server_are_sources(web: Web) -> None:
    web.pages = {"/set/a.mp4": MP4, "/set/l.csv": b"path\na.mp4\n"}
    for source in ("a.mp4", "l.csv"):
        found = find_videos(f"{web.url}/set/{source}")
        assert (found.root, ids(found)) == (f"{web.url}/set", ["a.mp4"])
    with pytest.raises(ValueError, match=r"^there is nothing at http.*/set/none.mp4; check the sp"):
        find_videos(f"{web.url}/set/none.mp4")


def test_videos_without_anything_in_common_stand_for_themselves(
    s3: Any, web: Web, tmp_path: Path
) -> None:
    make(tmp_path, "here.mp4")
    s3.buckets["videos"] = {"1.mp4": MP4}
    web.pages = {"/2.mp4": MP4}
    (tmp_path / "l.csv").write_text(f"path\ns3://videos/1.mp4\n{web.url}/2.mp4\nhere.mp4\n")
    found = find_videos(str(tmp_path / "l.csv"))
    assert found.root == ""
    assert ids(found) == [f"{tmp_path}/here.mp4", f"{web.url}/2.mp4", "s3://videos/1.mp4"]
    rows = [examine(entry, root=found.root) for entry in found.entries]
    manifest = Manifest.build(rows, root=found.root)  # pyright: ignore[reportArgumentType]
    assert manifest.root == ""
    assert [manifest.video(n).uri for n in range(3)] == ids(found)


def test_what_is_common_is_the_root_wherever_it_lies(s3: Any, tmp_path: Path) -> None:
    s3.buckets |= {
        "videos": {"a/1.mp4": MP4, "a/b/2.mp4": MP4, "x/3.mp4": MP4},
        "o": {"1.mp4": MP4},
    }
    (tmp_path / "l.csv").write_text("path\ns3://videos/a/1.mp4\ns3://videos/a/b/2.mp4\n")
    found = find_videos(str(tmp_path / "l.csv"))
    assert (found.root, ids(found)) == ("s3://videos/a", ["1.mp4", "b/2.mp4"])
    (tmp_path / "l.csv").write_text("path\ns3://videos/a/1.mp4\ns3://o/1.mp4\n")
    found = find_videos(str(tmp_path / "l.csv"))
    assert (found.root, ids(found)) == ("", ["s3://o/1.mp4", "s3://videos/a/1.mp4"])


SIGNED = "https://host/v.mp4?X-Amz-Signature=0badcafe&x=1"


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        (f"{SIGNED} 3", "the parameter 'X-Amz-Signature', which signs it"),
        ("https://me:0badcafe@host/v.mp4 3", "a user or password"),
        ("https://host/v.mp4?sv=2&sig=0badcafe 3", "the parameter 'sig', which"),
        ("gs://b/v.mp4?X-Goog-Signature=0badcafe 3", "the parameter 'X-Goog-Signature', which"),
    ],
)
def test_an_address_with_a_secret_is_refused_and_the_secret_not_told(
    tmp_path: Path, line: str, secret: str
) -> None:
    (tmp_path / "l.txt").write_text(f"a.mp4 1\n{line}\n")
    with pytest.raises(ValueError, match=r"l\.txt:2: \w+://\w+/v\.mp4 holds ") as caught:
        find_videos(str(tmp_path / "l.txt"))
    assert secret in str(caught.value)
    assert "it would stand readable in the manifest" in str(caught.value)
    assert "0badcafe" not in str(caught.value)


def test_no_other_mistake_tells_a_secret_either(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(f"{SIGNED}\n{SIGNED} 3 4\nhttps://me:0badcafe@h/v.mp4\n")
    (tmp_path / "l.csv").write_text(f"path,label\n{SIGNED},\n{SIGNED},1,2\n")
    for name in ("l.txt", "l.csv"):
        with pytest.raises(ValueError, match=r":2: ") as caught:
            find_videos(str(tmp_path / name))
        assert "0badcafe" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^source https://host/v.mp4 holds the") as caught:
        find_videos(SIGNED)
    with pytest.raises(ValueError, match=r"^root https://host/v holds a user") as caught:
        find_videos(str(tmp_path / "l.csv"), root="https://u:0badcafe@host/v")
    assert "0badcafe" not in str(caught.value)


# --- size ----------------------------------------------------------------------------------


def test_a_list_longer_than_a_part_is_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, *(f"\u00e9{i}.mp4" for i in range(20)))
    text = "".join(f"\u00e9{i}.mp4 {i}\n" for i in range(20))
    (tmp_path / "l.txt").write_text(text, encoding="utf-8")
    whole = find_videos(str(tmp_path / "l.txt")).entries
    for part in (1, 2, 7, 64):
        monkeypatch.setattr("clips.lists._WHOLE_BYTES", part)
        assert find_videos(str(tmp_path / "l.txt")).entries == whole
    assert len(whole) == 20


def test_a_list_of_which_nothing_is_there_says_where_it_looked(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a.mp4 1\nb.mp4 2\n")
    with pytest.raises(
        ValueError,
        match=r"^none of the 2 files that .*/l.txt names can be had, the first is /.*/a.mp4; root= is",
    ):
        find_videos(str(tmp_path / "l.txt"))


def test_a_scan_tells_how_many_files_it_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clips.sources._TOLD_EVERY", 3)
    make(tmp_path, *(f"{i}.mp4" for i in range(8)))
    seen: list[int] = []
    find_videos(str(tmp_path), progress=seen.append)
    assert seen == [3, 6]


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(MP4)
    with pytest.raises(
        ValueError, match=r"the name of '\\udcff.mp4' in .* is not UTF-8; rename it"
    ):
        find_videos(str(tmp_path))


def test_a_file_that_was_written_again_has_another_etag(tmp_path: Path) -> None:
    make(tmp_path, "v.mp4")
    before = find_videos(str(tmp_path)).entries
    assert before == find_videos(str(tmp_path)).entries
    os.utime(tmp_path / "v.mp4", ns=(1, 1))
    assert find_videos(str(tmp_path)).entries[0].etag == f"1-{len(MP4)}"
