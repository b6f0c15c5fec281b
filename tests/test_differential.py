"""Whatever checkpoint, tokenizer or conversation is drawn: bigrun answers as transformers does, or says what it does not read.

`benchmarks/differential.py` draws some thousand more. A failure prints a case that its `--replay` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bigrun.model.families.fields import Fields
from bigrun.text.tokenizer import Tokenizer
from support import differential, differential_text
from support.differential import Answer, Case, compare, judge, names_something, smallest, subject
from support.differential_tokenizers import TextCase

FEW = settings(
    deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
)  # fmt: skip
# Seeds, as a Random that hypothesis feeds repeats itself: 43 different cases in 100.
RANDOM = st.integers(0, 2**32 - 1).map(Random)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are slower on several threads, which other tests need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("differential")


@settings(FEW, max_examples=120)
@given(random=RANDOM)
def test_a_drawn_checkpoint_is_run_as_transformers_runs_it_or_refused_by_name(random: Random, scratch: Path) -> None:
    case = differential.draw_case(random)
    if judge(case, scratch / "case").outcome == "wrong":
        least, verdict = smallest(case, scratch)
        pytest.fail(f"{least.json()}\ntransformers: {verdict.theirs}\nbigrun: {verdict.ours}")


@settings(FEW, max_examples=60)
@given(random=RANDOM)
def test_drawn_texts_and_conversations_have_the_ids_that_transformers_gives_them(random: Random, scratch: Path) -> None:
    case = differential_text.draw_text_case(random)
    if differential_text.judge(case, scratch / "case").outcome == "wrong":
        least, verdict = differential_text.smallest(case, scratch)
        pytest.fail(f"{least.json()}\ntransformers: {verdict.theirs}\nbigrun: {verdict.ours}")


LOGITS = np.array([[1.0, -20.0, 3.0]])
NEAR, FAR = Answer(logits=LOGITS + 1e-3), Answer(logits=LOGITS + 4e-3)
NOT_NUMBERS = Answer(logits=LOGITS * np.nan)


@pytest.mark.parametrize(
    ("theirs", "ours", "outcome"),
    [
        (Answer(logits=LOGITS), NEAR, "agreed"),
        (Answer(logits=LOGITS), FAR, "wrong"),
        (Answer(logits=LOGITS), Answer(logits=LOGITS[:, :2]), "wrong"),
        (Answer(logits=LOGITS), Answer(refusal="field 'head_dim' is 7"), "refused"),
        (Answer(logits=LOGITS), Answer(refusal="something went wrong"), "wrong"),
        (Answer(logits=LOGITS), Answer(crash="IndexError: 3"), "wrong"),
        (Answer(logits=LOGITS), NOT_NUMBERS, "wrong"),
        (NOT_NUMBERS, NOT_NUMBERS, "wrong"),
        (NOT_NUMBERS, NEAR, "wrong"),
        (Answer(logits=LOGITS, made_up="lm_head.weight"), NEAR, "wrong"),
        (Answer(logits=LOGITS, made_up="lm_head.weight"), Answer(refusal="head_dim"), "refused"),
        (Answer(refusal="ValueError"), NEAR, "alone"),
        (Answer(refusal="ValueError"), NOT_NUMBERS, "wrong"),
        (Answer(refusal="ValueError"), Answer(refusal="head_dim"), "refused"),
        (Answer(refusal="ValueError"), Answer(crash="KeyError"), "wrong"),
    ],
)
def test_a_verdict_is_what_two_answers_deserve(theirs: Answer, ours: Answer, outcome: str) -> None:
    assert compare(theirs, ours, lambda text: "head_dim" in text).outcome == outcome


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("{}/config.json: field 'n_head' is 0", True),
        ("{}/weights.bin: cut short", True),
        ("{}: tensor h.7.mlp.weight is missing", True),
        ("context 16: the model has a maximum of 8", True),
        ("{}: cannot be loaded", False),
        ("{}: n_heads", False),
    ],
)
def test_a_refusal_names_a_field_a_tensor_or_a_file(message: str, named: bool, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    assert names_something(message.format(tmp_path), tmp_path, {"n_head", "h.0.mlp.weight"}) == named


def test_refusals_are_counted_by_their_subject() -> None:
    assert subject("/a/config.json: field 'n_head' is 0, not between 1 and 4096") == "field n_head"
    two = {subject(f"/a/model-{i}.bin: tensor h.{i}.w has shape [{i}], the configuration says [3]") for i in range(2)}
    assert len(two) == 1


def test_a_misread_epsilon_is_seen(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases do see a mistake of one field: with quiet embeddings, an epsilon of 1e-6 in place of 1e-5."""
    case = Case("llama", 3, (("quiet", 1e-3),))
    assert judge(case, scratch / "planted").outcome == "agreed"
    read = Fields.number

    def misread(self: Fields, *names: str, **rest: float) -> float:
        return read(self, *names, **rest) / (10 if "rms_norm_eps" in names else 1)

    monkeypatch.setattr(Fields, "number", misread)
    assert judge(case, scratch / "planted").outcome == "wrong"


def test_a_lost_token_is_seen(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = TextCase("llama", "llama-3", 3, ())
    assert differential_text.judge(case, scratch / "planted").outcome == "agreed"
    decoded = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decoded(self, ids).lstrip())
    assert differential_text.judge(case, scratch / "planted").outcome == "wrong"


@pytest.mark.parametrize("number", range(3))
def test_a_case_is_made_again_from_its_description(number: int) -> None:
    case = differential.draw_case(Random(number))
    assert Case.of(case.json()).json() == case.json()
    text = differential_text.draw_text_case(Random(number))
    assert TextCase.of(text.json()).json() == text.json()
