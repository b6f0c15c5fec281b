"""Draws a checkpoint, asks transformers and bigrun for its logits, and says whether bigrun is right.

    case = draw_case(random)                    # a family and some changes of a sound checkpoint
    verdict = judge(case, folder)               # agreed, refused, alone or wrong
    smallest(case, scratch)                     # a wrong case without the changes that it does not need

bigrun is right where its logits are transformers' in float32, and where it refuses with a message that names a field, a
tensor or a file. Where transformers refuses, bigrun may run the model ("alone"), but not crash, nor give numbers that are
none. Weights that transformers makes up, because the files lack them, are to be refused.
"""

from __future__ import annotations

import json
import re
import shutil
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from bigrun import Runner
from bigrun.errors import BigrunError
from support.differential_changes import FAMILIES, FIELDS, Change, base_config, field_changes, single_changes
from support.differential_files import as_transformers_is_asked, file_change, file_changes, write_files, write_stale
from support.differential_tensors import change_tensors, sound_tensor_changes, tensor_changes, weights

PROMPT = 16
TOLERANCE = 1e-4  # of the largest logit, or of 1
LARGEST = 4096  # sizes beyond are not given to transformers, which would allocate them
MOST_NUMBERS = 2_000_000  # in a model's weights; most have some thousand
FIELD_CHANGES = ("set", "remove", "contradict")
_INNER = {
    "rope_type", "type", "factor", "rope_theta", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "partial_rotary_factor", "lm_head.weight", "rope_parameters", "rope_scaling", "quant_method", "attention_factor",
    "full_attention",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A family, a seed for its weights, and changes of its sound checkpoint; `context` is bigrun's."""

    family: str
    seed: int
    changes: tuple[Change, ...]
    context: int = PROMPT

    def json(self) -> str:
        return json.dumps({"family": self.family, "seed": self.seed, "changes": self.changes, "context": self.context})

    @classmethod
    def of(cls, text: str) -> Case:
        read = json.loads(text)
        changes = tuple(tuple(change) for change in read["changes"])
        return cls(read["family"], read["seed"], changes, read["context"])


@dataclass(frozen=True)
class Verdict:
    """`outcome` is agreed, refused, alone or wrong; `theirs` and `ours` say in words what each did."""

    outcome: str
    theirs: str
    ours: str


@dataclass(frozen=True)
class Answer:
    """What one of the two did: logits, or `refusal`, or (bigrun) `crash`. `made_up` names what transformers drew at random."""

    logits: np.ndarray | None = None
    refusal: str = ""
    crash: str = ""
    made_up: str = ""

    @property
    def words(self) -> str:
        if self.logits is None:
            return f"crashed: {self.crash}" if self.crash else f"refused: {self.refusal}"
        finite = np.isfinite(self.logits).all()
        size = f"logits up to {np.abs(self.logits).max():.4g}" if finite else "logits that are no numbers"
        return size + (f", with {self.made_up} made up" if self.made_up else "")


def draw_case(random: Random) -> Case:
    """A case of some changes of fields, tensors and files; more than half of them have only such as make sense."""
    family = random.choice(FAMILIES)
    sound = random.random() < 0.6
    changes = field_changes(random, family, sound)
    if random.random() < 0.5:
        candidates = sound_tensor_changes(family) if sound else tensor_changes(expected_of(family), family)
        changes += [random.choice(candidates) for _ in range(random.choice([1, 1, 2]))]
    if random.random() < 0.4:
        changes.append(file_change(random, sound))
    context = PROMPT if random.random() < 0.8 else random.choice([24, 64, 2048])
    return Case(family, random.randint(0, 999), tuple(changes), context)


def every_single_change() -> list[Case]:
    """Each change that the tables know, alone, for each family."""
    cases = []
    for family in FAMILIES:
        changes = [*single_changes(family), *tensor_changes(expected_of(family), family), *file_changes()]
        cases += [Case(family, 7, (change,)) for change in changes]
    return cases


def judge(case: Case, folder: Path) -> Verdict:
    """Write the case to `folder`, which is made anew, and compare what becomes of it."""
    options = file_options(case)
    asked = as_transformers_is_asked(options)
    config, tensors = write_case(case, folder, asked)
    theirs = asked_of_transformers(folder, config)
    if asked != options:
        write_case(case, folder, options)
    ours = asked_of_bigrun(folder, case.context)
    expected = expected_of(case.family)
    stems = {name.rpartition(".")[0] for name in expected}
    named = {f"{stem}.{leaf}" for stem in stems for leaf in ("weight", "bias")}
    bare = {name.partition(".")[2] for name in named}  # as they are called where the class's prefix is left out
    known = {*config, *FIELDS[case.family], *_INNER, *tensors, *named, *bare, *_named_in_indices(folder)}
    if config.get("model_type") != case.family:  # a family that is only planned is refused by its name
        known.add(f"family {config.get('model_type')}")
    return compare(theirs, ours, lambda text: names_something(text, folder, known))


def compare(theirs: Answer, ours: Answer, names: Callable[[str], bool]) -> Verdict:
    """The verdict on two answers; `names` says whether a refusal names what is at fault."""

    def verdict(outcome: str) -> Verdict:
        return Verdict(outcome, theirs.words, ours.words)

    if ours.crash:
        return verdict("wrong")
    if ours.logits is None:
        return verdict("refused" if names(ours.refusal) else "wrong")
    if not np.isfinite(ours.logits).all() or theirs.made_up:
        return verdict("wrong")
    if theirs.logits is None:
        return verdict("alone")
    if theirs.logits.shape != ours.logits.shape or not np.isfinite(theirs.logits).all():
        return verdict("wrong")
    difference = float(np.abs(theirs.logits - ours.logits).max())
    allowed = TOLERANCE * max(1.0, float(np.abs(theirs.logits).max()))
    if difference <= allowed:
        return verdict("agreed")
    return Verdict("wrong", theirs.words, f"{ours.words}, {difference:.3g} off")


def names_something(message: str, folder: Path, known: set[str]) -> bool:
    """Whether a message names a field, a tensor (of any layer), a file of the folder, or the context that was asked for, or
    says that the whole is quantised, and how."""
    message = message.replace(f"{folder}/", "").replace(str(folder), "")
    files = {path.name for path in folder.rglob("*")} | {
        "config.json",
        "--context",
        "context",
        "architecture",
        "quantised",
    }
    plain = re.sub(r"\.\d+\.", ".0.", message)
    names = {re.sub(r"\.\d+\.", ".0.", name) for name in {*known, *files} if name}
    return any(re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", plain) for name in names)


def subject(message: str) -> str:
    """What a refusal is about: its field, or a tensor's kind and what is the matter with it, or its first words."""
    if found := re.search(r"field '([^']*)'", message):
        return f"field {found[1]}"
    if found := re.search(r"tensor (\S+) (.*)", message):
        why = re.sub(r"\d+|'[^']*'|/\S+", "…", found[2])
        return f"a tensor {' '.join(why.split()[:5])}"
    plain = re.sub(r"^\S*/\S*:? ", "", re.sub(r"\d+|'[^']*'", "…", message))
    return " ".join(plain.split()[:7])


def _named_in_indices(folder: Path) -> set[str]:
    """The files that indices of the folder name."""
    names: set[str] = set()
    for path in folder.glob("*.index.json"):
        with suppress(ValueError):
            names |= set(json.loads(path.read_text())["weight_map"].values())
    return names


@cache
def expected_of(family: str) -> dict[str, tuple[int, ...]]:
    """The tensors of the family's sound checkpoint."""
    return shapes(base_config(family))


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that transformers expects of a configuration, a tied head aside. Raises what transformers raises."""
    from transformers import AutoConfig, AutoModelForCausalLM

    own = json.loads(json.dumps({name: value for name, value in config.items() if name != "model_type"}))
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        made = AutoConfig.for_model(config["model_type"], **own)
        model = AutoModelForCausalLM.from_config(made)
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def write_case(case: Case, folder: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """config.json and weights in `folder`, which is made anew; the fields and the tensors."""
    config = _config(case, FIELD_CHANGES)
    followed = _config(case, ("set", "remove"))
    expected = expected_of(case.family)
    if followed != base_config(case.family) and not too_large(followed):
        with suppress(Exception):  # where transformers refuses it, the tensors are those of the sound configuration
            expected = shapes(followed)
    tensors = weights(expected, case.family, "lm_head.weight" not in expected, case.seed)
    others = [change for change in case.changes if change[0] not in FIELD_CHANGES]
    change_tensors(tensors, others, case.family, case.seed)
    remove(folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_files(folder, tensors, options)
    write_stale(folder, tensors, options)
    return config, tensors


def remove(folder: Path) -> None:
    """Remove a case's folder, and the one beside it that its links lead to."""
    for path in (folder, folder.parent / f"{folder.name}-store"):
        shutil.rmtree(path, ignore_errors=True)


def _config(case: Case, kinds: tuple[str, ...]) -> dict[str, Any]:
    config = base_config(case.family)
    for kind, *arguments in case.changes:
        if kind in kinds and kind == "remove":
            config.pop(arguments[0], None)
        elif kind in kinds:
            config[arguments[0]] = arguments[1]
    return config


def file_options(case: Case) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for kind, *arguments in case.changes:
        if kind == "file":
            options |= arguments[0]
    return options


def too_large(config: Mapping[str, Any]) -> bool:
    """Whether transformers would allocate without end, for a size that is said or for one that its class has by default."""
    # A table of positions is not made in the families that turn them.
    free = () if config.get("model_type") == "opt" else ("max_position_embeddings", "seq_length")
    sizes = {name: value for name, value in config.items() if name not in free and type(value) is int}
    if any(value > LARGEST for name, value in sizes.items() if not name.endswith(("_token_id", "_window", "_theta"))):
        return True
    if dict(config) in [base_config(family) for family in FAMILIES]:
        return False
    try:
        return sum(map(prod, shapes(config).values())) > MOST_NUMBERS
    except Exception:  # transformers refuses it, and allocates nothing
        return False


def prompt(vocab: int) -> np.ndarray:
    """Token ids of the vocabulary's every part, the last row among them."""
    return np.array([[(37 * i + vocab - 1) % vocab for i in range(PROMPT)]])


def vocab_of(folder: Path) -> int:
    """The smaller of what the configuration says and 97, so that both sides take the same prompt."""
    value = json.loads((folder / "config.json").read_text()).get("vocab_size")
    return min(97, value) if type(value) is int and value > 0 else 97


def asked_of_transformers(folder: Path, config: Mapping[str, Any]) -> Answer:
    """transformers' answer in float32, as its own defaults have it."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if too_large(config):
        return Answer(refusal="not asked: it would allocate what the configuration says")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model, told = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
            ids = torch.from_numpy(prompt(vocab_of(folder)))
            logits = model.eval()(ids, return_dict=True).logits.numpy()
    except BaseException as error:  # torch's and Rust's panics among them
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        return Answer(refusal=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    made_up = sorted({*told["missing_keys"], *(key[0] for key in told["mismatched_keys"])})
    return Answer(logits=logits, made_up=", ".join(made_up)[:200])


def asked_of_bigrun(folder: Path, context: int) -> Answer:
    """bigrun's answer in float32. A warning is a crash: nothing that is foreseen warns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Runner(
                str(folder), weights="float32", gpus="none", cpu="1GB", context=context, threads=1, progress=False
            ) as runner:
                return Answer(logits=runner.logits(prompt(vocab_of(folder))))
    except BigrunError as error:
        return Answer(refusal=str(error))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        file = "/".join(Path(place.filename).parts[-2:])
        return Answer(crash=f"{type(error).__name__}: {str(error)[:200]} ({file}:{place.lineno})")


def smallest(case: Case, scratch: Path) -> tuple[Case, Verdict]:
    """The wrong case with the fewest changes that is still wrong in the same way (crash, or other)."""

    def tried(changes: tuple[Change, ...]) -> tuple[Case, Verdict]:
        made = Case(case.family, case.seed, changes, case.context)
        return made, judge(made, scratch / "smaller")

    best, verdict = tried(case.changes)
    kind = verdict.ours.split()[0]
    shrinking = True
    while shrinking:
        shrinking = False
        for i in range(len(best.changes)):
            smaller, found = tried(best.changes[:i] + best.changes[i + 1 :])
            if found.outcome == "wrong" and found.ours.split()[0] == kind:
                best, verdict, shrinking = smaller, found, True
                break
    return best, verdict
