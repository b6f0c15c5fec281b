"""How a process ends where what it talks to is gone: a closed pipe, a full device, no streams at all, a signal.

Each is the program as users start it. What Python itself does at its end (flush standard output once more, and end with
120 if that fails) is seen by no call within a process.
"""

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from support.checkpoints import llama, write_tokenizer
from support.commands import PROGRAM

PLAN = ("plan", "--model", "opt-6.7b", "--gpus", "24GB", "--cpu", "1GB")
TOO_SMALL = ("plan", "--model", "opt-6.7b", "--gpus", "none", "--cpu", "1GB")
BUFFERED, UNBUFFERED = "", "1"  # PYTHONUNBUFFERED: users have the first, containers often the second
SECONDS = 60  # of any wait here: what takes a second does not take this long


def environment(unbuffered: str = BUFFERED) -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": unbuffered}


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that no token ends: it writes until its context is full."""
    folder = tmp_path_factory.mktemp("endings") / "llama"
    llama(folder, context=16384, eos_token_id=None)
    write_tokenizer(folder, eos_token=None)
    return folder


def generate(model: Path) -> tuple[str, ...]:
    rig = ("--gpus", "none", "--cpu", "1GB", "--context", "16384", "--quiet")
    return (
        "generate",
        "--model",
        str(model),
        *rig,
        "--prompt",
        "the",
        "--max-new-tokens",
        "16000",
        "--temperature",
        "1",
    )


def ended_with(stdout: int | IO[str], *args: str, unbuffered: str = BUFFERED) -> tuple[int, str]:
    """(status, standard error) of a command whose standard output is this."""
    done = subprocess.run(
        [*PROGRAM, *args], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=SECONDS,
        env=environment(unbuffered),
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("args", "unbuffered"),
    [
        (PLAN, BUFFERED),
        (PLAN, UNBUFFERED),
        ((*PLAN, "--json"), BUFFERED),
        (TOO_SMALL, BUFFERED),
        (("inspect", "smollm2-135m", "--json"), BUFFERED),
        (("plan", "--help"), BUFFERED),
    ],
    ids=["plan", "plan unbuffered", "plan --json", "plan that does not fit", "inspect", "--help"],
)
def test_a_pipe_that_nobody_reads_ends_with_141_and_in_silence(args: tuple[str, ...], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert ended_with(writing, *args, unbuffered=unbuffered) == (141, "")
    finally:
        os.close(writing)


@pytest.mark.parametrize(
    ("args", "unbuffered"),
    [(PLAN, BUFFERED), (PLAN, UNBUFFERED), ((*TOO_SMALL, "--json"), BUFFERED)],
    ids=["plan", "plan unbuffered", "plan --json that does not fit"],
)
def test_a_full_device_ends_with_1_and_a_line_that_says_so(args: tuple[str, ...], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        status, said = ended_with(full, *args, unbuffered=unbuffered)
    assert status == 1
    (line,) = said.splitlines()
    assert line.startswith("bigrun: standard output")
    assert line.endswith("No space left on device")
    assert "bug" not in line


def shell(redirection: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A command whose streams a shell closes or turns elsewhere."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *PROGRAM, *args]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, env=environment()
    )


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"], ids=["closed", "full"])
def test_a_standard_error_that_takes_nothing_changes_neither_the_status_nor_standard_output(redirection: str) -> None:
    done = shell(redirection, "plan", "--model", "nosuch")
    assert (done.returncode, done.stdout) == (2, "")


def test_without_standard_output_a_command_is_done_all_the_same() -> None:
    done = shell(">&-", *PLAN)
    assert (done.returncode, done.stderr) == (0, "")


def test_without_standard_input_there_is_no_prompt(talkative: Path) -> None:
    done = shell("<&-", "generate", "--model", str(talkative), "--gpus", "none", "--cpu", "1GB", "--quiet")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "--prompt" in line


@contextmanager
def generating(model: Path) -> Iterator[Any]:
    """A process that is in the middle of its answer: its first bytes are there, and it cannot write all of the others, as
    the pipe is small and nobody reads on."""
    process = subprocess.Popen(
        [*PROGRAM, *generate(model)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    alarm = signal.signal(signal.SIGALRM, lambda *_: process.kill())  # the read below has no timeout of its own
    signal.alarm(SECONDS)
    try:
        assert os.read(process.stdout.fileno(), 1), "it wrote nothing"
        yield process
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        process.kill()
        process.communicate(timeout=SECONDS)


def test_a_reader_that_leaves_in_the_middle_of_an_answer_ends_it_with_141(talkative: Path) -> None:
    with generating(talkative) as process:
        process.stdout.close()
        assert process.wait(SECONDS) == 141
        assert process.stderr.read() == b""
        process.stdout = None


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, ["bigrun: interrupted"]), (signal.SIGTERM, -signal.SIGTERM, [])],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_signal_in_the_middle_of_an_answer_ends_it_without_a_traceback(
    talkative: Path, number: int, status: int, said: list[str]
) -> None:
    with generating(talkative) as process:
        process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == status
        # a blank line comes first: it ends that of a terminal's ^C
        assert [line for line in errors.decode().splitlines() if line] == said
