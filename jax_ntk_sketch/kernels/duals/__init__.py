"""Dual kernels of activations."""
