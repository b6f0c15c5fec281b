"""The program of a block: what it computes, lowered once into a short list of steps that every reader takes.

    norm x → normed [attention_norm]          linear normed → qkv [qkv]           rope qkv          store qkv → kv
    attend qkv, kv → attention                linear attention +→ x [out]         norm x → normed [mlp_norm]
    linear normed → up [up]                   activate up → gated                 linear gated +→ x [down]

A step is frozen data: an op, the buffers that it reads and writes, the weights that it names by the stems of canonical tensors
(spec.py), and what it takes, counted for one token. Who executes a block, plans its buffers, predicts its time or loads its
weights reads this list and nothing else of the block. `rewrite` merges steps as a target executes them.

A program describes everything that a family says of its blocks, also what no engine executes yet: `bigrun_kernels.ops.EXECUTES`
lists what each target has, and execute/supported.py refuses the rest by name.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Any

from bigrun.model.spec import Block, ModelSpec
from bigrun_kernels.ops import ACTIVATIONS, EXECUTES

X, NORMED, PARALLEL, KV = "x", "normed", "parallel", "kv"


@dataclass(frozen=True)
class Step:
    """One op of a program, with what it takes for a token."""

    op: str
    reads: tuple[str, ...]  # names of buffers; `kv` is the cache
    writes: str
    adds: bool = False  # onto what is there
    weights: tuple[str, ...] = ()  # stems of canonical tensors: qkv is qkv.weight and its bias
    attributes: tuple[tuple[str, Any], ...] = ()
    width: int = 0  # entries written
    columns: int = 0  # entries read of the first buffer, where they are a linear's input
    products: int = 0  # multiply-adds with weights
    scores: int = 0  # multiply-adds for each token of context
    entries: int = 0  # passed through elementwise arithmetic

    @cached_property
    def attribute(self) -> Mapping[str, Any]:
        """The attributes by name."""
        return dict(self.attributes)

    def __str__(self) -> str:
        arrow = "+→" if self.adds else "→"
        names = f" [{', '.join(self.weights)}]" if self.weights else ""
        plain = [
            f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in self.attributes
        ]
        return f"{self.op} {', '.join(self.reads)} {arrow} {self.writes}{names}{' (' + ', '.join(plain) + ')' if plain else ''}"


@dataclass(frozen=True)
class Program:
    """Steps in their order, and the entries a token of every buffer that they write."""

    steps: tuple[Step, ...]
    widths: tuple[tuple[str, int], ...]

    @property
    def weights(self) -> tuple[str, ...]:
        """The stems of all weights, in the order of their first use."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.weights))

    def __str__(self) -> str:
        return "\n".join(map(str, self.steps))


