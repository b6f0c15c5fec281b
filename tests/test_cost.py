"""The cost model by hand: what a step of a toy is made of, and the seconds that simple rates make of it."""

import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigrun.devices.rates import Rates
from bigrun.devices.rig import Device, Loading, Rig
from bigrun.model.spec import Latent, ModelSpec
from bigrun.model.storage import Storage
from bigrun.planning.cost import (
    LAUNCH,
    LOCAL,
    Costs,
    Phase,
    Work,
    decode_phase,
    prefill_phase,
    seconds,
    streamed_seconds,
)
from bigrun.planning.ledger import Ledger
from bigrun.planning.options import PlanOptions
from bigrun.planning.planner import make_plan
from bigrun.planning.report import plan_text
from bigrun.planning.search import Problem
from bigrun.planning.words import duration
from support.toys import mixture, toy

# The toy: hidden, vocabulary, intermediate size and the one head are all 64.
LINEAR = 64 * (192 + 64 + 128 + 64)  # multiply-adds a token: qkv, out, up and gate, down
BYTES = LINEAR + 4 * (192 + 64 + 128 + 64) + 2 * 4 * 64  # int8, a float32 scale a row, two norms
TOKEN = 2 * 64 * 2  # a key and a value in float16
ENTRIES = (
    4 * 64 + 192 + 64 + 3 * 64
)  # twice in and out of a norm, q k v, attention's output, gate, up and their product
TABLE = 64 * 64 + 64 * 2 * 2  # int8, float16 scales of 32 entries

RATES = Rates(
    read=1000, cache=500, int8=4000, wide=2000, attention=100, elements=50, block=0.25, link=125, overlap=1, source=""
)  # fmt: skip


def costs(spec: ModelSpec, phase: Phase, **options: object) -> Costs:
    return Costs(Ledger(spec, PlanOptions(**{"context": 128, **options})), phase)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (Work(weights=3000), 3000 / 1000),
        (Work(products=8000), 8000 / 4000 + 0.25),
        (Work(products=8000, wide=True), 8000 / 2000 + 0.25),
        (Work(cache=1000), 1000 / 500),
        (Work(attention=300), 300 / 100),
        (Work(elements=200), 200 / 50),
        (Work(3000, 1000, 8000, 300, 200), 3 + 2 + 2 + 3 + 4 + 0.25),
    ],
    ids=["weights", "products in int8", "products in 16 bits", "keys and values", "attention", "elements", "all"],
)
def test_each_kind_of_work_is_divided_by_its_rate_and_products_launch_a_block(work: Work, expected: float) -> None:
    assert seconds(work, RATES) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [(1, 3 + 4 + 6 + 8), (2, 5 + 10), (math.inf, 4 + 8)],
    ids=["one after the other", "root of the squares", "fully at once"],
)
def test_reading_and_arithmetic_go_together_as_the_overlap_says(overlap: float, expected: float) -> None:
    work = Work(weights=3000, products=16000, cache=3000, attention=800)  # 3 s and 4 s, 6 s and 8 s
    assert seconds(work, replace(RATES, overlap=overlap, block=0)) == pytest.approx(expected)


def test_what_is_streamed_takes_the_longer_of_the_copy_and_the_step_and_one_launch() -> None:
    work = Work(weights=3000)
    assert streamed_seconds(work, 1000, RATES, link=125) == 8 + LAUNCH
    assert streamed_seconds(work, 1000, RATES, link=500) == 3 + LAUNCH


def test_a_hop_carries_the_residual_stream_of_every_row_in_32_bits() -> None:
    step_costs = costs(toy(), decode_phase(3, 100))
    assert step_costs.hop(64) == pytest.approx(3 * 64 * 4 / 64 + LAUNCH)
    assert step_costs.hop(math.inf) == LOCAL


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("context", [1, 100])
def test_a_decode_step_reads_a_block_once_and_attends_to_the_whole_context(batch: int, context: int) -> None:
    work = costs(toy(), decode_phase(batch, context), batch=batch).work("blocks.0")
    assert work == Work(
        weights=BYTES,
        cache=batch * context * TOKEN,
        products=batch * LINEAR,
        attention=batch * context * 2 * 64,
        elements=batch * ENTRIES,
    )


