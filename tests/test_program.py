"""The program of a block: every field of a description shows in it, and what is counted is what runs."""

from dataclasses import fields, replace
from typing import Any

import pytest

from bigrun.model.catalog.lookup import ENTRIES
from bigrun.model.program import NORMED, Program, Step, buffer_widths, lower, lower_experts, programs, rewrite
from bigrun.model.spec import Block, Experts, Latent, Rope, block_tensors, expert_tensors
from support.blocks import BLOCK

OTHER: dict[str, Any] = {
    "hidden": 128, "heads": 8, "kv_heads": 4, "head_dim": 32, "intermediate": 32, "norm": "layer", "norm_eps": 1e-6,
    "positions": "alibi", "rope": Rope(8), "gated": False, "activation": "relu", "qkv_bias": True, "out_bias": True,
    "mlp_bias": True, "window": 7, "mlp_norm": False, "after_norms": True, "qk_norm": True, "sinks": True, "parallel": True,
    "alibi_bfloat16": True,
    "latent": Latent(0, 16, 8, 8, 8), "experts": Experts(4, 2, 32),
}  # fmt: skip
MIXTURE = replace(BLOCK, experts=Experts(8, 2, 32, shared=16))
LATENT = replace(BLOCK, latent=Latent(24, 16, 8, 8, 8))
KINDS = list({block: None for entry in ENTRIES.values() for block in entry.spec().blocks})


def both(block: Block) -> tuple[Program, Program]:
    return lower(block), lower_experts(block)


@pytest.mark.parametrize("field", [field.name for field in fields(Block)])
def test_every_field_of_a_block_is_lowered(field: str) -> None:
    assert both(replace(BLOCK, **{field: OTHER[field]})) != both(BLOCK)


@pytest.mark.parametrize(
    ("kind", "whole", "changes"),
    [
        (Rope, BLOCK, {"dims": 8, "theta": 5e5, "kind": "linear"}),
        (Latent, LATENT, {"q_rank": 0, "kv_rank": 8, "nope": 4, "rope": 4, "value": 4}),
        (
            Experts, MIXTURE,
            {"count": 4, "active": 1, "intermediate": 8, "shared": 0, "shared_gate": True, "router_bias": True, "bias": True},
        ),
    ],
    ids=["Rope", "Latent", "Experts"],
)  # fmt: skip
def test_so_are_the_fields_within_it(kind: type, whole: Block, changes: dict[str, Any]) -> None:
    scaling = {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_context",
        "factors",
    }  # numbers of the rope's kind
    assert {field.name for field in fields(kind)} - scaling == changes.keys()
    name = kind.__name__.lower()
    for field, value in changes.items():
        assert both(replace(whole, **{name: replace(getattr(whole, name), **{field: value})})) != both(whole), field


def test_the_program_of_a_plain_block_reads_like_its_definition() -> None:
    assert str(lower(BLOCK)).splitlines() == [
        "norm x → normed [attention_norm] (kind rms, eps 1e-05)",
        "linear normed → qkv [qkv]",
        "rope cos_sin, qkv → qkv (heads 4, kv_heads 2, head_dim 16, dims 16, theta 10000)",
        "store qkv → kv (heads 4, kv_heads 2, head_dim 16)",
        "attend qkv, kv → attention (heads 4, kv_heads 2, head_dim 16, scale 0.25, value 16)",
        "linear attention +→ x [out]",
        "norm x → normed [mlp_norm] (kind rms, eps 1e-05)",
        "linear normed → up [up]",
        "activate up → gated (kind silu, gated True)",
        "linear gated +→ x [down]",
    ]
    assert [step.op for step in rewrite(lower(BLOCK), "host").steps] == [
        "norm_linear", "rope_store", "attend", "linear", "norm_linear", "activate_linear",
    ]  # fmt: skip


