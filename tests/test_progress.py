"""What a first run says of its compiling."""

import pytest
from numba import njit

from bigrun.progress import compiling


def test_compiling_is_announced_counted_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    with compiling(True):
        njit(lambda x: x + 1)(1)
        njit(lambda x: x + 2)(1)
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert first.startswith("first run: compiling kernels")
    assert last.strip().startswith("2 kernels compiled in ")
    assert not out


def test_it_is_silent_where_it_is_not_shown_and_stops_listening(capsys: pytest.CaptureFixture[str]) -> None:
    with compiling(False):
        njit(lambda x: x + 3)(1)
    with compiling(True):
        pass
    njit(lambda x: x + 4)(1)
    assert "  0 kernels compiled" in capsys.readouterr().err
