"""Contexts in which torch, BLAS and OpenMP use one thread."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """One thread for torch's operations on a CPU, those of its BLAS and LAPACK included.

    Sums of several threads differ in their last bits. With two threads under torch 2.13, MKL's LU
    of a 768 x 768 matrix rejected its own arguments (SLASWP) and never returned.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """`one_torch_thread`, and one thread for every BLAS and OpenMP that is loaded, numpy's too."""
    with one_torch_thread(), _loaded(len(sys.modules)).limit(limits=1):
        yield


@lru_cache(maxsize=1)
def _loaded(n_modules: int) -> ThreadpoolController:  # noqa: ARG001
    """Every BLAS and OpenMP that is loaded, sought again once modules were imported.

    Seeking them takes two milliseconds, more than a small cell.
    """
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """One thread for every BLAS that was loaded at the first call.

    More threads would change the rounding, and wait for each other where cores are shared.
    """
    blas = _blas()
    if all(library.num_threads == 1 for library in blas.lib_controllers):
        return nullcontext()  # setting the limit takes a tenth of a small eigensolver's time
    return blas.limit(limits=1)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")
