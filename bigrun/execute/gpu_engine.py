"""The engine of a real GPU: its blocks and ends through Triton (or torch alone), decode as a captured CUDA graph."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigrun.devices.gpu_memory import GpuMemory, device_errors, first_line
from bigrun.execute.engine import Arithmetic, Batch, embedding_and_head, place_blocks
from bigrun.execute.executor import computed_on
from bigrun.execute.forward import StepArrays, alibi_slopes, rope_cos_sin, rope_frequencies, run_head, run_program
from bigrun.execute.gpu_backend import make_ops
from bigrun.execute.gpu_sampling import chosen_on_device
from bigrun.execute.kv_cache import ring_slots, ring_tables
from bigrun.execute.sampling import Sampling, fail
from bigrun.loading.loader import LoadedPart
from bigrun.model.gpu_buffers import AHEAD, gpu_step_buffers
from bigrun.model.program import lower, rewrite
from bigrun.model.spec import Block, ModelSpec
from bigrun.planning.plan import Plan
from bigrun.planning.plan_data import DevicePlan
from bigrun_kernels.gpu.torch_ops import Run

SMALL_COPY = 2**15  # bytes from pageable memory that a driver takes without waiting for the device, and some to spare
MOST_GRAPHS = 16  # kept at a time: one for each number of sequences that decode together


class GpuEngine:
    """Blocks and ends of a model on one real GPU. Everything it will use is taken here.

    `mode` is --mode; in `auto`, decode is exact and prefill what this card's table of tiles says. `kernels`: "triton",
    "reference" (torch alone) or "auto". `note` is told what a user should know.
    """

    def __init__(
        self, spec: ModelSpec, plan: Plan, device: DevicePlan, memory: GpuMemory, parts: Mapping[str, LoadedPart],
        mode: str = "auto", threshold: float = 6.0, kernels: str = "auto", note: Callable[[str], None] = print,
    ):  # fmt: skip
        self.spec, self.name, self.memory, self._note = spec, device.name, memory, note
        nothing = torch.empty(0, device=memory.device)
        with device_errors(self.name, "loading"):
            places = spec, plan, self.name, memory, parts, (nothing, nothing), self._slopes
            self.blocks, self.caches = place_blocks(*places)
        self.programs = {i: rewrite(lower(spec.blocks[i]), "gpu") for i in self.blocks}
        self.ends = embedding_and_head(spec, parts, device.name, nothing)
        rows, computes = max(plan.prefill_chunk_tokens, plan.batch), computed_on(plan, device.name)
        buffers = gpu_step_buffers(spec, plan.storage, rows, plan.batch, plan.context_tokens, *computes)
        ours = [buffer for buffer in buffers if buffer.name != "library"]
        self.work = memory.buffers(ours, "workspace", "workspace")
        self._rings = sorted({cache.ring for cache in self.caches.values()} - {0})
        for ring in self._rings:  # their tables are the same in every step
            tables = self.work[f"tables.{ring}"]
            tables.copy_(torch.from_numpy(ring_tables(ring, *tables.shape)))
        self.ops, prefill = make_ops(memory.device, self.work, plan.batch, kernels, plan.weights == "int8", note)
        usual = Arithmetic(prefill, "exact", threshold)
        self.arithmetic = usual if mode == "auto" else Arithmetic(mode, mode, threshold)
        rope = next((block.rope for block in spec.blocks if block.positions == "rope"), None)
        self._frequencies = rope_frequencies(rope) if rope else None
        self._graphs: dict[tuple[int, int, int, str], Any] = {}
        self._capturing = memory.device.type == "cuda" and self.ops.capturable
        # of its own: the one that torch would capture on belongs to the device that was captured first
        self._stream = torch.cuda.Stream(memory.device) if self._capturing else None
        self._events: list[Any] = [None] * AHEAD
        self._tokens_on_host = torch.zeros(
            (AHEAD, 3), dtype=torch.int64, device="cpu", pin_memory=memory.device.type == "cuda"
        )
        if memory.device.type == "cuda":
            torch.cuda.empty_cache()  # of what was on its way while parts were loaded
        self._batch: Batch
        self._step: StepArrays

    def _slopes(self, block: Block) -> Tensor | None:
        """ALiBi's, or None."""
        alibi = block.positions == "alibi"
        return torch.from_numpy(alibi_slopes(block.heads)).to(self.memory.device) if alibi else None

    @property
    def repeatable(self) -> bool:
        return False  # decode has its own kernels, and tiles follow from a step's tokens: last bits differ

    @property
    def x(self) -> Tensor:
        return self.work["x"][: len(self._batch.ids)]

    def begin(self, batch: Batch, page_tables: np.ndarray, ids: bool = True) -> None:
        """The step's tokens; their `ids` stay those on the device if it chose them itself."""
        self._batch, count = batch, len(batch.ids)
        with device_errors(self.name, "a step"):
            for name in ("ids", "positions", "sequences", "slots"):
                if ids or name != "ids":
                    self.work[name][:count].copy_(torch.from_numpy(getattr(batch, name)), non_blocking=True)
            self.work["tables"].copy_(torch.from_numpy(page_tables), non_blocking=True)
            for ring in self._rings:
                places = torch.from_numpy(ring_slots(ring, batch.positions, batch.sequences))
                self.work[f"slots.{ring}"][:count].copy_(places, non_blocking=True)
            rotates = self._frequencies is not None and "cos_sin" in self.work
            cos_sin = self._cos_sin(batch.positions) if rotates else None
        positions, sequences, slots = (self.work[name][:count] for name in ("positions", "sequences", "slots"))
        mode = self.arithmetic.mode(batch.phase)
        rings = {ring: (self.work[f"slots.{ring}"][:count], self.work[f"tables.{ring}"]) for ring in self._rings}
        self._step = StepArrays(
            positions, sequences, slots, self.work["tables"], cos_sin, mode, self.arithmetic.threshold, rings
        )
        self.ops.begin(batch.phase == "decode", runs_of_tokens(batch))

    def _cos_sin(self, positions: np.ndarray) -> Tensor:
        """Cosines and sines of these positions. Many are computed on the device: a copy of over 64 KiB would wait for it."""
        assert self._frequencies is not None, "there are rotary positions"
        cos_sin = self.work["cos_sin"][: len(positions)]
        if cos_sin.numel() * cos_sin.element_size() <= SMALL_COPY:
            cos_sin.copy_(torch.from_numpy(rope_cos_sin(self._frequencies, positions)), non_blocking=True)
            return cos_sin
        at = self.work["positions"][: len(positions)]
        angles = at[:, None].double() * torch.from_numpy(self._frequencies).to(at.device)
        half = cos_sin.shape[1] // 2
        cos_sin[:, :half].copy_(angles.cos())
        cos_sin[:, half:].copy_(angles.sin())
        return cos_sin

    def embed(self) -> None:
        x, ends, count = self.x, self.ends, len(self._batch.ids)
        assert ends.table is not None, "the embedding is here"
        with device_errors(self.name, "looking up tokens"):
            self.ops.lookup(self.work["ids"][:count], ends.table, x)
            if self.spec.embed_scale != 1.0:
                x *= self.spec.embed_scale
            if ends.positions is not None:
                x += ends.positions[self._step.positions + self.spec.position_offset]
            if ends.embed_norm is not None:
                self.ops.norm(x, ends.embed_norm.weight, ends.embed_norm.bias, self.spec.blocks[0].norm_eps, x)

    def run(self, first: int, stop: int) -> None:
        key = (first, stop, len(self._batch.ids), self._step.mode)
        with device_errors(self.name, f"blocks {first} to {stop - 1}"):
            if self._batch.phase != "decode" or not self._capturing:
                self._blocks(first, stop)
            elif key not in self._graphs:  # the first step compiles and loads kernels, which no graph may
                self._blocks(first, stop)
                while len(self._graphs) >= MOST_GRAPHS:
                    self._graphs.pop(next(iter(self._graphs)))
                self._graphs[key] = None
            else:
                if self._graphs[key] is None:
                    self._graphs[key] = self._capture(first, stop)
                if self._graphs[key] is not None:
                    self._graphs[key].replay()
                else:
                    self._blocks(first, stop)

    def _blocks(self, first: int, stop: int) -> None:
        x = self.x
        for i in range(first, stop):
            run_program(self.ops, self.programs[i], self.blocks[i], self._step, self.caches[i], self.work, x)

    def _capture(self, first: int, stop: int) -> Any:
        """The blocks as one CUDA graph; None where the driver will not have it, and then never again."""
        device = self.memory.device
        usual, graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
        try:
            with (
                torch.cuda.device(device),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                self._blocks(first, stop)
        except RuntimeError as error:
            with torch.cuda.device(device):
                torch.cuda.set_stream(usual)  # a capture that fails does not go back to it
            self._capturing = False
            self._note(f"{self.name}: decode runs without a CUDA graph ({first_line(error)})")
            return None
        return graph

    def _head(self, count: int) -> Tensor:
        """Logits of what is in `head_input`, in their buffer."""
        ends = self.ends
        assert ends.norm is not None, "the norm is here"
        assert ends.head is not None, "and the head"
        inputs, out = self.work["head_input"][:count], self.work["logits"][:count]
        run_head(self.ops, ends.norm, self.spec.blocks[0].norm_eps, ends.head, inputs, self.work, out)
        return out

    def logits(self) -> np.ndarray:
        rows = self._batch.logit_rows
        result = np.empty((len(rows), self.spec.vocab), np.float32)
        held = len(self.work["logits"])
        with device_errors(self.name, "the head"):
            for start in range(0, len(rows), held):
                some = torch.from_numpy(rows[start : start + held]).to(self.memory.device)
                torch.index_select(self.x, 0, some, out=self.work["head_input"][: len(some)])
                result[start : start + len(some)] = self._head(len(some)).cpu().numpy()
        return result

    def choose(self, sampling: Sampling, noise_stream: int, position: int, number: int) -> None:
        """The next token of the one sequence in the step, chosen on the device: it is the next step's id there, and on its way
        to the host as the `number`th of those under way."""
        with device_errors(self.name, "choosing a token"):
            self.work["head_input"][:1].copy_(self.x[:1])
            logits = self._head(1)[0]
            choice = self.work["chosen"][number % AHEAD]
            chosen_on_device(logits, sampling, noise_stream, position, choice)
            self.work["ids"][:1].copy_(choice[:1])
            self._tokens_on_host[number % AHEAD].copy_(choice, non_blocking=True)
            if self.memory.device.type == "cuda":
                event = self._events[number % AHEAD] = self._events[number % AHEAD] or torch.cuda.Event()
                event.record(torch.cuda.current_stream(self.memory.device))

    def read_token(self, number: int, position: int) -> int:
        """The `number`th token that was chosen; waits for it."""
        with device_errors(self.name, "a step"):
            if (event := self._events[number % AHEAD]) is not None:
                event.synchronize()
        token, good, bits = self._tokens_on_host[number % AHEAD].tolist()
        if not good:
            fail(float(np.int32(bits).view(np.float32)), token, 0, position)
        return int(token)

    def give(self) -> np.ndarray:
        with device_errors(self.name, "a step"):
            activations: np.ndarray = self.x.cpu().numpy()
        return activations

    def take(self, x: np.ndarray) -> None:
        with device_errors(self.name, "a step"):
            self.x.copy_(torch.from_numpy(x))

    def take_from(self, other: "GpuEngine") -> None:
        """x ← another GPU's, without a way through host memory where the cards reach each other."""
        with device_errors(self.name, "a step"):
            self.x.copy_(other.x, non_blocking=True)

    def close(self) -> None:
        self._graphs.clear()
        self.blocks.clear()
        self.caches.clear()
        self.work = {}
        self.memory.close()


def runs_of_tokens(batch: Batch) -> list[Run]:
    """Tokens of one sequence at consecutive positions, together."""
    runs: list[Run] = []
    for i, (sequence, position) in enumerate(zip(batch.sequences.tolist(), batch.positions.tolist(), strict=True)):
        last = runs[-1] if runs else None
        if last and last.sequence == sequence and last.first + i - last.start == position:
            runs[-1] = last._replace(stop=i + 1)
        else:
            runs.append(Run(i, i + 1, sequence, position))
    return runs
