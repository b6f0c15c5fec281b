"""Text as it comes, from the demo model or any checkpoint folder; another text each time.

python examples/generate.py "Why is the sky blue?" [MODEL [TOKENS]]
"""

import sys

from bigrun import BigrunError, Runner


def main(prompt: str = "Why is the sky blue?", model: str = "smollm2-135m", tokens: str = "100") -> None:
    with Runner(model) as runner:
        stream = runner.stream(prompt, max_new_tokens=int(tokens), temperature=0.7, top_p=0.9)
        for piece in stream:
            print(piece, end="", flush=True)
        stats = stream.stats
        print(
            f"\n[{stats.new_tokens} tokens in {stats.decode_seconds:.1f} s; seed {stats.seed}; ended by {stats.ended}]"
        )


try:
    main(*sys.argv[1:4])
except BigrunError as error:
    sys.exit(str(error))
