"""Every Triton kernel compiled for every architecture, without a GPU: matrix instructions, registers, shared memory.

`make test` compiles one form of each kernel for one of them.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support import ahead, specimens_attention, specimens_elementwise, specimens_linear
from support.ahead import Specimen, compiled
from support.long import only

QUICK = 80  # for which one form of each kernel is compiled: 86 and 89 have its instructions, and the forms
ARCHITECTURES = only((75, 80, 86, 89, 90, 120), quick=(QUICK,))
WHOLE = 90  # for which every form of a kernel is compiled; for the others, those that are launched most
USUAL = (  # one form of each of the small kernels
    "norm rms 4096 marks", "activate silu gated marks", "mark", "quantise 11008 groups of 64", "compact", "gather",
    "lookup fp32", "head 1", "norm heads fp16",
)  # fmt: skip
TWINS = (
    "16bit any",
    "attention prompt int8",
    "attention span int8",
    "turn and store int8",
    "attention prompt fp16, a window",
    "attention span fp16, a window",
)
CONSUMER_SHARED_BYTES = 99 * 1024
MATRIX = {
    "mma.sync": {
        "fp16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "int8": "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32",
    },
    "wgmma": {
        "fp16": "wgmma.mma_async.sync.aligned.m64n#k16.f32.f16.f16",
        "int8": "wgmma.mma_async.sync.aligned.m64n#k32.s32.s8.s8",
    },
}


def specimens(capability: int) -> list[Specimen]:
    others = [s for s in specimens_elementwise.SPECIMENS if capability == WHOLE or s.name in USUAL]
    # below 8.0 there are no matrix instructions: torch attends there
    attention = [s for s in specimens_attention.SPECIMENS if capability >= 80 or s.name.startswith("turn")]
    all_specimens = [*specimens_linear.specimens(capability, capability == WHOLE), *attention, *others]
    if capability == QUICK:
        return list({specimen.kernel: specimen for specimen in reversed(all_specimens)}.values())
    # the instructions of 8.6 and 8.9 are those of 8.0: every kernel, but not every form of it again
    return all_specimens if capability not in (86, 89) else [s for s in all_specimens if s.name not in TWINS]


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Any]:
    """(name, capability) → facts, for the architectures that this session's tests ask for."""
    items: list[Any] = request.session.items
    asked = {item.callspec.params.get("capability") for item in items if hasattr(item, "callspec")} - {None}
    work = [(specimen, capability) for capability in sorted(asked) for specimen in specimens(capability)]
    results = compiled(ahead.begin(work, tmp_path_factory.mktemp("ahead")))
    for key, facts in results.items():
        assert isinstance(facts, dict), f"{key}: {facts}"
    return results


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_products_are_matrix_instructions(built: dict[Any, Any], capability: int) -> None:
    family = "wgmma" if capability == 90 else "mma.sync"
    for specimen in specimens(capability):
        mma = built[specimen.name, capability]["mma"]
        if not specimen.products:
            assert not mma, f"{specimen.name} must round nothing to a matrix instruction's input"
            continue
        instructions = {re.sub(r"m64n\d+", "m64n#", name) for name in mma}
        one = MATRIX[family][specimen.products]
        # few rows fill no warp group, so a kernel for Hopper may keep the older instruction
        assert one in instructions or MATRIX["mma.sync"][specimen.products] in instructions, (
            f"{specimen.name}: {instructions}"
        )
        if specimen.kernel == "tiles:tile_kernel":
            assert one in instructions, f"{specimen.name}: {instructions}"


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_nothing_is_spilled_and_consumer_cards_have_room(built: dict[Any, Any], capability: int) -> None:
    for specimen in specimens(capability):
        facts = built[specimen.name, capability]
        assert facts["spilled"] == 0, f"{specimen.name}: {facts}"
        assert facts["registers"] <= 255
        if capability != 90:  # which no consumer card is
            assert facts["shared"] <= CONSUMER_SHARED_BYTES, f"{specimen.name}: {facts}"


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_addresses_are_computed_in_64_bits(built: dict[Any, Any], capability: int) -> None:
    for specimen in specimens(capability):
        assert built[specimen.name, capability]["narrow products"] == [], specimen.name


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_decode_streams_the_weight_and_sums_alike_for_any_rows(built: dict[Any, Any], capability: int) -> None:
    layouts = set()
    for rows in (1, 2, 4) if capability == WHOLE else (4,):
        facts = built[f"decode {rows}", capability]
        assert facts["wide loads"] >= 1 + 2 * rows  # 16 weights in one load; 16 entries of each row of x in two
        assert facts["shuffles in loop"] == []  # each would cost a barrier for every block of K
        assert len(facts["reductions"]) == rows
        layouts |= set(facts["reductions"])
    assert len(layouts) == 1


def test_a_kernel_that_spills_is_noticed(tmp_path: Path) -> None:
    tile = next(s for s in specimens_linear.many(80, True) if s.name == "16bit 64")
    large = replace(tile, name="too large", warps=1)
    assert compiled(ahead.begin([(large, 80)], tmp_path, 1))["too large", 80]["spilled"] > 0
