"""The CPU kernels, compiled by Numba when first called and kept on disk from then on."""
