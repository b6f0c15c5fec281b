"""Draw thousands of checkpoints, tokenizers and conversations, and hold bigrun's answers beside transformers'.

    python benchmarks/differential.py --count 5000 --seed 1
    python benchmarks/differential.py --single                    # each change that the tables know, alone
    python benchmarks/differential.py --replay '{"family": …}'    # as a failure printed it

A case is made from its seed and number alone. Each is agreed (logits within 1e-4 of the largest in float32; ids and text
equal), refused (with a message that names a field, a tensor or a file), alone (transformers refuses what bigrun runs) or
wrong; tests/support/differential.py says how that is judged. Cases run in worker processes: one that dies or hangs is wrong
too. Verdicts are appended to --out as they come, and a run that was broken off goes on from there. Ends with 1 if any is wrong.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "BIGRUN_HOST": os.devnull + "/none",
}  # fmt: skip
TEXTS = 4  # of so many cases, one is of a tokenizer
PATIENCE = 60  # seconds for a case, its reduction included; most take a tenth of one
WARMING = 900  # seconds for the first, which may compile every kernel
SHOWN = 40  # lines of refusals


@cache
def single_cases() -> tuple[tuple[str, Any], ...]:
    """Each change of the tables, of models and then of tokenizers."""
    from support import differential, differential_text

    models, texts = differential.every_single_change(), differential_text.every_single_text_change()
    return (*(("model", case) for case in models), *(("text", case) for case in texts))


def case_of(seed: str, number: int, single: bool) -> tuple[str, Any]:
    """("model" or "text", the case)."""
    from support import differential, differential_text

    if single:
        return single_cases()[number]
    random = Random(f"{seed}:{number}")
    if number % TEXTS == TEXTS - 1:
        return "text", differential_text.draw_text_case(random)
    return "model", differential.draw_case(random)


def judged(kind: str, case: Any, scratch: Path) -> dict[str, Any]:
    """The verdict on a case, of a wrong one in its smallest form, as it is written down."""
    from support import differential, differential_text

    module: Any = differential if kind == "model" else differential_text
    verdict = module.judge(case, scratch / "case")
    if verdict.outcome == "wrong":
        least, again = module.smallest(case, scratch)
        if again.outcome == "wrong":
            case, verdict = least, again
    ours = verdict.ours.replace(f"{scratch / 'case'}", "MODEL").replace(f"{scratch / 'smaller'}", "MODEL")
    return {
        "kind": kind, "outcome": verdict.outcome, "case": json.loads(case.json()), "theirs": verdict.theirs, "ours": ours,
    }  # fmt: skip


def work(link: Connection, seed: str, single: bool) -> None:
    """A worker: takes numbers, gives verdicts, until it is told None."""
    import torch

    torch.set_num_threads(1)
    scratch = Path(tempfile.mkdtemp(prefix="differential-"))
    try:
        while (number := link.recv()) is not None:
            link.send(judged(*case_of(seed, number, single), scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class Worker:
    """A process, the case that it has, and when it is to be given up."""

    def __init__(self, seed: str, single: bool):
        self.seed, self.single = seed, single
        self.number: int | None = None
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.link, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.seed, self.single), daemon=True)
        self.process.start()
        theirs.close()
        self.patience = WARMING

    def give(self, number: int) -> None:
        self.number, self.deadline = number, time.monotonic() + self.patience
        self.patience = PATIENCE
        self.link.send(number)

    def taken(self) -> dict[str, Any] | None:
        """The verdict if there is one; that of a process which died, or was late and is ended, is wrong."""
        late = time.monotonic() > self.deadline
        if not late and not self.link.poll() and self.process.is_alive():
            return None
        try:
            if late:
                raise EOFError
            verdict: dict[str, Any] = self.link.recv()
        except (EOFError, OSError):
            self.process.join(0 if late else 5)  # one that ended by itself has a status
            self.process.kill()
            self.process.join()
            why = f"no answer in {PATIENCE} s" if late else f"its process ended with {self.process.exitcode}"
            kind, case = case_of(self.seed, self.number or 0, self.single)
            verdict = {"kind": kind, "outcome": "wrong", "case": json.loads(case.json()), "theirs": "", "ours": why}
            self.start()
        self.number = None
        return verdict

    def end(self) -> None:
        self.link.send(None)
        self.process.join(20)


def run(seed: str, numbers: list[int], jobs: int, single: bool, out: Path) -> None:
    """Judge these cases, and append each verdict to `out`."""
    workers = [Worker(seed, single) for _ in range(min(jobs, len(numbers)))]
    waiting, started, done = iter(numbers), time.monotonic(), 0
    with out.open("a") as stream:
        for worker in workers:
            worker.give(next(waiting))
        while any(worker.number is not None for worker in workers):
            wait([worker.link for worker in workers if worker.number is not None], timeout=1)
            for worker in workers:
                number = worker.number
                if number is None or (verdict := worker.taken()) is None:
                    continue
                stream.write(json.dumps({"number": number, **verdict}) + "\n")
                stream.flush()
                done += 1
                if verdict["outcome"] == "wrong":
                    print(f"wrong: {json.dumps(verdict['case'])}\n  transformers: {verdict['theirs'][:300]}")
                    print(f"  bigrun: {verdict['ours'][:300]}", flush=True)
                if done % 250 == 0:
                    print(f"{done} of {len(numbers)} in {time.monotonic() - started:.0f} s", flush=True)
                if (following := next(waiting, None)) is not None:
                    worker.give(following)
    for worker in workers:
        worker.end()


def verdicts_in(out: Path) -> list[dict[str, Any]]:
    """What was written so far; a last line that was cut short is taken away."""
    if not out.exists():
        return []
    whole, _, rest = out.read_text().rpartition("\n")
    if rest:
        out.write_text(f"{whole}\n" if whole else "")
    return [json.loads(line) for line in whole.split("\n") if line]


def report(verdicts: list[dict[str, Any]]) -> None:
    """Counts as Markdown: outcomes, then what was refused though transformers runs it, by its subject."""
    from support.differential import subject

    outcomes = ("agreed", "refused", "alone", "wrong")
    print(f"\n| | cases | {' | '.join(outcomes)} |\n|---|---|{'---|' * len(outcomes)}")
    for kind in ("model", "text"):
        counts = Counter(verdict["outcome"] for verdict in verdicts if verdict["kind"] == kind)
        print(f"| {kind} | {counts.total()} | {' | '.join(str(counts[outcome]) for outcome in outcomes)} |")
    beyond = ("refused", "not asked")  # and answers with weights made up, or of no numbers, are none to agree with
    refused = [each for each in verdicts if each["outcome"] == "refused" and not each["theirs"].startswith(beyond)]
    refused = [each for each in refused if "made up" not in each["theirs"] and "no numbers" not in each["theirs"]]
    print(f"\nOf those refused, transformers runs {len(refused)} to numbers, with all their weights:\n")
    subjects = Counter(subject(verdict["ours"].rpartition("refused: ")[2]) for verdict in refused)
    for name, count in subjects.most_common(SHOWN):
        print(f"  {count:5} {name}")
    if len(subjects) > SHOWN:
        print(f"        and {len(subjects) - SHOWN} subjects more")


def replay(text: str) -> int:
    """Judge one case, written as JSON; its files stay."""
    from support import differential, differential_text, differential_tokenizers

    folder = Path(tempfile.mkdtemp(prefix="differential-")) / "case"
    if "family" in json.loads(text):
        verdict = differential.judge(differential.Case.of(text), folder)
    else:
        verdict = differential_text.judge(differential_tokenizers.TextCase.of(text), folder)
    print(f"{verdict.outcome}\n  transformers: {verdict.theirs}\n  bigrun: {verdict.ours}\n  files: {folder}")
    return int(verdict.outcome == "wrong")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--single", action="store_true", help="each change alone, in place of drawn ones")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="verdicts, a JSON object a line; goes on where it ends")
    parser.add_argument("--replay", help="judge the one case that this JSON describes")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    if options.replay:
        return replay(options.replay)
    name = "single" if options.single else options.seed
    out = options.out or Path(f"differential-{name}.jsonl")
    done = {verdict["number"] for verdict in verdicts_in(out)}
    total = len(single_cases()) if options.single else options.count
    numbers = [number for number in range(total) if number not in done]
    print(f"{len(numbers)} cases to judge, {len(done)} in {out}", flush=True)
    started = time.monotonic()
    if numbers:
        run(name, numbers, options.jobs, options.single, out)
    verdicts = verdicts_in(out)
    report(verdicts)
    print(f"\n{len(numbers)} cases in {time.monotonic() - started:.0f} s")
    return int(any(verdict["outcome"] == "wrong" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
