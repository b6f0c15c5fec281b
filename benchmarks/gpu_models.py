"""Whole models on the GPU: how right their logits are, whether they stay in their plan, and how fast they are.

The models are random (gpu_peer.py); what they are held against is the same numbers in plain torch on the same card.
"""

import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from gpu_bench import Bench, Row
from gpu_peer import Config, Peer, apart, checkpoint, config, llm_int8, reference_logits, tokens

# The most relative error from float32: half as much again as the host's kernels make of such a model of 12 layers (0.027 and
# 0.033; less of one of 32). The most KL: docs/architecture.md's for `auto`, and what it found of LLM.int8().
BARS = {"exact": (0.04, 0.0065), "auto": (0.05, 0.0065), "llm.int8": (0.05, 0.0165)}
HOST = 0.01  # how far float16 between linears may take a GPU's logits from the host's, or one path's from another's
EXACT_TOKENS = 32  # whose logits the hybrid's are compared with


def small_files(b: Bench) -> Iterator[Row]:
    yield written(b, "0.1b")


def large_files(b: Bench) -> Iterator[Row]:
    yield written(b, "7b")


def written(b: Bench, size: str) -> Row:
    """A checkpoint, written before anything needs it."""
    started = time.perf_counter()
    nbytes = sum(file.stat().st_size for file in checkpoint(b, size).iterdir())
    return b.timed(f"files: a random {size}", time.perf_counter() - started, "s", note=f"{nbytes / 1e9:.2f} GB")


def host_kernels(b: Bench) -> Iterator[Row]:
    """The host's kernels, compiled once for this machine: a Runner needs them to convert weights."""
    started = time.perf_counter()
    with opened(b, "0.1b", gpu=False) as runner:
        runner.executor.forward({0: [1, 2, 3]})
    yield b.timed("files: the host's kernels compiled, first tokens", time.perf_counter() - started, "s")


def gpu_kernels(b: Bench) -> Iterator[Row]:
    """The engine's kernels, compiled for this card while others are checked: nothing that is timed waits for them."""
    started = time.perf_counter()
    with opened(b, "0.1b") as runner:
        engine = gpu_engine(runner)
        for arithmetic in arithmetics(runner).values():
            engine.arithmetic = arithmetic
            runner.executor.clear(0)
            runner.executor.forward({0: list(tokens(made_of(runner), b.pick(512, 3)))})
    yield b.timed("files: the GPU's kernels compiled, first prompts", time.perf_counter() - started, "s")


def opened(b: Bench, size: str, gpu: bool = True, context: int = 0, **options: Any) -> Any:
    """A Runner, all on the GPU, or all on the host. Emulated it computes with torch: Triton's interpreter takes minutes. On a
    GPU it is Triton or an error: torch in its place would pass for it."""
    from bigrun import Runner

    folder = checkpoint(b, size)
    emptied(b)
    room = {"0.1b": "2GB", "7b": "12GB"}[size]
    place = {0: b.pick(room, "200MB")} if gpu else {"cpu": room}
    defaults = {"max_memory": place, "context": context or b.pick(640, 80), "kernels": b.pick("triton", "reference")}
    return Runner(str(folder), progress=False, **(defaults | options))


def emptied(b: Bench) -> None:
    """Gives the device what nobody holds, so that the allocator's peak is the next Runner's alone."""
    gc.collect()
    if not b.emulate:
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def arithmetics(runner: Any) -> Mapping[str, Any]:
    """The arithmetic of each mode; "auto" is the one the Runner chose."""
    from bigrun.execute.engine import Arithmetic

    usual = gpu_engine(runner).arithmetic
    modes = ("exact", "grouped", "llm.int8")
    return {"auto": usual, **{mode: Arithmetic(mode, "exact", usual.threshold) for mode in modes}}


def gpu_engine(runner: Any) -> Any:
    return runner.executor.engines["cuda:0"]


def logits_of_modes(runner: Any, ids: list[int]) -> dict[str, np.ndarray]:
    """float32 [tokens, vocabulary] of one Runner in each mode."""
    logits, engine = {}, gpu_engine(runner)
    known = arithmetics(runner)
    for mode in BARS:
        engine.arithmetic = known[mode]
        logits[mode] = runner.logits(np.array([ids]))[0]
    engine.arithmetic = known["auto"]
    return logits


