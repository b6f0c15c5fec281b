"""Plant single mistakes in bigrun at random, and see whether the tests notice: `make mutants`.

    python tests/mutants.py [--count 60] [--seed 0] [--packages planning,model,checkpoint,text] [--out mutants.json]
    python tests/mutants.py --again mutants.json      # what survived there, with the tests of today

A mutant is one place of the code (uniformly drawn) changed by one of cosmic-ray's operators that apply there (drawn too): an
operator, a number, a comparison, `and`, `not`, `True`, an exception that is caught, a loop that is not gone through. Types and
messages are left alone. Tests are chosen by coverage (support/covering.py): those that execute the line, the quickest first,
where a fixture executes it, all of its file, and tests that were written since it was recorded. A mutant is killed when one of
them fails, or all of them take three times as long as they should. Results are kept in --out: the change, and what killed it.
"""

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.covering import CACHE, ROOT, Coverage, record

PACKAGES = "planning,model,checkpoint,text"
COPIED = ("bigrun", "kernels", "tests", "benchmarks", "docs", "examples", "pyproject.toml", "README.md", "CHANGELOG.md")
# A decorator that is gone is mostly a cache less; the variable operators need to be told of variables.
LEFT_OUT = ("RemoveDecorator", "VariableReplacer", "VariableInserter")
NO_TESTS = 5  # pytest's status where it found none to run
SELECTED = "BIGRUN_SELECTED_TESTS"
KILLED, SURVIVED, UNCOVERED = "killed", "survived", "not executed by any test"
Span = tuple[tuple[int, int], tuple[int, int]]


@dataclass
class Mutant:
    module: str
    line: int
    operator: str
    occurrence: int
    diff: str = ""
    outcome: str = ""
    tests: int = 0
    seconds: float = 0.0
    by: str = ""


# ------------------------------------------------------------------------------------------------------ what can be changed


def annotations(source: str) -> Iterator[Span]:
    """Types, which nothing executes."""
    for node in ast.walk(ast.parse(source)):
        found = [getattr(node, name, None) for name in ("annotation", "returns")]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp | ast.Subscript):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            found += [node.value] if names and all(name[0].isupper() and not name.isupper() for name in names) else []
        for inner in found:
            if isinstance(inner, ast.expr):
                assert inner.end_lineno is not None
                assert inner.end_col_offset is not None
                yield (inner.lineno, inner.col_offset), (inner.end_lineno, inner.end_col_offset)


