"""Linear and convolutional maps held to ||W||_{p->q} <= c, a constant between two p-norms."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from resflow_bench.jacobian import KernelStage, MatrixStage
from resflow_bench.jacobian.stages import FAST, padding
from resflow_bench.layers.layer import Certificate
from resflow_bench.layers.linear import uniform
from resflow_bench.layers.norms.mixed import (
    Convolution,
    Matrix,
    Operator,
    balance_at,
    balanced,
    climb,
    dual,
    ratio,
    simple_starts,
    upper_bounds,
)
from resflow_bench.layers.norms.spectral import cushion, finite
from resflow_bench.layers.orders import LearnableOrder, Order, checked_order, value

# Power iterations of an update, from the last best vector and two that are made anew.
UPDATE_STEPS = 5
# `align` makes three times so many starts, follows all of them for a while, and the best for long.
ALIGN_STARTS = 16
ALIGN_STEPS = 10
ALIGN_KEEPS = 4
ALIGN_STEPS_MORE = 90
# Up to so many features on the smaller side the bounds of a convolution are those of its dense
# matrix: tighter, and still affordable after every step.
DENSE = 128
# How far the diagonals of the balanced bound go from 1 to what a stationary point asks for.
STRENGTHS = (0.5, 1.0)


class InducedNorm(nn.Module):
    """max(1, sigma_hat inflation / c'), by which W is divided so that ||A(W)||_{p->q} <= c.

    sigma_hat = ||A v||_q / ||v||_p with v carried from step to step. It is a lower bound on the
    norm for every v, and where v is a maximiser its derivatives in W, p and q are the norm's own.
    inflation >= 1 is set by `update` and `align` to the ratio of a theorem's upper bound to
    sigma_hat. Hence right after either the promise is kept, however far power iteration is from
    the maximum, and inflation says what it costs at most.

    Where a fixed p = 1 or q = inf makes the norm easy, sigma_hat is the norm itself, and the
    promise is kept at any time.

    c' = c (1 - cushion) leaves room for rounding: 1e-6 for the scalars in float32, more in coarser
    types, and (eps / 2) sqrt(n), n the smaller side of A, for the entries of W_c.

    Only `update` and `align` change the buffers, and they replace them. Norms are computed outside
    autocast, in W's dtype or float32 where that is finer; bounds in float64.

    Args:
        operator: A(W), here for its sizes.
        coefficient: c, the promised bound, above 0.
        domain, codomain: p and q.
        weight: W; its device and dtype are the buffers'.

    Raises:
        ValueError: a coefficient that is not positive and finite.
    """

    def __init__(
        self,
        operator: Operator,
        coefficient: float,
        domain: Order,
        codomain: Order,
        weight: Tensor,
    ) -> None:
        super().__init__()
        if not 0 < coefficient < math.inf:
            raise ValueError(
                "An induced layer needs a positive, finite `coefficient`; "
                f"got {coefficient}. Choose for example 0.9."
            )
        self.coefficient = float(coefficient)
        # In a tuple a learnable order is no submodule: the layer registers it, once.
        self._orders = (domain, codomain)
        self.v: Tensor  # (n_in,)
        self.d_in: Tensor  # (n_in,), diagonals of the best balanced bound; else 1
        self.d_out: Tensor  # (n_out,)
        self.inflation: Tensor  # ()
        self.register_buffer("v", weight.new_ones(operator.n_in))
        self.register_buffer("d_in", weight.new_ones(operator.n_in))
        self.register_buffer("d_out", weight.new_ones(operator.n_out))
        self.register_buffer("inflation", weight.new_ones(()))
        self._cushion_side = min(operator.n_in, operator.n_out)

    @property
    def is_easy(self) -> bool:
        """Whether the norm is a largest column or row norm, wherever a learnable order goes."""
        domain, codomain = self._orders
        return domain == 1 or codomain == math.inf

    def forward(self, operator: Operator, dtype: torch.dtype) -> Tensor:
        """max(1, sigma_hat inflation / c'), (), differentiable in W and in learnable orders.

        Args:
            operator: A(W).
            dtype: W's.
        """
        target = self.coefficient * (1 - cushion(dtype, self._cushion_side))
        sigma = self.sigma_hat(operator)
        return (sigma * self.inflation.to(sigma) / target).clamp(min=1)

    def sigma_hat(self, operator: Operator) -> Tensor:
        """||A v||_q / ||v||_p, or the norm itself where it is easy, ()."""
        p, q = (value(order) for order in self._orders)
        dtype = torch.promote_types(self.v.dtype, torch.float32)
        with self._full_precision():
            operator = operator.to(dtype)
            if self._orders[0] == 1:
                return operator.column_norms(q).amax()
            if self._orders[1] == math.inf:
                return operator.row_norms(dual(p)).amax()
            return ratio(operator, self.v.to(dtype), p, q)

    # Buffers made in inference mode could not take part in a gradient later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, operator: Operator) -> None:
        """A few power iterations, and the bound at the weights and the orders as they are now."""
        if self.is_easy:
            return
        with self._full_precision():
            exactly, p, q = self._exactly(operator)
            starts = torch.cat([self.v[None].double(), simple_starts(exactly, p, q, 1)])
            v = climb(exactly, starts, p, q, UPDATE_STEPS)[0]
            self._adopt(v, operator, exactly)

    @torch.inference_mode(False)
    @torch.no_grad()
    def align(self, operator: Operator) -> None:
        """Many power iterations from the last vector, large columns and rows, Gaussian vectors."""
        if self.is_easy:
            return
        with self._full_precision():
            exactly, p, q = self._exactly(operator)
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(ALIGN_STARTS, operator.n_in, generator=generator)
            starts = torch.cat([self.v[None], drawn.to(self.v)]).double()
            starts = torch.cat([starts, simple_starts(exactly, p, q, ALIGN_STARTS)])
            best = climb(exactly, starts, p, q, ALIGN_STEPS, ALIGN_KEEPS)
            v = climb(exactly, best, p, q, ALIGN_STEPS_MORE)[0]
            self._adopt(v, operator, exactly)

    @torch.no_grad()
    def certificate(self, operator: Operator) -> Certificate:
        """The least upper bound that we have, and its name."""
        with self._full_precision():
            bounds = self._upper_bounds(*self._exactly(operator))
        norms = {float(bound): name for name, bound in bounds.items()}
        return Certificate(min(norms), norms[min(norms)])

    def _full_precision(self) -> torch.autocast:
        return torch.autocast(self.v.device.type, enabled=False)

    def _exactly(self, operator: Operator) -> tuple[Operator, float, float]:
        """What bounds are computed of: the operator in float64, dense if small, p and q."""
        p, q = (float(value(order)) for order in self._orders)
        operator = operator.to(torch.float64)
        if isinstance(operator, Convolution) and min(operator.n_in, operator.n_out) <= DENSE:
            operator = operator.dense()
        return operator, p, q

    def _upper_bounds(self, exactly: Operator, p: float, q: float) -> dict[str, Tensor]:
        return upper_bounds(exactly, p, q, (self.d_in.double(), self.d_out.double()))

    def _adopt(self, v: Tensor, operator: Operator, exactly: Operator) -> None:
        """Takes v, and sets the inflation by the best bound that there is with it."""
        p, q = (float(value(order)) for order in self._orders)
        self.v = v.to(self.v)
        if isinstance(exactly, Matrix) and p >= 2 >= q and p > q:
            self._rebalance(exactly, v, p, q)
        upper = torch.stack([*self._upper_bounds(exactly, p, q).values()]).amin()
        # Of sigma_hat as forward will compute it, with its rounding and that of v.
        sigma = self.sigma_hat(operator).double()
        inflation = torch.where(sigma > 0, upper / sigma, 1.0)
        self.inflation = inflation.clamp(min=1.0).to(self.inflation)

    def _rebalance(self, matrix: Matrix, v: Tensor, p: float, q: float) -> None:
        """Replaces the diagonals by those made from v where they give a lower bound."""
        pairs = [(self.d_in, self.d_out)]
        for strength in STRENGTHS:
            d_in, d_out = balance_at(matrix, v, p, q, strength)
            # Rounded to the buffers' type first: it is these that the bound is to hold for.
            pairs.append((d_in.to(self.d_in), d_out.to(self.d_out)))
        bounds = [balanced(matrix, p, q, (a.double(), b.double())) for a, b in pairs]
        best = torch.stack(bounds).argmin()[None]
        self.d_in, self.d_out = (
            torch.stack(diagonals).index_select(0, best)[0]
            for diagonals in zip(*pairs, strict=True)
        )

    def extra_repr(self) -> str:
        orders = ["p" if isinstance(o, LearnableOrder) else f"{o:g}" for o in self._orders]
        return f"coefficient={self.coefficient:.6g}, orders {orders[0]} -> {orders[1]}"


class InducedLinear(nn.Module):
    """y = x W_c^T + b with W_c = W / max(1, sigma_hat inflation / c') and ||W_c||_{p->q} <= c.

    The bound holds by theorem right after `update` and `align`, and always where p is fixed at 1
    or q at infinity; see `InducedNorm`. Between a step and its update it does not: in 1,000 Adam
    steps at learning rate 1e-2 of 5 x 4 matrices the certified norm rose up to 3 % above the
    coefficient at fixed orders, and up to 15 % with orders learnt and shared.

    Args:
        in_features, out_features: sizes of x and y.
        coefficient: c, the promised bound on ||W_c||_{p->q}, above 0.
        domain, codomain: the orders p and q, each in [1, inf] or a `LearnableOrder`.
        bias: whether b is added.
        generator: where W and b are drawn from, both uniform in +-1/sqrt(in_features). None stands
            for a fresh generator with seed 0, never for the global one.

    Raises:
        ValueError: a coefficient that is not positive and finite, a size or an order below 1.

    Source: Chen, Behrmann, Duvenaud and Jacobsen (2019), Residual Flows, on induced mixed norms.
    There the lower bound of power iteration stands for the norm.

    >>> layer = InducedLinear(8, 8, 0.9, domain=math.inf, codomain=1.5)
    >>> layer.certificate().norm <= 0.9
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        coefficient: float,
        domain: Order,
        codomain: Order,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(
                "InducedLinear needs sizes of at least 1; "
                f"got in_features={in_features}, out_features={out_features}."
            )
        self.n_in, self.n_out = in_features, out_features
        self.domain = checked_order(domain, "domain")
        self.codomain = checked_order(codomain, "codomain")
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        self.weight = uniform((out_features, in_features), in_features, generator)
        self.bias = uniform((out_features,), in_features, generator) if bias else None
        self.norm = InducedNorm(
            Matrix(self.weight), coefficient, self.domain, self.codomain, self.weight
        )
        self.coefficient = self.norm.coefficient
        self.align()

    def weight_normalised(self) -> Tensor:
        """W_c, (n_out, n_in), differentiable in W and in learnable orders."""
        divisor = self.norm(Matrix(self.weight), self.weight.dtype)
        return self.weight / divisor.to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_in) -> (..., n_out)."""
        return functional.linear(x, self.weight_normalised(), self.bias)

    def normalised(self) -> Callable[[Tensor], Tensor]:
        """The map with its weight normalised once, (..., n_in) -> (..., n_out)."""
        weight = self.weight_normalised()
        return lambda x: functional.linear(x, weight, self.bias)

    def linearise(self, x: Tensor) -> tuple[Tensor, MatrixStage]:
        """y, (..., n_out), and v -> v^T W_c, (..., n_out) -> (..., n_in), one product each."""
        weight = self.weight_normalised()
        return functional.linear(x, weight, self.bias), MatrixStage(weight)

    def update(self) -> None:
        """A few power iterations and an upper bound, after which the promise is kept.

        Cost: some fifty passes over W and one Gram matrix's eigenvalues, five if p >= 2 >= q and
        p > q; nothing where the norm is easy. Waits for the device.

        Raises:
            torch.linalg.LinAlgError: W is not finite.
        """
        self.norm.update(Matrix(finite(self.weight)))

    def align(self) -> None:
        """The same from many starts and for many steps.

        Raises:
            torch.linalg.LinAlgError: W is not finite.
        """
        self.norm.align(Matrix(finite(self.weight)))

    def certificate(self) -> Certificate:
        """The least upper bound on ||W_c||_{p->q} that we have.

        Its method is "columns" (p = 1), "rows" (q = inf) or "svd" (p = q = 2), which are exact, or
        the name of a bound in `upper_bounds`.
        """
        return self.norm.certificate(Matrix(finite(self.weight_normalised())))

    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_out}, bias={self.bias is not None}"


class InducedConv2d(nn.Module):
    """y = K_c * x + b with K_c = K / max(1, sigma_hat inflation / c'), of norm p -> q at most c.

    Cross-correlation with stride 1 and zero padding k // 2. The norm is that of the operator from
    R^(n_in H W) to R^(n_out H W) on its actual grid, borders included, with images as flat
    vectors; never that of the reshaped kernel. For the rest see `InducedLinear`.

    Args:
        in_channels, out_channels: of x and y.
        kernel_size: k or (kh, kw), odd.
        grid: (H, W), the only size of image that is taken.
        coefficient, domain, codomain, bias, generator: see `InducedLinear`; the fan in is
            in_channels kh kw.

    Raises:
        ValueError: an even kernel, a coefficient that is not positive and finite, a size or an
            order below 1.

    >>> layer = InducedConv2d(2, 3, 3, (4, 4), 0.9, domain=math.inf, codomain=math.inf)
    >>> layer(torch.zeros(5, 2, 4, 4)).shape, layer.certificate().method
    (torch.Size([5, 3, 4, 4]), 'rows')
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        grid: tuple[int, int],
        coefficient: float,
        domain: Order,
        codomain: Order,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        high, wide = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
        sizes = (in_channels, out_channels, high, wide, *grid)
        if min(sizes) < 1 or high % 2 == 0 or wide % 2 == 0:
            raise ValueError(
                "InducedConv2d needs sizes of at least 1 and an odd kernel, which keeps the grid; "
                f"got in_channels={in_channels}, out_channels={out_channels}, "
                f"kernel_size={kernel_size}, grid={grid}."
            )
        self.n_in, self.n_out, self.grid = in_channels, out_channels, (grid[0], grid[1])
        self.domain = checked_order(domain, "domain")
        self.codomain = checked_order(codomain, "codomain")
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        fan_in = in_channels * high * wide
        self.weight = uniform((out_channels, in_channels, high, wide), fan_in, generator)
        self.bias = uniform((out_channels,), fan_in, generator) if bias else None
        self.norm = InducedNorm(
            self._operator(self.weight), coefficient, self.domain, self.codomain, self.weight
        )
        self.coefficient = self.norm.coefficient
        self.align()

    def weight_normalised(self) -> Tensor:
        """K_c, (n_out, n_in, kh, kw), differentiable in K and in learnable orders."""
        divisor = self.norm(self._operator(self.weight), self.weight.dtype)
        return self.weight / divisor.to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_in, H, W) -> (B, n_out, H, W).

        Raises:
            ValueError: images of another size than the promise is for.
        """
        return self.normalised()(x)

    def normalised(self) -> Callable[[Tensor], Tensor]:
        """The map with its kernel normalised once, (B, n_in, H, W) -> (B, n_out, H, W)."""
        kernel = self.weight_normalised().to(memory_format=FAST)
        return lambda x: self._convolve(x, kernel)

    def linearise(self, x: Tensor) -> tuple[Tensor, KernelStage]:
        """y, and v -> v^T J, (..., B, n_out, H, W) -> (..., B, n_in, H, W)."""
        kernel = self.weight_normalised().to(memory_format=FAST)
        return self._convolve(x, kernel), KernelStage(kernel)

    def update(self) -> None:
        """See `InducedLinear.update`; beyond `DENSE` features one Gram matrix a frequency.

        Raises:
            torch.linalg.LinAlgError: K is not finite.
        """
        self.norm.update(self._operator(finite(self.weight)))

    def align(self) -> None:
        """See `InducedLinear.align`.

        Raises:
            torch.linalg.LinAlgError: K is not finite.
        """
        self.norm.align(self._operator(finite(self.weight)))

    def certificate(self) -> Certificate:
        """See `InducedLinear.certificate`; for p = q = 2 beyond `DENSE` features it is "fft"."""
        return self.norm.certificate(self._operator(finite(self.weight_normalised())))

    def extra_repr(self) -> str:
        size = tuple(self.weight.shape[2:])
        return f"{self.n_in}, {self.n_out}, {size}, grid={self.grid}, bias={self.bias is not None}"

    def _operator(self, kernel: Tensor) -> Convolution:
        return Convolution(kernel, self.grid)

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        if x.shape[-2:] != self.grid:
            raise ValueError(
                f"InducedConv2d promises its constant on the grid {self.grid}; got images of shape "
                f"{tuple(x.shape)}. Build the layer for their `grid`."
            )
        x = x.to(memory_format=FAST)
        return functional.conv2d(x, kernel, self.bias, padding=padding(kernel))
