"""What holds for every test."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bigrun import Runner

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: kernels run on the CPU (ahead.py compiles them)
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it in its workers, and a plan is as wide as it says
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on two cores, OpenMP threads that spin keep the others waiting
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background: tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_host_file() -> Iterator[None]:
    """No test, nor a process that it starts, reads what the developer's bigrun measured of the developer's machine, measures
    that machine on its first use, or writes to the developer's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGRUN_HOST", "none")
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer. Whoever changes it works on a copy."""
    from support.checkpoints import llama

    folder = tmp_path_factory.mktemp("session") / "tiny"
    llama(folder, tokenizer=True)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Iterator["Runner"]:
    """The demo model on this host, as `bigrun generate` runs it; for whoever changes nothing of the Runner."""
    from bigrun import Runner

    with Runner(progress=False) as runner:
        yield runner
