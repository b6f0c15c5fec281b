"""Which tests execute which lines of bigrun: recorded once, with coverage.py, for each state of its code."""

import ast
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".mutants"
FEW = 25
MOST_FAILED = 3  # tests that the tracing itself breaks, of memory and time


def state() -> str:
    """Of the code whose lines were executed. Tests that a record does not know are run whatever they execute."""
    digest = hashlib.sha256()
    for folder in ("bigrun", "kernels"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def record() -> Path:
    """The folder with the coverage of each test and the seconds that each takes, recorded unless it was."""
    folder = CACHE / state()
    if (folder / "durations.json").exists():
        return folder
    shutil.rmtree(CACHE, ignore_errors=True)
    folder.mkdir(parents=True)
    print("recording what each test executes, which takes some minutes", file=sys.stderr)
    (folder / ".coveragerc").write_text("[run]\nparallel = true\n")
    command = [
        "-m",
        "pytest",
        "--cov=bigrun",
        "--cov-context=test",
        "--cov-report=",
        f"--cov-config={folder}/.coveragerc",
    ]
    environment = os.environ | {"COVERAGE_FILE": str(folder / "coverage")}
    done = subprocess.run(
        [sys.executable, *command, "--durations=0", "-vv", "-p", "no:cacheprovider"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    failed = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if len(failed) > MOST_FAILED or done.returncode not in (0, 1):
        raise SystemExit(f"the tests fail as they are:\n{done.stdout[-3000:]}")
    print("".join(f"left out, since it fails under coverage: {line}\n" for line in failed), end="", file=sys.stderr)
    seconds: dict[str, float] = defaultdict(float)
    for line in done.stdout.splitlines():
        words = line.split(maxsplit=2)
        if len(words) == 3 and words[1] in ("call", "setup", "teardown") and words[0].endswith("s"):
            seconds[words[2]] += float(words[0][:-1])
    broken = [test for test in seconds if any(line.startswith(test) for line in failed)]
    kept = {test: spent for test, spent in seconds.items() if test not in broken}
    (folder / "durations.json").write_text(json.dumps({"seconds": kept, "broken": broken}))
    return folder


class Coverage:
    """Which tests execute a line: {module: {line: tests}}."""

    def __init__(self, folder: Path):
        from coverage.numbits import numbits_to_nums

        record = json.loads((folder / "durations.json").read_text())
        self.seconds: dict[str, float] = record["seconds"]
        self.broken: list[str] = record["broken"]  # by being traced
        self.lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for file in folder.glob("coverage*"):
            rows = sqlite3.connect(file).execute(
                "select path, context, numbits from line_bits join file on file.id = file_id "
                "join context on context.id = context_id where context != ''"
            )
            for path, context, bits in rows:
                module = str(Path(path).relative_to(ROOT))
                test, _, when = context.rpartition("|")
                if test not in self.seconds:
                    continue
                chosen = test if when == "run" else test.partition("::")[0]
                for number in numbits_to_nums(bits):
                    self.lines[module][number].add(chosen)

    def tests(self, module: str, line: int, text: str) -> list[str]:
        """Tests, or whole files of them, the quickest first; all tests of the module where it is executed once for all, at
        import or in a function that is cached, or in another process."""
        lines = self.lines[module]
        start, end = statement(text, line)
        found = set().union(*(lines[n] for n in range(start, end + 1) if n in lines))
        if not found or once(text, line):
            found = set().union(*lines.values()) or self._of_folder(module)
        if len(found) < FEW:  # others of their files may see it in processes that are not traced
            found |= {test.partition("::")[0] for test in found}
        return sorted(found, key=lambda test: ("::" not in test, self.seconds.get(test, 0.0)))

    def _of_folder(self, module: str) -> set[str]:
        """Tests of whatever lies beside a module of nothing but data."""
        folder = module.rpartition("/")[0] + "/"
        beside = [lines for name, lines in self.lines.items() if name.startswith(folder)]
        return set().union(*(tests for lines in beside for tests in lines.values()))


def statement(text: str, line: int) -> tuple[int, int]:
    """First and last line of the smallest statement around a line; of a compound one, up to its body."""
    best = (1, len(text.splitlines()))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno
            assert last is not None
            first, last = node.lineno, max(node.lineno, last)
            if first <= line <= last and last - first <= best[1] - best[0]:
                best = (first, last)
    return best


def once(text: str, line: int) -> bool:
    """Whether a line is in a function that keeps its answer, for whoever asks next."""
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
    around = [node for node in functions if node.lineno <= line <= (node.end_lineno or 0)]
    return any("cache" in ast.unparse(decorator) for node in around for decorator in node.decorator_list)
