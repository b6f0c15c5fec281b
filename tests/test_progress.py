"""What long tasks say on standard error: how far they are and how long they take on, and why kernels are compiled."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numba import njit

from bigrun import progress
from bigrun.progress import compiling, reporting
from bigrun_kernels.cpu import kernel_cache


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for kernels that is not there yet."""
    monkeypatch.setattr(kernel_cache, "folder", lambda: tmp_path / "caches" / "state")
    monkeypatch.setattr(kernel_cache, "home", lambda: tmp_path / "caches")
    monkeypatch.setattr(kernel_cache, "failures", [])
    return tmp_path / "caches" / "state"


def test_compiling_is_announced_and_timed(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with compiling(True):
        njit(lambda x: x + 1)(1)
        njit(lambda x: x + 2)(1)
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert first == "bigrun: first run: compiling kernels for this CPU, about half a minute, once"
    assert re.fullmatch(rf"  kernels compiled in \d+ s, kept in {re.escape(str(state))}", last)
    assert not out


def test_it_is_silent_where_nothing_is_compiled_or_shown_and_stops_listening(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with compiling(True):
        pass
    with compiling(False):
        njit(lambda x: x + 3)(1)
    njit(lambda x: x + 4)(1)
    assert capsys.readouterr() == ("", "")
    assert not state.exists(), "and no folder is made"


def test_it_says_that_kernels_cannot_be_kept(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state.parent.write_text("")
    with compiling(True):
        njit(lambda x: x + 5)(1)
    first, last = capsys.readouterr().err.splitlines()
    assert "at every start" in first
    assert "NUMBA_CACHE_DIR" in first
    assert "kept" not in last


def test_on_a_terminal_it_shows_how_far_it_is(
    state: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigrun_kernels.cpu import compile_times

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    seconds = iter([0.0, 0.0, 10.0, 10.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with compiling(True):
        (listener,) = [each for each in _listeners() if isinstance(each, compile_times.Watch)]
        listener.progress(0.0)
        listener.progress(0.25)
        listener.progress(None)
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert shown[1:] == ["  0 s", "  25%, about 30 s left", "  10 s", f"  kernels compiled in 40 s, kept in {state}\n"]


def _listeners() -> list[Any]:
    from numba.core import event

    return event._registered["numba:compile"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


@pytest.mark.parametrize(
    ("width", "shown"), [(120, "fetching a-model: shard-1"), (60, "fetching a-model: s…"), (30, "fetchin…")]
)
def test_a_bar_is_one_line_however_narrow(width: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    with reporting("fetching a-model", True) as report:
        report.expect(10**9)
        report.moved("shard-1", 10**8)
    drawn = [line for line in re.split(r"[\r\n]|\x1b\[[\d;?]*[A-Za-z]", terminal.getvalue()) if line.strip()]
    text = "".join(drawn)
    assert shown in text
    assert "0.1/1.0 GB" in text
    assert terminal.getvalue().count("\n") <= 1, "the line that the bar leaves"


def test_where_nothing_is_a_terminal_a_long_task_says_now_and_then_how_far_it_is(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with reporting("converting some-model", True) as report:
        report.expect(100 * 10**9)
        for _ in range(100):
            clock(1)
            report.moved("blocks.1", 10**9)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "bigrun: converting some-model: 10.0 GB of 100 GB (10%), about 90 s left",
        "bigrun: converting some-model: 40.0 GB of 100 GB (40%), about 60 s left",
        "bigrun: converting some-model: 70.0 GB of 100 GB (70%), about 30 s left",
    ]


def test_a_short_one_says_nothing(clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        with reporting("loading a-model", shown) as report:
            report.expect(100)
            for _ in range(10):
                clock(0.9 if shown else 9)
                report.moved("blocks.1", 10)
    assert capsys.readouterr() == ("", "")
