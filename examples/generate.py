"""Text as it comes, from the demo model or any checkpoint folder.

python examples/generate.py "Why is the sky blue?" [MODEL]
"""

import sys

from bigrun import BigrunError, Runner

prompt = sys.argv[1] if len(sys.argv) > 1 else "Why is the sky blue?"
model = sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m"
try:
    with Runner(model, context=1024) as runner:
        stream = runner.stream(prompt, max_new_tokens=100, temperature=0.7, top_p=0.9, seed=1)
        for piece in stream:
            print(piece, end="", flush=True)
        print(f"\n[{stream.stats.new_tokens} tokens in {stream.stats.decode_seconds:.1f} s]")
except BigrunError as error:
    sys.exit(f"{error}")
