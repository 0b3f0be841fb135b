"""The engine's own kernels for CPUs: what a decode step does with a few rows, in one call each.

A step of a small model is about a thousand operations of torch, and starting them costs more than what they compute.
The kernels are Python that numba compiles for the processor at hand; without numba the engine runs on torch alone.
Only `choice` may be imported where numba may be missing.
"""