def compared(b: Bench, size: str, logits_by_mode: Mapping[str, np.ndarray], reference: torch.Tensor) -> Iterator[Row]:
    for mode, logits in logits_by_mode.items():
        far, kl = apart(logits, reference)
        most, most_kl = BARS[mode]
        yield b.checked(f"{size}: logits, {mode}, from float32", far, most)
        yield b.checked(f"{size}: mean KL, {mode}, from float32", kl, most_kl)


def decoded(b: Bench, size: str, runner: Any) -> Iterator[Row]:
    """Decode, as it is timed, against what else says it: tokens that the card chooses and feeds itself, against the host's
    choice of the logits of one step after the other; and those logits (a CUDA graph's), against a prompt's of the same ids."""
    from bigrun.execute.sampling import Sampling

    executor, engine = runner.executor, gpu_engine(runner)
    usual, engine.arithmetic = engine.arithmetic, arithmetics(runner)["exact"]
    ids, count = list(tokens(made_of(runner), b.pick(64, 3))), b.pick(16, 3)
    chosen = list(executor.generate(ids, Sampling(), count + 1))
    executor.clear(0)
    executor.forward({0: ids})
    steps = np.stack([executor.forward({0: [token]})[0] for token in chosen[:-1]])
    other = sum(int(row.argmax()) != token for row, token in zip(steps, chosen[1:], strict=True))
    prompt = runner.logits(np.array([ids + chosen[:-1]]))[0][len(ids) :]
    engine.arithmetic = usual
    yield b.checked(f"{size}: tokens that the card chooses and the host would not", other, 0, f"of {count}")
    yield b.checked(f"{size}: logits of decode, from a prompt's", apart(steps, torch.from_numpy(prompt))[0], HOST)


def predicted(b: Bench, runner: Any, context: int) -> float:
    """Tokens/s by the planner for such a card, if it knows it: a budget alone, as here, is that of an unknown one."""
    from bigrun import plan
    from bigrun.devices.cards import find

    made = runner.plan
    if not b.emulate:
        card = torch.cuda.get_device_properties(b.device)
        if known := find(card.name, card.total_memory):
            made = plan(str(checkpoint(b, "7b")), gpus=known.name, cpu="64GB", context=context)
    return float(made.predicted.decode_tokens_per_s)


def within_plan(b: Bench, size: str, runner: Any, most: float | None) -> Row:
    """How far what torch took of the card is from what the plan said."""
    device, memory = runner.plan.device("cuda:0"), runner.memories["cuda:0"]
    planned = device.used_bytes - device.reserve_bytes
    note = f"{planned / 1e6:.1f} MB planned, {memory.peak_bytes / 1e6:.1f} MB taken"
    return b.timed(f"{size}: memory beside its plan", abs(memory.peak_bytes / planned - 1), "off", most=most, note=note)


def small_model(b: Bench) -> Iterator[Row]:
    """0.1b: logits of each mode beside float32, and the host's beside the GPU's."""
    made = config(b, "0.1b")
    ids = list(tokens(made, b.pick(512, 3)))
    with opened(b, "0.1b") as runner:
        logits = logits_of_modes(runner, ids)
        speed = decode_speed(b, runner, b.pick(512, 2))
        yield within_plan(b, "0.1b", runner, None)
        yield from decoded(b, "0.1b", runner)
    yield b.timed("0.1b: decode", speed, "tokens/s")
    with opened(b, "0.1b", gpu=False, mode="exact") as runner:
        host = runner.logits(np.array([ids]))[0]
    yield b.checked("0.1b: logits, exact, from the host's", apart(logits["exact"], torch.from_numpy(host))[0], HOST)
    yield from compared(b, "0.1b", logits, reference_logits(b, made, torch.tensor(ids, device=b.device)))


