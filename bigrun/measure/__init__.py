"""Measurements: what a run takes (bench, info, autotune, learning) and what int8 costs in quality (evaluate)."""
