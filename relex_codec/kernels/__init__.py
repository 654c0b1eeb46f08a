"""Decode kernels: FORMAT.md section 8 over many tensors at once, one interface, the same bits from each.

``reference`` (numpy, slow, one rounded operation a line), ``cpu`` (compiled, fused, on threads), ``triton`` (a CUDA
device, codes unpacked on it) and ``torch_eager`` (any other torch device); ``dispatch`` says which one decodes where.

To add a kernel:

1. Read ``interface``: what a job is, the formula, and the order of its operations. ``reference`` is that formula line
   by line, and is right where another kernel differs from it.
2. Write ``prepare(jobs)``, in a module of this package, or in a package if it takes more than a file. It does what can
   be done before targets are known; ``decode(coefficients, targets)``, which it returns, may be called often. Round
   every operation to float32, contract none of them into a fused multiply-add, and keep subnormal numbers.
3. Say in its docstring which formula it computes, and where an idea comes from. Import what is heavy where it is used.
4. Choose it in ``dispatch``. Where it cannot run, raise `InvalidArgument`, which says what to do.
5. Add it to those that tests/kernels and tests/spec/test_vectors.py run over the same jobs: all bits are compared, with
   no tolerance, and so is what lies around the targets. Then measure it (benchmarks/kernels.py, benchmarks/gpu.py).
"""
