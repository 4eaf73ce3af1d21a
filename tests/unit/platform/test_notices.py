"""What the controller tells the driver."""

from pathlib import Path

import pytest

from tubelet.notices import NoticeReader, Notices


def test_the_driver_sees_each_notice_once_and_none_from_before(tmp_path: Path) -> None:
    file = str(tmp_path / "spool" / "notices.jsonl")
    notices = Notices(file)
    notices.say("of an earlier start")
    reader = NoticeReader(file)
    assert list(reader) == []
    notices.say("one\ntwo")
    notices.say("three")
    assert list(reader) == ["one\ntwo", "three"]
    assert list(reader) == []


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "notices.jsonl"
    reader = NoticeReader(str(file))
    file.write_text('{"unix_s": 1, "text": "wh')
    assert list(reader) == []
    with file.open("a") as end:
        end.write('ole"}\n')
    assert list(reader) == ["whole"]


def test_where_nothing_can_be_written_the_work_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "full").write_text("")  # stands for a disk that takes nothing
    Notices(str(tmp_path / "full" / "notices.jsonl")).say("starting again")
    assert "notices.jsonl: [Errno" in caplog.text
