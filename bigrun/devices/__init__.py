"""The devices of a rig: what is there, how fast it is, and its memory in a run."""