@pytest.mark.parametrize(
    ("prompt", "chunk", "steps", "rows"),
    [(96, 32, 3, 32), (97, 32, 4, 24.25), (10, 32, 1, 10), (1, 512, 1, 1)],
    ids=["whole chunks", "one token more", "less than a chunk", "one token"],
)
def test_a_prompt_is_read_in_equal_steps_whose_tokens_see_half_of_it(
    prompt: int, chunk: int, steps: int, rows: float
) -> None:
    phase = prefill_phase(prompt, chunk)
    assert (phase.steps, phase.rows, phase.seen) == (steps, rows, (1 + prompt) / 2)
    work = costs(toy(), phase, batch=3).work("blocks.0")  # one sequence's prompt, whatever the batch
    assert (work.weights, work.products, work.elements) == (BYTES, rows * LINEAR, rows * ENTRIES)
    assert work.cache == pytest.approx(TOKEN * (1 + prompt) / 2)
    assert work.attention == pytest.approx(rows * (1 + prompt) / 2 * 2 * 64)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_head_reads_the_table_for_every_sequence_that_decodes_and_once_a_prompt(tied: bool) -> None:
    decode, prefill = (costs(toy(tied=tied), phase) for phase in (decode_phase(3, 100), prefill_phase(96, 32)))
    assert decode.work("head") == Work(weights=TABLE, products=3 * 64 * 64, elements=3 * 64)
    assert prefill.work("head") == Work(weights=TABLE, products=64 * 64, elements=64)


def test_a_lookup_is_free_and_a_norm_passes_its_rows() -> None:
    decode, prefill = costs(toy(), decode_phase(3, 100)), costs(toy(), prefill_phase(96, 32))
    assert (decode.work("embed"), prefill.work("embed")) == (Work(), Work())
    assert (decode.work("norm"), prefill.work("norm")) == (Work(elements=3 * 64), Work(elements=64))


@pytest.mark.parametrize(
    ("storage", "nbytes", "wide"),
    [
        (Storage(), BYTES, False),
        (Storage(weights="16bit"), 2 * LINEAR + 2 * 4 * 64, True),
        (Storage(weights="float32"), 4 * LINEAR + 2 * 4 * 64, True),
        (Storage(skip=("down",)), BYTES + 64 * 64 - 4 * 64, True),
    ],
    ids=["int8", "16bit", "float32", "one linear in 16 bits"],
)
def test_weights_count_as_they_are_stored_and_wide_ones_multiply_at_their_own_rate(
    storage: Storage, nbytes: int, wide: bool
) -> None:
    work = costs(toy(), decode_phase(1, 100), storage=storage).work("blocks.0")
    assert (work.weights, work.wide) == (nbytes, wide)


def test_int8_keys_and_values_are_read_with_a_float16_scale_each() -> None:
    work = costs(toy(), decode_phase(2, 100), batch=2, storage=Storage(kv="int8")).work("blocks.0")
    assert work.cache == 2 * 100 * 2 * (64 + 2)


def test_a_window_bounds_what_a_token_sees() -> None:
    spec = toy(window=40)
    for context, seen in ((30, 30), (100, 40), (4000, 40)):
        work = costs(spec, decode_phase(2, context), context=4000, batch=2).work("blocks.0")
        assert (work.cache, work.attention) == (pytest.approx(2 * seen * TOKEN), 2 * seen * 2 * 64)


def test_latent_attention_reads_one_vector_and_one_rotated_key_a_token_for_all_heads() -> None:
    latent = Latent(q_rank=0, kv_rank=20, nope=8, rope=12, value=16)
    spec = toy(heads=4, kv_heads=4, head_dim=20, latent=latent)
    work = costs(spec, decode_phase(1, 100)).work("blocks.0")
    assert work.cache == 100 * (24 + 16) * 2  # each padded to whole vectors of 8
    assert work.attention == 100 * 4 * (20 + 12 + 20)  # scores of the vector and the rotated key, and the vector again


EXPERT = 64 * 128 + 64 * 64  # multiply-adds of one
EXPERT_BYTES = EXPERT + 4 * (128 + 64)


