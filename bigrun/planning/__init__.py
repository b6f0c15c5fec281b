"""The plan: which part goes where, what that takes to the byte, and how fast it should be."""
