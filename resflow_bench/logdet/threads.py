"""One thread, where a second one does harm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread for torch's operations on a CPU, those of its BLAS and LAPACK included.

    Sums of several threads differ in their last bits. And two made MKL's LU of a 768 x 768 matrix
    complain of its own arguments (SLASWP) and never return, under torch 2.13.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