@pytest.mark.parametrize(
    ("rows", "touched"),
    [(1, 1 / 4), (2, 1 - (3 / 4) ** 2), (1000, 1.0)],
    ids=["one token", "two tokens", "a long prompt"],
)
def test_tokens_read_only_the_experts_that_they_touch_and_multiply_with_those_they_chose(
    rows: int, touched: float
) -> None:
    work = costs(mixture(), Phase("prefill", 1, rows, 50, 1)).work("blocks.0.experts")
    assert work.weights == pytest.approx(4 * EXPERT_BYTES * touched)
    assert work.products == pytest.approx(rows * EXPERT)
    assert work.elements == rows * (2 * 64 + 3 * 64)
    assert (work.cache, work.attention, work.wide) == (0, 0, False)


def test_the_rest_of_a_mixtures_block_has_the_router_and_the_shared_mlp_but_no_expert() -> None:
    attention = 64 * (192 + 64)
    for shared in (0, 32):
        work = costs(mixture(shared=shared), decode_phase(1, 100)).work("blocks.0")
        assert work.products == attention + 4 * 64 + shared * 3 * 64
        assert work.elements == 4 * 64 + 192 + 64 + 3 * shared


def test_twice_as_many_active_experts_are_twice_the_work_of_a_token() -> None:
    one, two = (costs(mixture(active=n), decode_phase(1, 100)).work("blocks.0.experts") for n in (1, 2))
    assert (two.weights, two.products, two.elements) == tuple(2 * x for x in (one.weights, one.products, one.elements))


def test_the_request_of_a_plan_on_one_device_is_the_sum_of_its_steps() -> None:
    """96 tokens of prompt in chunks of 64, and 32 steps of three sequences at the end of their context."""
    cpu = replace(RATES, link=math.inf)
    spec = toy(blocks=2, tied=False)
    made = make_plan(spec, Rig((Device("cpu", "cpu", 10**9, cpu),)), PlanOptions(context=128, batch=3))
    assert made.prefill_chunk_tokens == 128  # the prompt in one step of 96
    assert made.predicted is not None
    block = BYTES / 1000 + 3 * LINEAR / 4000 + 3 * 128 * TOKEN / 500 + 3 * 128 * 128 / 100 + 3 * ENTRIES / 50 + 0.25
    head = TABLE / 1000 + 3 * 4096 / 4000 + 0.25 + 3 * 64 / 50
    decode = 2 * block + head + 3 * 64 / 50  # and the norm
    seen = 97 / 2
    block = BYTES / 1000 + 96 * LINEAR / 4000 + seen * TOKEN / 500 + 96 * seen * 128 / 100 + 96 * ENTRIES / 50 + 0.25
    head = TABLE / 1000 + 4096 / 4000 + 0.25 + 64 / 50
    prefill = 2 * block + head + 64 / 50
    assert made.predicted.request_seconds == pytest.approx(3 * prefill + 32 * decode), (
        "three prompts, and steps of all three"
    )
    assert made.predicted.decode_tokens_per_s == pytest.approx(3 / decode)
    assert made.predicted.prefill_tokens_per_s == pytest.approx(96 / prefill)
    assert (made.predicted.prompt_tokens, made.predicted.new_tokens) == (96, 32)


def test_a_gpu_alone_takes_two_hops_more_than_its_parts_in_every_step() -> None:
    gpu = Device("cuda:0", "gpu", 10**9, replace(RATES, link=128))
    rig = Rig((gpu, Device("cpu", "cpu", 0, replace(RATES, link=math.inf))))
    made = make_plan(toy(), rig, PlanOptions(context=64, prompt=48))
    ledger = Ledger(toy(), PlanOptions(context=64, prompt=48))
    problem = Problem(ledger, rig, made.prefill_chunk_tokens)
    steps = [problem.part_seconds(part, gpu)[:2] for part in ("embed", "blocks.0", "norm", "head")]
    decode, prefill = (sum(times) for times in zip(*steps, strict=True))
    assert made.prefill_chunk_tokens == 64
    assert made.predicted is not None
    assert 1 / made.predicted.decode_tokens_per_s == pytest.approx(decode + 2 * (64 * 4 / 128 + LAUNCH))
    assert 48 / made.predicted.prefill_tokens_per_s == pytest.approx(prefill + 2 * (48 * 64 * 4 / 128 + LAUNCH))


SPECS = {
    "dense": toy(2, tied=False),
    "window": toy(2, window=100),
    "mixture": mixture(count=8, active=2, shared=32),
    "latent": toy(heads=4, kv_heads=4, head_dim=20, latent=Latent(0, 20, 8, 12, 16)),
}
often = settings(
    derandomize=True, database=None, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck)
)