class _Builder:
    """Collects steps and the widths of what they write."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.widths: dict[str, int] = {}

    def add(self, op: str, reads: str, writes: str, *weights: str, adds: bool = False, **more: Any) -> None:
        numbers = {field.name: more.pop(field.name) for field in fields(Step) if field.name in more}
        step = Step(op, tuple(reads.split()), writes, adds, weights, tuple(more.items()), **numbers)
        self.steps.append(step)
        if writes not in (X, KV):
            self.widths[writes] = max(step.width, self.widths.get(writes, 0))

    def norm(self, block: Block, reads: str, writes: str, weights: str) -> None:
        self.add(
            "norm", reads, writes, weights, kind=block.norm, eps=block.norm_eps, width=block.hidden,
            entries=2 * block.hidden,
        )  # fmt: skip

    def linear(
        self, reads: str, writes: str, weights: str, rows: int, columns: int, adds: bool = False, bias: bool = False
    ) -> None:
        more: dict[str, Any] = {"bias": True} if bias else {}
        self.add(
            "linear", reads, writes, weights, adds=adds, width=rows, columns=columns, products=rows * columns, **more
        )

    def program(self) -> Program:
        return Program(tuple(self.steps), tuple(self.widths.items()))


@cache
def lower(block: Block) -> Program:
    """The program of one block; of a mixture, of all but its experts (`lower_experts`)."""
    build = _Builder()
    build.norm(block, X, NORMED, "attention_norm")
    (_latent_attention if block.latent else _attention)(build, block)
    side = PARALLEL if block.parallel and block.mlp_norm else NORMED  # what the MLP reads
    if side == PARALLEL:  # of the block's input, before attention's output joins it
        build.norm(block, X, side, "mlp_norm")
    _join(build, block, "attention", X, "out", "after_attention_norm", block.out_bias)
    if block.mlp_norm and not block.parallel:
        build.norm(block, X, side, "mlp_norm")
    _mlp(build, block, side)
    return build.program()


def _attention(build: _Builder, block: Block) -> None:
    heads: dict[str, Any] = {"heads": block.heads, "kv_heads": block.kv_heads, "head_dim": block.head_dim}
    build.linear(NORMED, "qkv", "qkv", block.qkv_rows, block.hidden, bias=block.qkv_bias)
    if block.qk_norm:
        build.add(
            "norm_heads", "qkv", "qkv", "q_norm", "k_norm", **heads, eps=block.norm_eps, width=block.qkv_rows,
            entries=2 * (block.q_rows + block.kv_rows),
        )  # fmt: skip
    _rope(build, block, heads, block.qkv_rows)
    build.add("store", "qkv", KV, **heads, width=2 * block.kv_rows, entries=block.qkv_rows)
    sinks = ("sinks",) if block.sinks else ()
    build.add(
        "attend", f"qkv {KV}", "attention", *sinks, **heads, scale=1.0 / math.sqrt(block.head_dim), value=block.head_dim,
        **_reach(block), width=block.q_rows, scores=2 * block.head_dim * block.heads, entries=block.q_rows,
    )  # fmt: skip


def _reach(block: Block) -> dict[str, Any]:
    """What attention does beside products and softmax."""
    more = {
        "alibi": block.positions == "alibi", "alibi_bfloat16": block.alibi_bfloat16, "window": block.window,
        "sinks": block.sinks,
    }  # fmt: skip
    return {name: value for name, value in more.items() if value}


def _rope(build: _Builder, block: Block, heads: Mapping[str, Any], width: int) -> None:
    rope = block.rope
    if block.positions == "rope" and rope is not None:
        scaling: dict[str, Any] = {} if rope.kind == "default" else {"scaling": rope.kind}
        build.add("rope", "cos_sin qkv", "qkv", **heads, dims=rope.dims, theta=rope.theta, **scaling, width=width)
        build.widths["cos_sin"] = rope.dims


def _latent_attention(build: _Builder, block: Block) -> None:
    """Latent attention (DeepSeek-V2, section 2.1) in its absorbed form: queries meet the cached vector itself."""
    latent = block.latent
    assert latent is not None, "latent attention has its sizes"
    queries, low = block.heads * (latent.nope + latent.rope), latent.kv_rank + latent.rope
    source, columns = NORMED, block.hidden
    whole = queries + latent.q_rank + low  # one buffer holds the queries and what they are made of
    if latent.q_rank:
        build.linear(NORMED, "qkv", "q_down", latent.q_rank, block.hidden)
        build.add("norm", "qkv", "qkv", "q_norm", kind="rms", eps=block.norm_eps, width=latent.q_rank)
        source, columns = "qkv", latent.q_rank
    build.linear(source, "qkv", "q", queries, columns)
    build.linear(NORMED, "qkv", "kv_down", low, block.hidden)
    build.add("norm", "qkv", "qkv", "kv_norm", kind="rms", eps=block.norm_eps, width=latent.kv_rank)
    build.widths["qkv"] = whole
    heads: dict[str, Any] = {"heads": block.heads, "kv_heads": 1, "head_dim": latent.rope}
    _rope(build, block, heads, latent.rope)
    build.add("store", "qkv", KV, latent=latent.kv_rank, width=low, entries=block.qkv_rows)
    absorbed = block.heads * latent.kv_rank
    build.add("absorb", "qkv", "absorbed", "kv", width=absorbed, products=absorbed * latent.nope)
    build.add(
        "attend", f"absorbed qkv {KV}", "absorbed", **heads, latent=latent.kv_rank,
        scale=1.0 / math.sqrt(latent.nope + latent.rope), value=latent.kv_rank, **_reach(block), width=absorbed,
        scores=block.heads * (2 * latent.kv_rank + latent.rope), entries=block.q_rows,
    )  # fmt: skip
    values = block.heads * latent.value
    build.add("expand", "absorbed", "attention", "kv", width=values, products=values * latent.kv_rank)


def _join(build: _Builder, block: Block, reads: str, writes: str, linear: str, norm: str, bias: bool) -> None:
    """A half's last linear onto the residual stream, by way of its own norm where it has one."""
    columns = build.widths[reads]
    if not block.after_norms:
        build.linear(reads, writes, linear, block.hidden, columns, adds=writes == X, bias=bias)
        return
    # a norm that both halves, or the experts, read is still wanted
    between = NORMED if block.mlp_norm and block.experts is None else "between"
    build.linear(reads, between, linear, block.hidden, columns, bias=bias)
    build.norm(block, between, between, norm)
    build.add("add", between, writes, adds=writes == X, width=block.hidden, entries=block.hidden)


