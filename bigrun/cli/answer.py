"""What `bigrun generate` says of an answer, beside it: why it ended where it did, and what it took."""

from collections.abc import Sequence

from bigrun.session.generation import Stats


def notes(stats: Stats, has_text: bool, brief: bool, verbose: bool) -> list[str]:
    """Lines for standard error: that an answer is empty or was cut off, always; what it took if `brief` or, in full, if
    `verbose`."""
    lines = []
    if stats.ended == "stop_token" and not stats.new_tokens:
        lines.append("0 tokens: the model ended at once")
    elif stats.ended == "stop_text" and not has_text:
        lines.append("no text: the answer began with a --stop text")
    elif not has_text:
        lines.append(f"{count(stats.new_tokens)}, none of them text")
    if stats.ended == "max_new_tokens":
        lines.append(f"cut at {count(stats.new_tokens)}; --max-new-tokens")
    if stats.ended == "context":
        lines.append(f"cut at {count(stats.new_tokens)}: the context is full; --context")
    if verbose:
        lines.append(_in_full(stats))
    elif brief and stats.new_tokens:
        lines.append(
            f"{stats.prompt_tokens} + {count(stats.new_tokens)}{_speed(stats.decode_tokens_per_s)}{_seed(stats)}"
        )
    return lines


def together(all_stats: Sequence[Stats], seconds: float) -> str:
    """What several answers took together, prompts included."""
    new = sum(stats.new_tokens for stats in all_stats)
    prompts = sum(stats.prompt_tokens for stats in all_stats)
    rate = f" in {seconds:.1f} s{_speed(new / seconds if seconds > 0 else None)}"
    return f"{len(all_stats)} answers: {prompts} + {count(new)}{rate}{_seed(all_stats[0])}"


def count(tokens: int) -> str:
    """1 token, 128 tokens."""
    return f"{tokens:,} token{'s' * (tokens != 1)}"


def _in_full(stats: Stats) -> str:
    prompt = (
        f"prompt of {count(stats.prompt_tokens)} in {stats.prefill_seconds:.2f} s{_speed(stats.prefill_tokens_per_s)}"
    )
    new = f"{count(stats.new_tokens)} after it in {stats.decode_seconds:.2f} s{_speed(stats.decode_tokens_per_s)}"
    return f"loaded in {stats.load_seconds:.2f} s; {prompt}; {new}{_seed(stats)}"


def _speed(rate: float | None) -> str:
    return "" if rate is None else f", {rate:.1f} tokens/s"


def _seed(stats: Stats) -> str:
    return "" if stats.seed is None else f"; seed {stats.seed}"
