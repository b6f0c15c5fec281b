"""The executor: one step of any tokens through all parts, each on its device, the residual stream hopping between."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from bigrun.devices.host_memory import Memory
from bigrun.errors import RunError
from bigrun.execute.cpu_engine import CpuEngine
from bigrun.execute.engine import Arithmetic, Batch, Engine, embedding_and_head, place_blocks, runs_of
from bigrun.execute.forward import alibi_slopes
from bigrun.execute.kv_cache import PageTables
from bigrun.execute.prefix import CachedSequence
from bigrun.execute.sampling import Sampling, choose, seen_tokens
from bigrun.execute.supported import why_not_executable
from bigrun.loading.loader import LoadedPart
from bigrun.model.buffers import LONGEST_CHUNK, step_buffers
from bigrun.model.spec import Block, ModelSpec
from bigrun.planning.plan import Plan
from bigrun.planning.plan_data import DevicePlan
from bigrun_kernels.ops import Ops

NOTHING, NO_SCALE = np.empty(0, np.float32), np.empty(0, np.uint16)

# (spec, plan, the device in it, its memory, its parts) → the engine of a real GPU
MakeEngine = Callable[[ModelSpec, Plan, DevicePlan, Any, Mapping[str, LoadedPart]], Engine]


class Executor:
    """A loaded model. Holds every buffer it will ever use: a step allocates nothing on a device.

    `arithmetic` is the host's; `gpu_engine` makes the engine of each real GPU.
    """

    def __init__(
        self, spec: ModelSpec, plan: Plan, parts: Iterable[LoadedPart], memories: Mapping[str, Memory],
        ops: Ops, arithmetic: Arithmetic, gpu_engine: MakeEngine | None = None,
    ):  # fmt: skip
        if why := why_not_executable(spec):
            raise RunError(f"{spec.name}: cannot be executed: {why}")
        self.spec, self.plan, self.memories, self.ops, self.arithmetic = spec, plan, memories, ops, arithmetic
        self.pages = PageTables(plan.context_tokens, plan.batch, spec.blocks)
        self.cached = [CachedSequence() for _ in range(plan.batch)]
        self.parts = {part.part.name: part for part in parts}
        self.runs = runs_of([plan.placement(f"blocks.{i}").decode_on for i in range(len(spec.blocks))])
        self.engines: dict[str, Engine] = {}
        for device in plan.devices:
            if device.workspace_bytes:
                memory = memories[device.name]
                if memory.is_gpu:
                    assert gpu_engine is not None, "a plan with real GPUs comes with what makes their engines"
                    self.engines[device.name] = gpu_engine(spec, plan, device, memory, self.parts)
                else:
                    self.engines[device.name] = self._host_engine(device, memory)
        self._embed, self._head = (self.engines[str(plan.placement(name).decode_on)] for name in ("embed", "head"))

    def _host_engine(self, device: DevicePlan, memory: Any) -> CpuEngine:
        spec, plan = self.spec, self.plan
        nothing = NOTHING, NO_SCALE
        blocks, caches = place_blocks(spec, plan, device.name, memory, self.parts, nothing, _slopes)
        rows = max(plan.prefill_chunk_tokens, plan.batch)
        computes = computed_on(plan, device.name)
        work = memory.buffers(
            step_buffers(spec, rows, plan.batch, plan.context_tokens, *computes), "workspace", "workspace"
        )
        ends = embedding_and_head(spec, self.parts, device.name, NOTHING)
        return CpuEngine(spec, self.ops, self.arithmetic, work, ends, blocks, caches)

    def step(self, batch: Batch) -> np.ndarray:
        """Logits float32 [rows, vocab] of the wanted tokens. At most `prefill_chunk_tokens` (or `batch`) tokens."""
        for engine in self.engines.values():
            engine.begin(batch, self.pages.tables)
        here = self._embed
        here.embed()
        for first, stop, device in self.runs:
            here = _hop(here, self.engines[device])
            here.run(first, stop)
        return _hop(here, self._head).logits()

    def reuse_prefix(self, ids: Sequence[int], sequence: int = 0) -> int:
        """Keep of a sequence what a prompt begins with, and forget the rest; how many tokens need not be computed again."""
        count = self.reusable_prefix(ids, sequence)
        self._truncate(sequence, count)
        return count

    def reusable_prefix(self, ids: Sequence[int], sequence: int) -> int:
        """How many of a prompt's tokens `reuse_prefix` would keep of a sequence."""
        count = self.cached[sequence].reusable(ids, self._piece, self.repeatable)
        return count if self.pages.keeps(sequence, count) else 0

    @cached_property
    def repeatable(self) -> bool:
        """Whether a token's results depend neither on its phase nor on what is computed beside it, on every device."""
        return all(engine.repeatable for engine in self.engines.values())

    @property
    def _chunk(self) -> int:
        """Tokens of a step at most."""
        return max(self.plan.prefill_chunk_tokens, self.plan.batch)

    @property
    def _piece(self) -> int:
        """Tokens of one sequence in a step at most: a ring has room for no more (model/buffers.py: kept_pages)."""
        return min(self._chunk, LONGEST_CHUNK)

    def generate(self, ids: Sequence[int], sampling: Sampling, limit: int, noise_stream: int = 0) -> Iterator[int]:
        """At most `limit` tokens that follow a prompt, in sequence 0, of which the beginning that the prompt shares is reused.
        `noise_stream`: the number of the prompt among several, which has noise of its own.

        Where one GPU holds the whole model, it chooses the tokens after the first itself, one ahead of the one given out, if it
        can make such choices (execute/gpu_sampling.py).
        """
        seen = None if sampling.repetition_penalty == 1 else seen_tokens(ids, self.spec.vocab)
        logits = self.forward({0: ids[self.reuse_prefix(ids) :]}, phase="prefill")[0]
        for i in range(limit):
            token = choose(logits, sampling, noise_stream, int(self.pages.lengths[0]), seen)
            yield token
            if i == 0 and (engine := self._choosing_engine(sampling)) is not None:
                yield from self._generate_on(engine, token, sampling, limit - 1, noise_stream)
                return
            if i + 1 < limit:
                if seen is not None:
                    seen[token] = True
                logits = self.forward({0: [token]}, phase="decode")[0]

    def _generate_on(self, engine: Any, token: int, sampling: Sampling, limit: int, noise_stream: int) -> Iterator[int]:
        """The `limit` tokens after `token`, which was chosen for the end of sequence 0 and is fed first."""
        position = int(self.pages.lengths[0])
        begun = done = 0
        while done < limit:
            while begun < min(done + 2, limit) and self.pages.lengths[0] < self.plan.context_tokens:
                batch = self._batch([(0, np.array([token]), True)], False, "decode")
                engine.begin(batch, self.pages.tables, ids=begun == 0)
                engine.embed()
                engine.run(0, len(self.spec.blocks))
                begun += 1
                engine.choose(sampling, noise_stream, position + begun, begun)
            if done == begun:
                raise RunError(f"the context of {self.plan.context_tokens} tokens is full: give a larger --context")
            done += 1
            yield engine.read_token(done, position + done)

    def _choosing_engine(self, sampling: Sampling) -> Any:
        """The engine of the GPU that has everything, if there is one and it makes such choices; else None."""
        if len(self.engines) != 1 or not self.memories[next(iter(self.engines))].is_gpu:
            return None
        from bigrun.execute.gpu_sampling import stays_on_device

        return self._head if stays_on_device(sampling) else None

    def close(self) -> None:
        """Let go of the devices."""
        for engine in self.engines.values():
            engine.close()

    def forward(
        self, tokens: Mapping[int, Sequence[int] | np.ndarray], every: bool = False, phase: str | None = None
    ) -> dict[int, np.ndarray]:
        """Take tokens into sequences, in as many steps as the chunk asks for; logits of each one's last token, float32
        [vocab], or of every token, [count, vocab]. `phase`: decode or prefill; None: decode if each sequence goes on by one."""
        if phase is None:
            goes_on = all(len(ids) == 1 and self.pages.lengths[s] > 0 for s, ids in tokens.items())
            phase = "decode" if goes_on else "prefill"
        queue = [(s, np.asarray(ids, np.int64)) for s, ids in tokens.items()]
        results: dict[int, list[np.ndarray]] = {s: [] for s in tokens}
        while queue:
            taken, room = [], self._chunk
            while queue and room:
                sequence, ids = queue.pop(0)
                piece = ids[: min(room, self._piece)]
                room -= len(piece)
                last = len(piece) == len(ids)
                taken.append((sequence, piece, last))
                if not last:
                    queue.insert(0, (sequence, ids[len(piece) :]))
                    break
            batch = self._batch(taken, every, phase)
            logits = self.step(batch)
            for sequence, ids, _ in taken:
                cached = self.cached[sequence]
                as_prompt = phase == "prefill" and len(taken) == 1 and len(cached.ids) % self._piece == 0
                cached.append(ids.tolist(), as_prompt)
            for row, sequence in zip(logits, batch.sequences[batch.logit_rows], strict=True):
                results[int(sequence)].append(row)
        return {s: np.stack(rows) if every else rows[-1] for s, rows in results.items()}

    def _batch(self, taken: list[tuple[int, np.ndarray, bool]], every: bool, phase: str) -> Batch:
        ids, positions, sequences, slots, rows = [], [], [], [], []
        count = 0
        for sequence, tokens, last in taken:
            where, slot = self.pages.extend(sequence, len(tokens))
            ids.append(tokens)
            positions.append(where)
            slots.append(slot)
            sequences.append(np.full(len(tokens), sequence, np.int64))
            count += len(tokens)
            if every:
                rows.append(np.arange(count - len(tokens), count))
            elif last:
                rows.append(np.array([count - 1]))
        parts = (ids, positions, sequences, slots, rows or [np.empty(0, np.int64)])
        joined = [np.concatenate(part) for part in parts]
        return Batch(joined[0], joined[1], joined[2], joined[3], joined[4], phase)

    def clear(self, sequence: int) -> None:
        """Forget a sequence; its pages are free for others."""
        self._truncate(sequence, 0)

    def _truncate(self, sequence: int, length: int) -> None:
        self.cached[sequence].truncate(length)
        self.pages.truncate(sequence, length)


def _slopes(block: Block) -> np.ndarray:
    """float32 [heads], zeros without ALiBi."""
    return alibi_slopes(block.heads) if block.positions == "alibi" else np.zeros(block.heads, np.float32)


def _hop(here: Engine, there: Engine) -> Engine:
    """The residual stream on the next device: a copy into its own buffer."""
    if here is there:
        return there
    if hasattr(here, "take_from") and hasattr(there, "take_from"):  # both are GPUs
        there.take_from(here)
    else:
        there.take(here.give())
    return there


def computed_on(plan: Plan, device: str) -> tuple[bool, bool]:
    """Whether a device computes blocks, and the head."""
    names = [p.part for p in plan.placements if p.decode_on == device]
    return any(name.startswith("blocks.") for name in names), "head" in names