def _mlp(build: _Builder, block: Block, reads: str) -> None:
    """The MLP, which reads a norm's output; of a mixture, the router and the MLP that all tokens share, if there is one."""
    experts = block.experts
    inner = block.intermediate if experts is None else experts.shared
    if experts is not None:
        bias: dict[str, Any] = {"bias": True} if experts.router_bias else {}
        build.add(
            "route", reads, "routes", "router", active=experts.active, **bias, width=experts.count, columns=block.hidden,
            products=experts.count * block.hidden,
        )  # fmt: skip
    if not inner:
        return
    build.linear(reads, "up", "up", inner * (2 if block.gated else 1), block.hidden, bias=block.mlp_bias)
    gated = "gated" if block.gated else "up"  # in place where there is no gate
    build.add(
        "activate", "up", gated, kind=block.activation, gated=block.gated, width=inner, entries=3 * inner,
    )  # fmt: skip
    if experts is not None and experts.shared_gate:
        build.add("gate", f"{reads} {gated}", gated, "shared_gate", width=inner, products=block.hidden)
    _join(build, block, gated, X, "down", "after_mlp_norm", block.mlp_bias)


@cache
def lower_experts(block: Block) -> Program:
    """The program of a block's experts: one step, whose rows depend on the data; its buffers are those of the worst case."""
    build, experts = _Builder(), block.experts
    if experts is None:
        return build.program()
    inner, rows = experts.intermediate, experts.intermediate * (2 if block.gated else 1)
    build.add(
        "experts", f"{NORMED} routes", X, "experts.up", "experts.down", adds=True, kind=block.activation, gated=block.gated,
        count=experts.count, active=experts.active, bias=experts.bias, width=block.hidden, columns=max(inner, block.hidden),
        products=experts.active * (rows + inner) * block.hidden, entries=experts.active * (2 * block.hidden + 3 * inner),
    )  # fmt: skip
    build.widths |= {"up": rows, "gated": inner, "gathered": block.hidden, "sum": block.hidden, "routes": experts.count}
    return build.program()


@cache
def rewrite(program: Program, target: str) -> Program:
    """The program as a target executes it.

    "host" and "gpu": op by op, neighbours merged into the fused ops of `bigrun_kernels.ops`; on a GPU no activation is in
    place. "compiled": the CPU's compiled call, where what a linear reads is quantised by the step that writes it.
    """
    if target == "compiled":
        return Program(tuple(_quantised(program.steps)), program.widths)
    steps, widths = list(program.steps), dict(program.widths)
    if target == "gpu":
        for i, step in enumerate(steps):
            if step.op == "activate" and step.writes in step.reads:
                widths["inner"] = widths[step.writes]
                steps[i] = replace(step, writes="inner")
                for j in range(i + 1, len(steps)):
                    steps[j] = _renamed(steps[j], step.writes, "inner")
                break
    return Program(tuple(_merged(tuple(steps))), tuple(widths.items()))


def programs(spec: ModelSpec, target: str) -> list[Program]:
    """The programs of all kinds of blocks and experts of a model, as a target executes them, each once."""
    kinds = dict.fromkeys(spec.blocks)
    return [rewrite(made, target) for block in kinds for made in (lower(block), lower_experts(block)) if made.steps]


