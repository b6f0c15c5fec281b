"""What `bigrun generate` says of an answer, beside it: why it ended where it did, and what it took."""

from bigrun.session.generation import Stats


def notes(stats: Stats, has_text: bool, terminal: bool, verbose: bool) -> list[str]:
    """Lines for standard error: that an answer is empty or was cut off, always; what it took on a `terminal` (briefly) or if
    `verbose` (in full)."""
    lines = []
    if stats.ended == "stop_token" and not stats.new_tokens:
        lines.append("0 tokens: the model ended at once")
    elif not has_text:
        lines.append(f"{count(stats.new_tokens)}, none of them text")
    if stats.ended == "max_new_tokens":
        lines.append(f"cut at {count(stats.new_tokens)}; --max-new-tokens")
    if stats.ended == "context":
        lines.append(f"cut at {count(stats.new_tokens)}: the context is full; --context")
    if verbose:
        lines.append(_in_full(stats))
    elif terminal and stats.new_tokens:
        lines.append(
            f"{stats.prompt_tokens} + {count(stats.new_tokens)}{_speed(stats.decode_tokens_per_s)}{_seed(stats)}"
        )
    return lines


def count(tokens: int) -> str:
    """1 token, 128 tokens."""
    return f"{tokens} token{'s' * (tokens != 1)}"


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
