"""What reaches the terminal, what reaches the log, and how numbers read."""

import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tubelet import terminal
from tubelet.terminal import (
    format_duration,
    format_facts,
    format_progress,
    format_rate,
    format_table,
    progress,
)

NOISE = """
import ctypes, logging, os, subprocess, sys
from tubelet import terminal

def noise():
    print("from print")
    print("from stderr", file=sys.stderr)
    os.write(1, b"from a descriptor\\n")
    ctypes.CDLL(None).puts(b"from C")
    subprocess.run(["sh", "-c", "echo from a child; echo from its stderr >&2"], check=True)
    logging.getLogger("ray.train").info("from logging")
    terminal.say("said [bold]so[/bold]")
"""
NOISES = (
    "from print", "from stderr", "from a descriptor", "from C", "from a child",
    "from its stderr", "INFO ray.train: from logging",
)  # fmt: skip


def run(body: str, tmp_path: Path, **options: object) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(NOISE + textwrap.dedent(body))
    settings: dict[str, object] = {
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "check": False,
        "cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(PLATFORM), "COLUMNS": "100"},
    }  # fmt: skip
    return subprocess.run([sys.executable, str(script)], **{**settings, **options})  # pyright: ignore


PLATFORM = Path(terminal.__file__).parents[1]


def test_only_our_own_words_pass_and_everything_else_is_logged(tmp_path: Path) -> None:
    done = run(
        """
        with terminal.console_and_log("logs/job.log"):
            noise()
            terminal.complain("complained")
        print("after")
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("said [bold]so[/bold]\nafter\n", "complained\n")
    log = (tmp_path / "logs/job.log").read_text()
    assert [text for text in NOISES if text not in log] == []
    assert "said" not in log


def test_output_may_be_a_file_and_the_log_is_appended_to(tmp_path: Path) -> None:
    (tmp_path / "job.log").write_text("earlier\n")
    with open(tmp_path / "out", "w") as out:
        run("with terminal.console_and_log('job.log'): noise()", tmp_path, stdout=out)
    assert (tmp_path / "out").read_text() == "said [bold]so[/bold]\n"
    assert (tmp_path / "job.log").read_text().startswith("earlier\n")


def test_a_context_inside_another_changes_nothing(tmp_path: Path) -> None:
    done = run(
        """
        with terminal.console_and_log("outer.log"):
            with terminal.console_and_log("inner.log"):
                noise()
            noise()
        noise()
        """,
        tmp_path,
    )
    assert done.stdout.count("said") == 3
    assert done.stdout.count("from print") == 1
    assert (tmp_path / "outer.log").read_text().count("from print") == 2
    assert not (tmp_path / "inner.log").exists()


def test_an_exception_leaves_its_traceback_in_the_log_and_the_streams_restored(
    tmp_path: Path,
) -> None:
    done = run(
        """
        try:
            with terminal.console_and_log("job.log"):
                raise RuntimeError("broke")
        except RuntimeError:
            print(terminal.tail("job.log", lines=1))
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("RuntimeError: broke\n", "")
    assert "Traceback" in (tmp_path / "job.log").read_text()


def test_a_daemon_that_outlives_the_job_does_not_hold_its_callers_pipe(tmp_path: Path) -> None:
    body = """
        with terminal.console_and_log("job.log"):
            subprocess.Popen(["sleep", "5"], close_fds=False)
        """
    assert run(body, tmp_path, timeout=4).returncode == 0


def test_a_terminal_gets_one_live_line_with_a_bar(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    body = """
        with terminal.console_and_log("job.log"):
            with terminal.progress("pretrain", 4) as bar:
                for step in range(1, 5):
                    os.write(1, b"noise\\n")
                    bar.update(step, "loss 0.5")
            terminal.say("done")
        """
    env = {**os.environ, "PYTHONPATH": str(PLATFORM), "TERM": "xterm"}
    done = run(body, tmp_path, stdout=slave, stdin=slave, env=env)
    assert done.stderr == ""
    os.close(slave)
    seen = b""
    try:
        while piece := os.read(master, 2**16):
            seen += piece
    except OSError:  # Linux ends a pty of which the other side is closed with EIO
        os.close(master)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r", "\n").split("\n")
    assert "noise" not in lines
    assert "done" in lines
    final = [line for line in lines if line.startswith("pretrain")][-1]
    assert "\u2501" * 20 in final
    assert "4/4 steps  100%  loss 0.5" in final


def test_the_name_of_a_file_can_do_nothing_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.say("clip \x1b[2J\udcff.mp4: fine\tline\nnext")
    terminal.complain("error: \x07")
    captured = capsys.readouterr()
    assert captured.out.replace("\t", " ").split() == ["clip", "?[2J?.mp4:", "fine", "line", "next"]
    assert captured.err == "error: ?\n"


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_there_is_a_line_now_and_then_and_the_first_and_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with progress("pretrain", 100, done=10, clock=clock, every=10) as bar:
        for step in range(11, 31):
            clock.now += 2
            bar.update(step, format_facts(loss=1 / step))
    assert capsys.readouterr().out.splitlines() == [
        "pretrain  11/100 steps  11%  loss 0.0909",
        "pretrain  16/100 steps  16%  loss 0.0625  ETA 2m 48s",
        "pretrain  21/100 steps  21%  loss 0.0476  ETA 2m 38s",
        "pretrain  26/100 steps  26%  loss 0.0385  ETA 2m 28s",
        "pretrain  30/100 steps  30%  loss 0.0333  ETA 2m 20s",
    ]


def test_the_last_state_is_shown_once_even_when_the_work_breaks_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken() -> None:
        with progress("scan", None, unit="files", clock=Clock()) as bar:
            bar.update(1)
            bar.update(2)
            raise KeyError("x")

    with pytest.raises(KeyError):
        broken()
    with progress("scan", 1, unit="files", clock=Clock()) as bar:
        bar.update(1)
    assert capsys.readouterr().out.splitlines() == [
        "scan  1 files",
        "scan  2 files",
        "scan  1/1 files  100%",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"),
        (59.6, "1m 00s"), (125, "2m 05s"), (3599.4, "59m 59s"), (3599.6, "1h 00m"),
        (3750, "1h 02m"), (86_370, "1d 00h"), (86_300, "23h 58m"), (273_000, "3d 04h"),
    ],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.246, "0.25 clips/s"), (0.996, "1.0 clips/s"), (3.14, "3.1 clips/s"),
        (9.96, "10 clips/s"), (312.4, "312 clips/s"), (12_345.0, "12.3k clips/s"),
    ],
)  # fmt: skip
def test_rates_keep_two_or_three_figures(rate: float, text: str) -> None:
    assert format_rate(rate, "clips") == text