def decode_speed(b: Bench, runner: Any, context: int) -> float:
    """Tokens/s after a prompt of this length, as `generate` runs them."""
    from bigrun.execute.sampling import Sampling

    following = runner.executor.generate(list(tokens(made_of(runner), context)), Sampling(), 10**6)
    next(following)
    count, warm = b.pick((32, 4), (1, 1))
    for _ in islice(following, warm):  # compiles, captures
        pass
    took = [b.wall(lambda: list(islice(following, count)), 1) / count for _ in range(b.pick(3, 1))]
    runner.executor.clear(0)
    return 1 / statistics.median(took)


def made_of(runner: Any) -> Any:
    """What `tokens` wants to know."""
    return runner.spec


def large_model(b: Bench) -> Iterator[Row]:
    """7b, all on the GPU: right, in its plan, fast; then the same numbers in bfloat16 and, if it is there, bitsandbytes."""
    made = config(b, "7b")
    prompt, context = b.pick((2048, 512), (3, 2))
    ids = list(tokens(made, prompt))
    count = b.pick(256, 3)
    room = b.pick(2304, 80)
    with opened(b, "7b", context=room, prompt_tokens=prompt) as runner:
        yield b.timed("7b: loaded", runner.load_seconds, "s", note="; ".join([runner.kernels, *runner.notes]))
        logits = logits_of_modes(runner, ids[:count])
        np.save(b.folder / "exact.npy", logits["exact"][: b.pick(EXACT_TOKENS, 3)])
        speed = decode_speed(b, runner, context)
        note = f"{1e3 / speed:.2f} ms; {predicted(b, runner, room):.0f} tokens/s predicted"
        yield b.timed("7b: decode at 512 positions", speed, "tokens/s", 300, note=note)
        prefills, engine, known = {}, gpu_engine(runner), arithmetics(runner)
        for mode, arithmetic in known.items():
            engine.arithmetic = arithmetic
            prefills[mode] = prompt / prompt_seconds(b, runner, ids)
            steps = f"in steps of {runner.plan.prefill_chunk_tokens}; auto is {known['auto'].prefill}"
            yield b.timed(
                f"7b: prefill of 2,048, {mode}", prefills[mode], "tokens/s", note=steps if mode == "auto" else ""
            )
        engine.arithmetic = known["auto"]
        yield within_plan(b, "7b", runner, 0.02)
        yield from decoded(b, "7b", runner)
        yield gaps(b, runner, context, speed)
    del runner, engine
    emptied(b)
    yield from compared(b, "7b", logits, reference_logits(b, made, torch.tensor(ids[:count], device=b.device)))
    emptied(b)
    yield from peers(b, made, ids, context, speed, prefills)


def prompt_seconds(b: Bench, runner: Any, ids: list[int]) -> float:
    def call() -> None:
        runner.executor.clear(0)
        runner.executor.forward({0: ids})

    if not b.emulate:
        call()  # compiles
    return b.wall(call, 3)


def gaps(b: Bench, runner: Any, context: int, speed: float) -> Row:
    """The share of a decode step in which the device computes nothing."""
    from bigrun.execute.sampling import Sampling

    following = runner.executor.generate(list(tokens(made_of(runner), context)), Sampling(), 10**6)
    next(following)
    warm, count = b.pick((4, 16), (0, 1))
    list(islice(following, warm))
    row = b.idle("7b: device idle in decode", lambda: list(islice(following, count)), count / speed, count)
    runner.executor.clear(0)
    return row


def peers(
    b: Bench, made: Config, ids: list[int], context: int, speed: float, prefills: Mapping[str, float]
) -> Iterator[Row]:
    """The same model by torch in bfloat16, decode in a CUDA graph; and by bitsandbytes, as it comes."""
    peer = Peer(b, made, max(len(ids), context + 128))
    there = torch.tensor(ids, device=b.device)
    if not b.emulate:
        peer.prompt(there)
    theirs = len(ids) / b.wall(lambda: peer.prompt(there), 3)
    yield b.timed("7b: prefill of 2,048, torch bfloat16", theirs, "tokens/s")
    for mode, bar in (("auto", 1.2), ("exact", None), ("grouped", None), ("llm.int8", 1.2)):
        yield b.timed(f"7b: prefill of 2,048, {mode}, beside torch bfloat16", prefills[mode] / theirs, "×", bar)
    begin(peer, there, context)
    for _ in range(3):
        peer.step()
    took = b.graph_seconds(b.graph(peer.step))
    yield b.timed("7b: decode, torch bfloat16 in a CUDA graph", 1 / took, "tokens/s")
    yield b.timed("7b: decode beside torch bfloat16", speed * took, "×", 1.5)
    del peer
    emptied(b)
    name = "7b: decode beside bitsandbytes LLM.int8()"
    try:
        peer = Peer(b, made, context + 128, make=llm_int8)
    except ImportError as error:
        yield Row(name, None, "×", "≥ 8", None, f"not here: {error}")
        return
    begin(peer, there, context)
    for _ in range(2):
        peer.step()
    took = b.wall(lambda: [peer.step() for _ in range(8)], 3) / 8
    yield b.timed(name, speed * took, "×", 8, note=f"{1 / took:.1f} tokens/s there")


