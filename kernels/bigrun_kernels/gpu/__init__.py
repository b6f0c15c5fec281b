"""Triton kernels. Importing this package imports no Triton; importing one of its modules does."""