def test_the_facts_of_a_step_are_those_that_are_known() -> None:
    facts = format_facts(loss=0.71239, clips_per_second=312.4, wait=0.043)
    assert facts == "loss 0.7124  312 clips/s  data wait 4%"
    assert format_facts() == ""


def test_a_progress_line_shows_rate_and_time_left_only_where_they_are_known() -> None:
    assert format_progress(3, 12, "files", rate=1.5) == "3/12 files  25%  1.5 files/s  ETA 6.0s"
    assert format_progress(12, 12, "files", rate=1.5) == "12/12 files  100%  1.5 files/s"
    assert format_progress(3, None, "files", rate=1.5) == "3 files  1.5 files/s"
    assert format_progress(0, 0, "files") == "0/0 files"


def test_a_table_aligns_numbers_right_and_words_left() -> None:
    rows = [("pretrained", "71.5", "-"), ("scratch", "8.25", "-1")]
    assert format_table(("model", "top-1", "gain"), rows) == [
        "model       top-1  gain",
        "----------  -----  ----",
        "pretrained   71.5     -",
        "scratch      8.25    -1",
    ]


def test_the_tail_of_a_long_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("".join(f"line {number}\n" for number in range(20_000)))
    assert terminal.tail(log, lines=2) == "line 19998\nline 19999"
    log.write_text("one\n")
    assert terminal.tail(log) == "one"


def test_last_words_of_what_is_closed_go_to_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with terminal.console_and_log(tmp_path / "job.log"):
        terminal.when_closing(lambda: os.write(1, b"Ray says goodbye\n"))
        terminal.say("done")
    assert "Ray says goodbye" in (tmp_path / "job.log").read_text()
    assert capfd.readouterr().out == "done\n"


def test_without_a_log_nothing_is_closed_early() -> None:
    closed: list[str] = []
    terminal.when_closing(lambda: closed.append("too early"))
    assert closed == []