@often
@pytest.mark.parametrize("kind", SPECS)
@given(
    context=st.integers(2, 2000),
    batch=st.integers(1, 64),
    share=st.floats(0.01, 1.0),
    more=st.integers(1, 500),
    overlap=st.sampled_from([1.0, 2.0, math.inf]),
)
def test_more_context_more_sequences_and_a_longer_prompt_never_take_less_time(
    kind: str, context: int, batch: int, share: float, more: int, overlap: float
) -> None:
    spec, prompt = SPECS[kind], max(1, int(context * share))
    cpu = Device("cpu", "cpu", 10**12, replace(RATES, link=math.inf, overlap=overlap))

    def step(options: PlanOptions) -> tuple[float, float]:
        problem = Problem(Ledger(spec, options), Rig((cpu,)), 64)
        part_times = [problem.part_seconds(part.name, cpu) for part in spec.parts]
        return sum(times[0] for times in part_times), sum(times[1] for times in part_times)

    options = PlanOptions(context=context, batch=batch, prompt=prompt)
    decode, prefill = step(options)
    slack = 1 - 1e-12
    for changes in ({"context": context + more}, {"batch": batch + more}, {"prompt": prompt + more}):
        later = step(replace(options, **changes))  # type: ignore[arg-type]
        assert later[0] >= decode * slack, changes
        assert later[1] >= prefill * slack, changes


PARAMETERS = 2 * (LINEAR + 2 * 64) + 2 * 64 * 64 + 64  # two blocks with their norms, table and head, the last norm


@pytest.mark.parametrize(
    ("dtype", "published", "form", "nbytes", "rate"),
    [
        ("float32", 0, "", 4 * PARAMETERS, 500),
        ("float16", 0, "", 2 * PARAMETERS, 800),
        ("bfloat16", 0, "", 2 * PARAMETERS, 800),
        ("bfloat16", PARAMETERS + 500, "", PARAMETERS + 500, 400),
        ("bfloat16", 2 * PARAMETERS + 500, "", 2 * PARAMETERS + 500, 800),
        ("float32", PARAMETERS + 500, "float8", PARAMETERS + 500, 400),
        ("float16", PARAMETERS // 2, "gguf", PARAMETERS // 2, 100),
        ("float16", PARAMETERS + 700, "int8", PARAMETERS + 700, 1000),
    ],
    ids=[
        "float32", "float16", "bfloat16", "fp8 of a catalog", "16 bits of a catalog", "fp8 by its headers", "quantised",
        "a conversion, as fast as the disk",
    ],
)  # fmt: skip
@pytest.mark.parametrize("weights", ["int8", "float32"])
def test_a_model_loads_as_long_as_the_rig_takes_for_the_bytes_of_its_checkpoint(
    dtype: str, published: int, form: str, nbytes: int, rate: int, weights: str
) -> None:
    """What it is stored as afterwards is of no account: the checkpoint is what is read, after what every load takes."""
    spec = replace(toy(2, tied=False), checkpoint_dtype=dtype, checkpoint_bytes=published, checkpoint_form=form)
    rates = {"float32": 500.0, "16bit": 800.0, "float8": 400.0, "gguf": 100.0, "int8": 5000.0}
    rig = Rig((Device("cpu", "cpu", 10**9, RATES),), loading=Loading(3.0, 1000.0, tuple(rates.items())))
    made = make_plan(spec, rig, PlanOptions(context=64, storage=Storage(weights=weights)))
    assert made.parameters == PARAMETERS
    assert made.predicted is not None
    assert made.predicted.load_seconds == pytest.approx(3 + nbytes / rate)
    text = plan_text(made, 200)
    assert f"{duration(3 + nbytes / rate)} to load" in text


def test_a_tied_head_is_read_once() -> None:
    rig = Rig((Device("cpu", "cpu", 10**9, RATES),), loading=Loading(0.0, 500.0))
    made = make_plan(replace(toy(blocks=2), checkpoint_dtype="float32"), rig, PlanOptions(context=64))
    assert made.predicted is not None
    assert made.predicted.load_seconds == pytest.approx(4 * (PARAMETERS - 64 * 64) / 500)
