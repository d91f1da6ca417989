"""Dual kernels of activations.

`base` defines `DualActivation`, `homogeneous` and `polynomial` the families with closed
forms, and `activations` the function `dual` from a record to its dual.
"""