@pytest.mark.parametrize("block", KINDS, ids=str)
def test_programs_name_every_weight_and_count_every_product(block: Block) -> None:
    for program, tensors in zip(both(block), (block_tensors(block), expert_tensors(block)), strict=True):
        stems = {tensor.name.rpartition(".")[0] or tensor.name for tensor in tensors}
        assert stems == set(program.weights)
        linears = sum(tensor.count for tensor in tensors if tensor.role in ("linear", "kept"))
        if program.steps and program.steps[0].op == "experts":
            assert block.experts is not None
            linears = linears * block.experts.active // block.experts.count
        assert sum(step.products for step in program.steps) == linears


@pytest.mark.parametrize("target", ["host", "gpu", "compiled"])
@pytest.mark.parametrize("block", KINDS, ids=str)
def test_a_target_computes_the_same_work_from_buffers_that_were_written(block: Block, target: str) -> None:
    written = {"x", "cos_sin", NORMED, "routes"} if block.experts else {"x", "cos_sin"}
    program = rewrite(lower(block), target)
    widths = dict(program.widths)
    for step in program.steps:
        through = step.reads[1:] if step.op in ("norm_linear", "activate_linear") else ()
        assert set(step.reads) - set(through) <= written | {"kv"}, step
        written |= {step.writes, *through}
        assert {*step.reads, step.writes} <= widths.keys() | {"x", "kv"}
    for count in ("products", "scores", "entries"):
        assert sum(getattr(s, count) for s in program.steps) == sum(getattr(s, count) for s in lower(block).steps)


def test_a_norm_that_both_halves_read_is_kept() -> None:
    steps = rewrite(lower(replace(BLOCK, mlp_norm=False)), "host").steps
    assert [step.op for step in steps][:2] == ["norm", "linear"]
    assert sum(step.reads[0] == NORMED for step in steps if step.op == "linear") == 2
    after = rewrite(lower(replace(BLOCK, mlp_norm=False, after_norms=True)), "host").steps
    assert all(step.writes != NORMED for step in after[1:])


def test_a_model_has_the_widest_buffers_of_its_blocks() -> None:
    spec = ENTRIES["deepseek-v3"].spec()
    widths = buffer_widths(programs(spec, "host"))
    assert widths["routes"] == 256
    assert widths["up"] == 2 * 18432  # of the first three, which are no mixtures
    assert widths["qkv"] == 128 * (128 + 64) + 1536 + 512 + 64


def test_an_activation_is_in_no_place_that_it_reads_on_a_gpu() -> None:
    mixture = replace(MIXTURE, gated=False, experts=Experts(8, 2, 32, shared=16, shared_gate=True))
    steps = rewrite(lower(mixture), "gpu").steps
    first = next(i for i, step in enumerate(steps) if step.op == "activate")
    assert [(step.op, step.reads, step.writes) for step in steps[first:]] == [
        ("activate", ("up",), "inner"), ("gate", (NORMED, "inner"), "inner"), ("linear", ("inner",), "x"),
    ]  # fmt: skip


def test_what_the_experts_read_is_not_written_over() -> None:
    block = replace(MIXTURE, after_norms=True)
    after = lower(block).steps
    last_norm = max(i for i, step in enumerate(after) if step.weights == ("mlp_norm",))
    assert all(step.writes != NORMED for step in after[last_norm + 1 :])


def test_a_linear_never_reads_planes_of_what_was_written_since() -> None:
    plain = lower(replace(BLOCK, mlp_norm=False))
    second = next(i for i, step in enumerate(plain.steps) if step.weights == ("up",))
    scale = Step("scale", (NORMED,), NORMED, width=64)
    changed = replace(plain, steps=(*plain.steps[:1], scale, *plain.steps[1:second], scale, *plain.steps[second:]))
    for program in (plain, changed):
        ready = ""
        for step in rewrite(program, "compiled").steps:
            if step.op == "linear":
                assert ready == step.reads[0]
            elif step.op.endswith("quantise"):
                ready = step.writes
            elif step.writes == ready:
                ready = ""


def test_nothing_is_rewritten_into_nothing() -> None:
    assert rewrite(lower_experts(BLOCK), "compiled").steps == ()