def buffer_widths(some: Iterable[Program]) -> dict[str, int]:
    """Entries a token of the buffers that programs pass through: the widest of any of them."""
    widths: dict[str, int] = {}
    for program in some:
        for name, width in program.widths:
            widths[name] = max(width, widths.get(name, 0))
    return widths


def unsupported(program: Program, target: str) -> str:
    """The first step of a program that a target does not execute, in words; "" if it executes all of them."""
    known = EXECUTES[target]
    for step in program.steps:
        of = f" of {', '.join(step.weights)}" if step.weights else ""
        if step.op not in known:
            return f"the step {step.op}{of}"
        for name, value in step.attributes:
            if name not in known[step.op]:
                return f"the step {step.op} with {name} = {value!r:.60}"
        kind = step.attribute.get("kind")
        if step.op.startswith("activate") and kind not in ACTIVATIONS:
            return f"the activation {kind}"
    return ""


MERGED = {("norm", "linear"): "norm_linear", ("rope", "store"): "rope_store", ("activate", "linear"): "activate_linear"}


def _merged(steps: tuple[Step, ...]) -> Iterator[Step]:
    """Neighbours as one step where the second reads what the first writes, and nobody else does."""
    i = 0
    while i < len(steps):
        pair = steps[i : i + 2]
        name = MERGED.get((pair[0].op, pair[-1].op), "") if len(pair) == 2 else ""
        if name and _fits(name, *pair) and (name == "rope_store" or _is_last(steps, i + 1, pair[0].writes)):
            yield _merge(name, *pair)
            i += 2
            continue
        yield replace(pair[0], op="rope_store") if pair[0].op == "store" else pair[0]
        i += 1


def _renamed(step: Step, old: str, new: str) -> Step:
    """The step with another buffer in the place of one."""
    reads = tuple(new if name == old else name for name in step.reads)
    return replace(step, reads=reads, writes=new if step.writes == old else step.writes)


def _fits(name: str, first: Step, second: Step) -> bool:
    """Whether the second step reads what the first writes, in a form that the fused ops have."""
    onto = second.adds or name != "activate_linear"  # which is onto the residual stream alone
    return onto and first.writes in second.reads and (name == "rope_store" or first.writes != second.writes)


def _is_last(steps: tuple[Step, ...], at: int, buffer: str) -> bool:
    """Whether no step after this one reads a buffer before it is written anew."""
    for step in steps[at + 1 :]:
        if buffer in step.reads:
            return False
        if step.writes == buffer:
            return True
    return True


def _merge(name: str, first: Step, second: Step) -> Step:
    attributes = dict((*first.attributes, *second.attributes))
    through = () if name == "rope_store" else (first.writes,)
    return replace(
        second, op=name, reads=(*first.reads, *through), weights=(*first.weights, *second.weights),
        attributes=tuple(attributes.items()), entries=first.entries + second.entries,
    )  # fmt: skip


def _quantised(steps: tuple[Step, ...]) -> Iterator[Step]:
    """Steps with what linears read quantised: by the norm or activation that writes it, else by a step of its own."""
    ready = ""  # the buffer whose quantised form is there: one at a time
    if not steps:
        return
    rope = next((step for step in steps if step.op == "rope"), None)
    for step, following in zip(steps, (*steps[1:], None), strict=True):
        feeds = following is not None and following.op == "linear" and step.writes in following.reads
        if step.op == "linear" and ready != step.reads[0]:
            yield Step("quantise", step.reads[:1], step.reads[0], width=step.columns)
            ready = step.reads[0]
        if feeds and step.op in ("norm", "activate"):
            yield replace(step, op=f"{step.op}_quantise")
            ready = step.writes
        elif step.op == "attend":  # whose spans are merged, wherever it is read
            yield step
            yield Step("merge_quantise", (step.writes,), step.writes, attributes=step.attributes, width=step.width)
            ready = step.writes
        elif step.op == "store":
            attributes = {**dict(rope.attributes if rope else ()), **dict(step.attributes)}
            reads = (*(("cos_sin",) if rope else ()), *step.reads)
            yield replace(step, op="rope_store", reads=reads, attributes=tuple(attributes.items()))
        elif step.op != "rope":
            yield step
            ready = "" if step.writes == ready else ready
