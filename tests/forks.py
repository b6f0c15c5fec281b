"""Commands of the command line, each in a process of its own that need not import bigrun first: a child of one that has.

with forking("bigrun.dry_run") as run:
    done = run(["plan", "--model", "opt-6.7b"], environment)

What is imported beforehand is bigrun, the libraries that it computes with, and what is named; huggingface_hub, which reads
the environment as it is imported, is not, so that the child's is what counts.
"""

import json
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

SERVER = """
import importlib, json, os, sys, traceback
from bigrun.cli import main
for name in sys.argv[1:]:
    importlib.import_module(name)
assert "huggingface_hub" not in sys.modules
def child(arguments, environment, out, err):
    os.dup2(out, 1), os.dup2(err, 2)
    sys.stdin = open(os.devnull)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["bigrun", *arguments]
    status = 70
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)
print("ready", flush=True)
for line in sys.stdin:
    files = [os.memfd_create(name) for name in ("out", "err")]
    pid = os.fork()
    if not pid:
        child(*json.loads(line), *files)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = [os.pread(file, 1 << 24, 0).decode() for file in files]
    for file in files:
        os.close(file)
    print(json.dumps([status, *said]), flush=True)
"""
SECONDS = 120  # a command that takes longer hangs

Run = Callable[[Sequence[str], Mapping[str, str]], "subprocess.CompletedProcess[str]"]


@contextmanager
def forking(*modules: str) -> Iterator[Run]:
    command = [sys.executable, "-c", SERVER, *modules]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stdin: Any = process.stdin
    stdout: Any = process.stdout

    def line() -> str:
        assert select.select([stdout], [], [], SECONDS)[0], f"no answer within {SECONDS} seconds"
        return str(stdout.readline())

    def run(arguments: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        print(json.dumps([list(arguments), dict(environment)]), file=stdin, flush=True)
        status, out, err = json.loads(line())
        return subprocess.CompletedProcess(list(arguments), status, out, err)

    try:
        assert line() == "ready\n"
        yield run
    finally:
        process.kill()
        process.wait(30)
