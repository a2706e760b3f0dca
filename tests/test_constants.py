"""Constants that are made once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from resflow_bench.constants import constant
from resflow_bench.layers import LipSwish

CPU = torch.device("cpu")


def two(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full((), 2, dtype=dtype, device=device)


def test_a_constant_is_made_once_and_none_is_kept_without_numbers() -> None:
    with FakeTensorMode():
        assert isinstance(constant(two, torch.float64, CPU), FakeTensor)
    with torch.inference_mode():
        made = constant(two, torch.float64, CPU)
    with FakeTensorMode():
        assert isinstance(constant(two, torch.float64, CPU), FakeTensor)
    assert not made.is_inference()
    assert made.item() == 2
    assert constant(two, torch.float64, CPU) is made
    assert constant(two, torch.float32, CPU).dtype == torch.float32


def test_a_traced_function_keeps_no_constant() -> None:
    """What is compiled or exported first leaves the layers of the process as they are."""
    phi, z = LipSwish().to(torch.float16), torch.ones(3, dtype=torch.float16)
    expected = phi.value_and_derivative(z)
    torch.export.export(_Slope(phi), (z,))
    for one, other in zip(phi.value_and_derivative(z), expected, strict=True):
        assert type(one.detach()) is Tensor
        assert torch.equal(one, other)


class _Slope(torch.nn.Module):
    def __init__(self, phi: LipSwish) -> None:
        super().__init__()
        self.phi = phi

    def forward(self, z: Tensor) -> Tensor:
        return self.phi.value_and_derivative(z)[1]
