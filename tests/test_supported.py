"""What cannot be executed is refused by name before anything is loaded, never computed as if it were not there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bigrun import CallError, Runner
from bigrun.execute.forward import EXECUTE
from bigrun.execute.supported import why_not_executable
from bigrun.loading.open import model_spec
from bigrun.model.program import lower, rewrite, unsupported
from bigrun.model.resolve import resolve
from bigrun.model.spec import Experts, Latent, ModelSpec, Rope
from bigrun.session import steps
from bigrun.session.options import Options
from bigrun_kernels.cpu.blocks import ROWS
from bigrun_kernels.ops import EXECUTES
from support import checkpoints

BEYOND: dict[str, Any] = {
    "alibi_bfloat16": (True, "attend with alibi_bfloat16"),
    "after_norms": (True, "the step add"),
    "sinks": (True, "attend with sinks"),
    "latent": (Latent(0, 16, 8, 8, 8), "rope_store with latent"),
    "experts": (Experts(4, 2, 32), "route of router"),
    "activation": ("swish", "the activation swish"),
}


def spec() -> ModelSpec:
    return model_spec(resolve("smollm2-135m"))


def with_blocks(**flags: Any) -> ModelSpec:
    return replace(spec(), blocks=tuple(replace(block, **flags) for block in spec().blocks))


def test_a_plain_model_is_executed() -> None:
    assert why_not_executable(spec()) == ""


@pytest.mark.parametrize("name", BEYOND)
def test_a_flag_that_the_engines_ignore_is_refused_by_name(name: str) -> None:
    value, words = BEYOND[name]
    assert words in why_not_executable(with_blocks(**{name: value}))


@pytest.mark.parametrize("target", EXECUTES)
def test_every_op_and_attribute_is_known_or_refused(target: str) -> None:
    """Each step of a plain block, as if it were of another op, or had an attribute more."""
    program = rewrite(lower(spec().blocks[0]), target)
    assert unsupported(program, target) == ""
    for i, step in enumerate(program.steps):
        for changed in (replace(step, op="new"), replace(step, attributes=(*step.attributes, ("new", 1)))):
            steps = (*program.steps[:i], changed, *program.steps[i + 1 :])
            assert "new" in unsupported(replace(program, steps=steps), target)


def test_what_the_walker_executes_is_what_the_table_says() -> None:
    assert EXECUTE.keys() == EXECUTES["host"].keys() == EXECUTES["gpu"].keys()
    assert ROWS.keys() == EXECUTES["compiled"].keys()


def test_a_family_for_planning_alone_is_refused() -> None:
    assert "gemma2" in why_not_executable(replace(spec(), family="gemma2"))


@pytest.mark.parametrize(("name", "value"), [("final_norm", False)])
def test_so_are_flags_of_the_model(name: str, value: Any) -> None:
    assert name in why_not_executable(replace(spec(), **{name: value}))


def test_windows_run_and_blocks_may_differ_in_them() -> None:
    assert why_not_executable(with_blocks(window=128)) == ""
    first, *rest = spec().blocks
    assert why_not_executable(replace(spec(), blocks=(replace(first, window=16), *rest))) == ""


@pytest.mark.parametrize("flags", [{"rope": Rope(64, 5e5)}, {"norm_eps": 1e-3}, {"intermediate": 64}, {"heads": 3}])
def test_blocks_that_differ_share_nothing_and_are_refused(flags: dict[str, Any]) -> None:
    first, *rest = spec().blocks
    assert "block 1" in why_not_executable(replace(spec(), blocks=(first, replace(rest[0], **flags), *rest[1:])))


def test_a_runner_asks_before_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.llama(tmp_path)
    opened = steps.open_files

    def with_sinks(options: Options, planned: steps.Planned, *more: Any) -> steps.Opened:
        blocks = tuple(replace(block, sinks=True) for block in planned.spec.blocks)
        return opened(options, replace(planned, spec=replace(planned.spec, blocks=blocks)), *more)

    monkeypatch.setattr(steps, "open_files", with_sinks)
    monkeypatch.setattr(steps, "memories", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(CallError, match="sinks"):
        Runner(str(tmp_path), gpus="none", cpu="100MB", context=32, progress=False)


def test_a_second_live_stream_raises_and_a_closed_one_does_not_hinder(tmp_path: Path) -> None:
    checkpoints.llama(tmp_path, tokenizer=True)
    with Runner(str(tmp_path), gpus="none", cpu="100MB", context=64, progress=False) as runner:
        first = runner.stream([5, 6, 7], max_new_tokens=20)
        next(first)
        for call in (
            lambda: next(runner.stream([5, 6])),
            lambda: runner.generate([5, 6]),
            lambda: runner.logits([[5]]),
        ):
            with pytest.raises(CallError, match="another stream"):
                call()
        first.close()
        alone = runner.generate([5, 6, 7], max_new_tokens=20)
        stream = runner.stream([5, 6, 7], max_new_tokens=20)
        assert "".join(stream) == alone.text
        assert tuple(stream.token_ids) == alone.token_ids
