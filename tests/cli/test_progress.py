"""Progress as a terminal and as a log see it."""

import io
import itertools
import re

import pytest

from nova3d.cli import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_at_every_tenth_and_nothing_after_the_end() -> None:
    stream, now = io.StringIO(), [0.0]
    update = progress._lines(stream, lambda: now[0])
    for step in range(1, 41):
        now[0] = step
        update(step, 40, f"sampling, step {step}")
    update(40, 40, "sampling, step 40")
    update(40, 40, "sampling")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "sampling: 2 % (0:00)" and lines[-1] == "sampling: 100 % (0:39)"
    shares = [int(re.search(r"(\d+) %", line)[1]) for line in lines]
    assert len(lines) == 11 and all(b - a >= 8 for a, b in itertools.pairwise(shares))


def test_a_log_gets_a_line_at_every_half_minute_of_slow_work_and_at_every_stage() -> None:
    stream, now = io.StringIO(), [0.0]
    update = progress._lines(stream, lambda: now[0])
    for second in range(100):
        now[0] = second
        update(1, 100, "fitting, step 7")
    update(80, 100, "painting the texture")
    now[0] = 3760.0
    update(100, 100, "done")
    update(0, 5, "writing")  # the next piece of work begins anew
    assert stream.getvalue().splitlines() == [
        "fitting: 1 % (0:00)",
        "fitting: 1 % (0:30)",
        "fitting: 1 % (1:00)",
        "fitting: 1 % (1:30)",
        "painting the texture: 80 % (0:00)",
        "painting the texture: 100 % (1:01:01)",
        "writing: 0 % (0:00)",
    ]


def test_a_terminal_keeps_one_line_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with progress.progress_bar("generating", stream) as update:
        for step in range(1, 4):
            update(step, 3, "sampling")
        for step in range(0, 81, 20):
            update(step, 100, f"fitting, step {step}")
        update(80, 100, "painting the texture")
        update(100, 100, "done")
        update(100, 100, "done")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    kept = re.findall(r"^\s*(\w[\w ]*?) (\d+:\d\d)\s*$", text.replace("\r", "\n"), re.MULTILINE)
    assert [name for name, _ in kept] == ["sampling", "fitting", "painting the texture"]
    assert "done" not in text
    assert "100%" not in text[text.rindex("painting the texture 0:00") :]


def test_a_bar_goes_away_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(RuntimeError, match="full"), progress.progress_bar("packing", stream) as update:
        update(1, 3, "packing")
        raise RuntimeError("the disk is full")
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")  # the cursor is back


def test_work_whose_first_word_is_its_last_takes_no_time() -> None:
    stream = io.StringIO()
    progress._lines(stream, lambda: 5000.0)(3, 3, "training")
    assert stream.getvalue() == "training: 100 % (0:00)\n"