def places(module: Path) -> dict[Span, list[tuple[str, int]]]:
    """Place → the operators that apply there, each with its count of earlier places."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = module.read_text()
    types = list(annotations(source))
    nodes = list(ast_nodes(get_ast(source)))
    found: dict[Span, list[tuple[str, int]]] = defaultdict(list)
    for name in operator_names():
        if name.endswith(LEFT_OUT):
            continue
        operator, count = get_operator(name)(), 0
        for node in nodes:
            for place in operator.mutation_positions(node):
                if not any(start <= place[0] and place[1] <= end for start, end in types):
                    found[place].append((name, count))
                count += 1
    return found


def drawn(packages: str, count: int, seed: int) -> list[Mutant]:
    modules = [file for name in packages.split(",") for file in sorted((ROOT / "bigrun" / name).rglob("*.py"))]
    all_places = [(module, place, names) for module in modules for place, names in sorted(places(module).items())]
    draw = random.Random(seed)
    print(f"{len(all_places)} places in {len(modules)} files of {packages}", file=sys.stderr)
    chosen = draw.sample(all_places, min(count, len(all_places)))
    return [
        Mutant(str(module.relative_to(ROOT)), place[0][0], *draw.choice(sorted(names)))
        for module, place, names in chosen
    ]


def changed(mutant: Mutant) -> str:
    """The module's text with the mistake; its difference goes into the mutant."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    before = (ROOT / mutant.module).read_text()
    after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
    assert after is not None
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    mutant.diff = "\n".join(line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---"))
    return str(after)


# -------------------------------------------------------------------------------------------------- trying it


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """As a plugin of pytest: the tests of a file of names, in its order."""
    selection = json.loads(Path(os.environ[SELECTED]).read_text())
    order, known = {name: number for number, name in enumerate(selection["tests"])}, set(selection["known"])

    def rank(name: str) -> int | None:
        if name in selection["broken"]:
            return None
        return order.get(name, order.get(name.partition("::")[0], None if name in known else -1))

    ranked = [(rank(item.nodeid), item) for item in items]
    kept = [(rank, number, item) for number, (rank, item) in enumerate(ranked) if rank is not None]
    config.hook.pytest_deselected(items=[item for rank, item in ranked if rank is None])
    items[:] = [item for _, _, item in sorted(kept, key=lambda entry: entry[:2])]


def tree(folder: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)  # with what Numba has compiled
        else:
            shutil.copy2(source, folder / name)
    return folder


def attempt(mutant: Mutant, coverage: Coverage, folder: Path) -> Mutant:
    """Run the tests of a mutant in a copy of the tree."""
    text, after = (ROOT / mutant.module).read_text(), changed(mutant)
    tests = coverage.tests(mutant.module, mutant.line, text)
    mutant.tests = len(tests)
    if not tests:
        mutant.outcome = UNCOVERED
        return mutant
    path = folder / mutant.module
    path.write_text(after)
    selection = folder / "selected"
    selection.write_text(json.dumps({"tests": tests, "known": list(coverage.seconds), "broken": coverage.broken}))
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    recorded = {test.partition("::")[0] for test in coverage.seconds}
    files += sorted(
        str(f.relative_to(ROOT)) for f in (ROOT / "tests").glob("test_*.py") if f"tests/{f.name}" not in recorded
    )
    should = 60 + sum(coverage.seconds.get(test, 0.0) for test in tests if "::" in test)
    should += sum(s for test, s in coverage.seconds.items() if test.partition("::")[0] in tests)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (folder, folder / "kernels", folder / "tests"))), SELECTED: str(selection),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-n",
        "0",
        "-p",
        "mutants",
        "-p",
        "no:cacheprovider",
        "--durations=0",
    ]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, *files], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=3 * should)
        failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        mutant.outcome = {0: SURVIVED, NO_TESTS: UNCOVERED}.get(process.returncode, KILLED)
        mutant.by = (failed or [output[-300:] if process.returncode else ""])[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        mutant.outcome, mutant.by = KILLED, f"no end in {3 * should:.0f} s"
    mutant.seconds = round(time.monotonic() - started, 1)
    path.write_text(text)
    return mutant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", default=PACKAGES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=CACHE / "mutants.json")
    parser.add_argument("--again", type=Path, metavar="RESULTS", help="try what survived in these results")
    options = parser.parse_args()
    coverage = Coverage(record())
    if options.again:
        before = json.loads(options.again.read_text())
        options.seed, options.packages = before["seed"], before["packages"]
        kept = [Mutant(**entry) for entry in before["mutants"]]
        mutants = [mutant for mutant in kept if mutant.outcome != KILLED]
    else:
        mutants = drawn(options.packages, options.count, options.seed)
    with tempfile.TemporaryDirectory(prefix="bigrun-mutants-") as home, ThreadPoolExecutor(options.workers) as pool:
        free = [tree(Path(home) / str(number)) for number in range(options.workers)]

        def one(mutant: Mutant) -> Mutant:
            folder = free.pop()
            try:
                return attempt(mutant, coverage, folder)
            finally:
                free.append(folder)

        for number, mutant in enumerate(pool.map(one, mutants), 1):
            print(
                f"{number:3}  {mutant.outcome}: {mutant.module}:{mutant.line} by {mutant.tests} tests in {mutant.seconds} s"
            )
            print(f"     {mutant.diff}\n     {mutant.by}".replace("\n", "\n     "), flush=True)
    killed = sum(mutant.outcome == KILLED for mutant in mutants)
    options.out.parent.mkdir(exist_ok=True)
    results = {"seed": options.seed, "packages": options.packages, "mutants": [asdict(mutant) for mutant in mutants]}
    options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    print(
        f"{killed} of {len(mutants)} killed ({killed / max(1, len(mutants)):.0%}), seed {options.seed}; {options.out}"
    )


if __name__ == "__main__":
    main()
