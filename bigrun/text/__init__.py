"""Text at both ends of a run: tokenizer, chat template and the choice of the next token. Nothing here imports torch."""
