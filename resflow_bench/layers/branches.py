"""Residual branches g with a promised Lipschitz constant and cheap vector-Jacobian products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from resflow_bench.arguments import check_batch
from resflow_bench.jacobian import JacobianChain
from resflow_bench.layers import fused, together
from resflow_bench.layers.activations import Activation, check_activation
from resflow_bench.layers.conditioner import Conditioner
from resflow_bench.layers.layer import Layer
from resflow_bench.layers.maps import Affine, Composition, Elementwise, Shifted
from resflow_bench.layers.norms.operators import Matrix
from resflow_bench.layers.norms.spectral import bounds_together
from resflow_bench.layers.orders import Order, norm, same_order

# A promise is met up to the rounding of the product that is checked.
_SLACK = 1e-6


@runtime_checkable
class Contraction(Protocol):
    """A g with a promised Lipschitz constant, and what its inverse needs; see `Branch`."""

    lipschitz: float

    @property
    def order(self) -> Order: ...

    def __call__(self, x: Tensor) -> Tensor: ...

    def normalised(self) -> Callable[[Tensor], Tensor]: ...

    def magnitude(self, x: Tensor) -> Tensor: ...

    def lipschitz_certified(self) -> float: ...


class Branch(nn.Module):
    """g = s_L o ... o s_1, stages s that are layers or activations: Lip(g) <= prod_j Lip(s_j).

    For linear layers and activations between them J_g(x) = W_L D_{L-1} W_{L-1} ... D_1 W_1 with
    D_j = diag(phi_j'(z_j)), where W are the normalised weights and z_j is the input of phi_j.

    The constants multiply only if each layer's codomain has the norm of the next layer's domain,
    and x + g(x) is invertible only if the last codomain has the norm of the first domain.

    Args:
        stages: layers and activations in the order in which x meets them; the last is a layer.
        lipschitz: the constant promised for the whole branch, in (0, 1), in the norm `order`.
        conditioner: of a conditional branch g(x; c), the shifts of its layers, see `conditional`;
            such a branch is evaluated by a `GivenBranch`.

    Raises:
        TypeError: a stage that is no module, or neither a layer nor an activation.
        ValueError: a promise outside (0, 1), no layer at the end, sizes or norms that do not fit,
            an activation steeper than it says, coefficients and activations whose product exceeds
            the promise, or a conditioner of another size; a conditional branch evaluated without a
            context.
    """

    def __init__(
        self,
        *stages: Layer | Activation,
        lipschitz: float,
        conditioner: Conditioner | None = None,
    ) -> None:
        super().__init__()
        self.lipschitz = contractive(lipschitz, "Branch")
        self.stages = nn.ModuleList()
        for stage in stages:
            if not isinstance(stage, nn.Module) or not isinstance(stage, Layer | Activation):
                raise TypeError(
                    "Branch is made of modules that are layers or activations; "
                    f"{type(stage).__name__} has the members of neither."
                )
            self.stages.append(stage)
        if not stages or not isinstance(stages[-1], Layer):
            names = ", ".join(type(stage).__name__ for stage in stages) or "nothing"
            raise ValueError(f"Branch needs a layer as its last stage; got {names}.")
        layers = [stage for stage in stages if isinstance(stage, Layer)]
        for stage in stages:
            if not isinstance(stage, Layer):
                check_activation(stage)
        _check_sizes(stages, layers[-1].n_out)
        _check_norms(stages, layers)
        bound = math.prod(_promised(stage) for stage in stages)
        if bound > lipschitz * (1 + _SLACK):
            raise ValueError(
                "Branch needs coefficients and activation constants whose product keeps the "
                f"promised lipschitz={lipschitz}; got {bound:.6g}. Lower `coefficient`."
            )
        # Once, since a search for a Protocol's members takes as long as a small product.
        self.is_layer = [isinstance(stage, Layer) for stage in stages]
        self._fusable = fused.fusable(stages)
        self.conditioner = conditioner
        n_out = sum(layer.n_out for layer in layers)
        if conditioner is not None and conditioner.n_out != n_out:
            raise ValueError(
                f"Branch needs a conditioner of its layers' n_out together, {n_out}; got "
                f"n_out={conditioner.n_out}. Make it with `conditional`."
            )

    @property
    def layers(self) -> list[Layer]:
        return [stage for stage, is_layer in self._kinds() if is_layer]

    @property
    def activations(self) -> list[Activation]:
        return [stage for stage, is_layer in self._kinds() if not is_layer]

    @property
    def order(self) -> Order:
        """The p of the norm ||.||_p in which g is a contraction."""
        return self.layers[0].domain

    def forward(self, x: Tensor) -> Tensor:
        """g(x), shapes (B, *event) -> (B, *event)."""
        self.check(x)
        return self.normalised()(x)

    def normalised(self) -> Composition:
        """g with its weights normalised once, for many evaluations at the same parameters."""
        self._check_context()
        return self.unshifted()

    def unshifted(self) -> Composition:
        """`normalised`, of a conditional branch without the shifts by its context."""
        stages = [s.normalised() if layer else Elementwise(s) for s, layer in self._kinds()]
        return Composition(stages)

    def linearise(self, x: Tensor) -> tuple[Tensor, JacobianChain]:
        """g(x), (B, *event), and J_g(x), with weights normalised and slopes computed once.

        J's `vjp` maps (..., B, *event) to the same, usually with m probes in front. Its `push`
        multiplies from the other side; its `traces` are exact where the branch supports them.

        Properties: one vjp costs L linear maps and elementwise products, no autograd. It records a
        graph if and only if gradients are enabled when *it* is called; the weights and slopes it
        uses stay attached to the parameters and to x, so that sum(J.vjp(s) * v) has the gradient of
        s^T J v in weights, beta and x. Call linearise with gradients enabled for that.
        """
        self.check(x)
        self._check_context()
        if self._fusable is not None and fused.pays(self._fusable, x):
            y, stages = fused.linearise(self._fusable, x)
            return y, JacobianChain(stages)
        return self.normalised().linearise(x)

    def update(self) -> None:
        """Follow the weights after an optimiser step: then Lip(g) <= `lipschitz` again."""
        together.follow(self.layers)

    def align(self) -> None:
        """Follow the weights exactly, for the tightest bound within the promise."""
        together.follow(self.layers, align=True)

    def magnitude(self, x: Tensor) -> Tensor:
        """sum_j c_L ... c_(j+1) (||z_j|| + c_j ||z_(j-1)||), (B,), z_j = s_j(z_(j-1)), z_0 = x.

        Times a few units in the last place, it bounds the rounding of all stages at the end of the
        branch, that of large biases that cancel in g(x) included.
        """
        return self.magnitude_of(self.normalised(), x)

    def magnitude_of(self, maps: Composition, x: Tensor) -> Tensor:
        """`magnitude` by maps of the stages; a shift's own norm is added to that of its z_j."""
        total = x.new_zeros(len(x))
        size = norm(x.flatten(1), self.order)
        for (stage, is_layer), apply in zip(self._kinds(), maps.stages, strict=True):
            x = apply(x)
            constant = stage.coefficient if is_layer else stage.lipschitz
            before, size = size, norm(x.flatten(1), self.order)
            total = constant * total + size + constant * before
            if isinstance(apply, Shifted):
                total = total + norm(apply.along(x).expand_as(x).flatten(1), self.order)
        return total

    def lipschitz_certified(self) -> float:
        """The product of the certificates and of the activations' constants: a true bound.

        Raises:
            ValueError: an activation that has become steeper than its constant.
        """
        for phi in self.activations:
            check_activation(phi)
        norms = [layer.certificate().norm for layer in self.layers]
        return math.prod(norms + [phi.lipschitz for phi in self.activations])

    def lipschitz_bound(self) -> Tensor:
        """`lipschitz_certified` on the device, () float64, see `together.bounds`."""
        bound = torch.tensor(
            math.prod(phi.lipschitz for phi in self.activations), dtype=torch.float64
        )
        for factor in together.bounds(self.layers):
            bound = factor * bound
        return bound

    def extra_repr(self) -> str:
        return f"lipschitz={self.lipschitz:.6g}"

    def check(self, x: Tensor) -> None:
        """Refuse an x that is no batch in the dtype of the parameters."""
        check_batch("Branch", x, (None, ...), next((p.dtype for p in self.parameters()), None))

    def _check_context(self) -> None:
        if self.conditioner is not None:
            raise ValueError(
                f"This branch needs a context of {self.conditioner.n_context} numbers for each "
                "example; got none. Evaluate `GivenBranch(branch, context)`, or pass the flow's "
                "methods `context`."
            )

    def _kinds(self) -> Iterator[tuple[Any, bool]]:
        """Pairs (stage, True if it is a layer)."""
        return zip(self.stages, self.is_layer, strict=True)


class LinearBranch(nn.Module):
    """g(x) = x A^T, so J_g = A everywhere: a branch whose log-det, norm and inverse are known.

    Args:
        matrix: A, (d, d), stored as a buffer.
        lipschitz: the promised bound on ||A||_2, in (0, 1).

    Raises:
        ValueError: a promise outside (0, 1), a matrix that is not square, or one whose norm
            exceeds the promise by more than rounding.
    """

    order: Order = 2.0
    conditioner: None = None

    def __init__(self, matrix: Tensor, lipschitz: float) -> None:
        super().__init__()
        self.lipschitz = contractive(lipschitz, "LinearBranch")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(
                f"LinearBranch needs a square matrix (d, d); got shape {tuple(matrix.shape)}."
            )
        self.matrix: Tensor
        self.register_buffer("matrix", matrix.detach())
        certified = self.lipschitz_certified()
        if not certified <= lipschitz * (1 + _SLACK):
            raise ValueError(
                "LinearBranch needs a matrix whose spectral norm keeps the promised "
                f"lipschitz={lipschitz}; got norm {certified:.6g}. Scale the matrix down."
            )

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        return Affine(self.matrix)(x)

    def normalised(self) -> Composition:
        """g itself: there is nothing to normalise."""
        return Composition([Affine(self.matrix)])

    def linearise(self, x: Tensor) -> tuple[Tensor, JacobianChain]:
        """g(x) and v -> v^T A; see `Branch.linearise`."""
        self._check(x)
        return self.normalised().linearise(x)

    def update(self) -> None:
        """Nothing to do: the norm is exact."""

    def align(self) -> None:
        """Nothing to do: the norm is exact."""

    def magnitude(self, x: Tensor) -> Tensor:
        """||x A^T|| + K ||x||, see `Branch.magnitude`."""
        return norm(self.forward(x).flatten(1), 2.0) + self.lipschitz * norm(x.flatten(1), 2.0)

    def lipschitz_certified(self) -> float:
        """||A||_2 by an SVD in float64."""
        return float(torch.linalg.matrix_norm(self.matrix.cpu().double(), ord=2))

    def lipschitz_bound(self) -> Tensor:
        """A bound on ||A||_2 on the device, () float64; off the CPU the host does not wait."""
        if self.matrix.is_cpu:
            return torch.tensor(self.lipschitz_certified(), dtype=torch.float64)
        return bounds_together([Matrix(self.matrix)])[0]

    def extra_repr(self) -> str:
        return f"dim={self.matrix.shape[0]}, lipschitz={self.lipschitz:.6g}"

    def _check(self, x: Tensor) -> None:
        check_batch("LinearBranch", x, (None, ...), self.matrix.dtype)


def contractive(lipschitz: float, owner: str) -> float:
    """`lipschitz` as a float; a ValueError outside (0, 1), as x + g(x) might have no inverse."""
    if not 0 < lipschitz < 1:
        raise ValueError(
            f"{owner} needs 0 < lipschitz < 1 for x + g(x) to be invertible; got {lipschitz}. "
            "Choose `lipschitz` for the whole branch, for example 0.9."
        )
    return float(lipschitz)


def _promised(stage: Any) -> float:
    return stage.coefficient if isinstance(stage, Layer) else stage.lipschitz


def _check_sizes(stages: Sequence[Layer | Activation], size: int) -> None:
    """Refuse stages whose features do not match those of the stage before; the first has `size`."""
    for stage in stages:
        if isinstance(stage, Layer):
            if stage.n_in != size:
                raise ValueError(
                    "Branch needs each layer's n_in to be the n_out of the layer before it, times "
                    "the expansion of the activations between, and the first's to be the last's "
                    f"n_out; got {size} features into a layer of {stage.n_in}."
                )
            size = stage.n_out
        else:
            size *= stage.expansion


def _check_norms(stages: Sequence[Layer | Activation], layers: Sequence[Layer]) -> None:
    """Refuse a codomain whose order is not that of the next domain, in a circle."""
    for before, after in pairwise([*layers, layers[0]]):
        if not same_order(before.codomain, after.domain):
            raise ValueError(
                "Branch needs the order of each layer's codomain to be that of the next layer's "
                "domain, and the last one's to be that of the first, or its bound is no "
                "contraction in any norm; got a codomain of order "
                f"{before.codomain} into a domain of order {after.domain}. Give both the same "
                "order, the same object if it is learnable."
            )
    if same_order(layers[0].domain, 2.0):
        return
    for phi in stages:
        if not isinstance(phi, Layer) and phi.expansion != 1:
            raise ValueError(
                f"{type(phi).__name__} has its constant in the Euclidean norm alone; got a branch "
                f"of order {layers[0].domain}. Take an activation with one output for each input."
            )