def begin(peer: Peer, ids: torch.Tensor, context: int) -> None:
    """The peer after a prompt, with a cache that is little longer."""
    peer.length = context + 128
    peer.cache = peer.cache[..., : peer.length, :].contiguous()
    peer.prompt(ids[:context])
    peer.position.fill_(context)


def half_of_it(b: Bench, context: int) -> dict[int | str, int]:
    """Budgets with which half of the blocks lie on the host."""
    from bigrun.planning.planner import make_plan
    from bigrun.session.dry_run import planning_inputs
    from bigrun.session.options import Options

    folder = str(checkpoint(b, "7b"))
    room = b.pick(16 * 10**9, 10**8)
    budget = room
    for _ in range(100):
        spec, rig, options = planning_inputs(
            Options.of(model=folder, max_memory={0: budget, "cpu": room}, context=context)
        )
        plan = make_plan(spec, rig, replace(options, streams=False))
        excess = sum(placement.decode_on == "cuda:0" for placement in plan.blocks) - len(plan.blocks) // 2
        if excess <= 0:
            break
        block = plan.blocks[0]
        budget = min(budget, plan.device("cuda:0").used_bytes) - excess * (block.weights_bytes + block.kv_cache_bytes)
    return {0: budget, "cpu": room}


def hybrid(b: Bench) -> Iterator[Row]:
    """7b with half its blocks on the host: the same answers, and a step that takes what its halves take."""
    context = b.pick(640, 80)
    with opened(b, "7b", context=context, max_memory=half_of_it(b, context), mode="exact") as runner:
        executor, made = runner.executor, made_of(runner)
        split = ", ".join(f"{stop - first} on {device}" for first, stop, device in executor.runs)
        if len({device for _, _, device in executor.runs}) < 2:
            raise RuntimeError(f"no hybrid was planned: {split}")
        few = list(tokens(made, b.pick(EXACT_TOKENS, 3)))
        ours = runner.logits(np.array([few]))[0]
        file = b.folder / "exact.npy"
        name = "hybrid: logits from the GPU's alone"
        if file.exists():
            yield b.checked(name, apart(ours, torch.from_numpy(np.load(file)))[0], HOST, note=split)
        else:
            yield Row(name, None, "", f"≤ {HOST:g}", None, "skipped: the model on the GPU alone gave no logits")
        executor.clear(0)
        executor.forward({0: list(tokens(made, b.pick(64, 2)))})
        for _ in range(b.pick(3, 1)):
            executor.forward({0: [5]})
        step = b.wall(lambda: executor.forward({0: [5]}), 9)
        yield b.timed("hybrid: decode", 1 / step, "tokens/s", note=split)
        engines, parts = executor.engines, {}
        for first, stop, device in executor.runs:
            engine = engines[device]
            parts[f"{stop - first} on {device}"] = b.wall(lambda e=engine, run=(first, stop): e.run(*run), 9)  # type: ignore[misc]
        embed, head = (engines[runner.plan.placement(part).decode_on] for part in ("embed", "head"))
        parts["embedding"], parts["head"] = b.wall(embed.embed, 9), b.wall(head.logits, 9)
        note = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in parts.items())
        yield b.timed(
            "hybrid: decode step beside its halves alone", step / sum(parts.values()), "× the time", most=1.1, note=note
        )
        executor.clear(0)
