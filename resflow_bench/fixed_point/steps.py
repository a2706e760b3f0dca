"""Steps of a fixed-point iteration: the next iterate from x and f(x), separately per example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from resflow_bench.arguments import check_count


@runtime_checkable
class Selectable(Protocol):
    """A state, or an argument of f, with a row for each example."""

    def select(self, examples: Tensor) -> Self:
        """That of some of the examples, given by their indices (n,)."""


class Step(Protocol):
    """The rule for x_{n+1} from x_n and f(x_n), separately for each example.

    A state is None, a number, a tensor (B, ...), a `Selectable` or a tuple of states: `solve`
    drops the rows of examples that have ended.
    """

    def init(self, x0: Tensor) -> Any: ...

    def next(self, x: Tensor, fx: Tensor, state: Any) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Picard:
    """x_{n+1} = f(x_n).

    Properties: ||x_n - x*|| <= K^n ||x_0 - x*|| if f is a K-contraction (Banach), attained by
    f(x) = y + K x; no state.
    """

    def init(self, x0: Tensor) -> None:
        return None

    def next(self, x: Tensor, fx: Tensor, state: None) -> tuple[Tensor, None]:
        return fx, state


PICARD = Picard()


class AndersonState(NamedTuple):
    """The last iterate and the history of each example.

    n: iterates so far. x, residual: (B, d), the last iterate and r = f(x) - x there. norm: (B,),
    ||r||. dx, dr: (B, memory, d), combinations of steps and of the changes of r that they made; the
    rows of dr are orthonormal, or zero in a slot that is empty.
    """

    n: int
    x: Tensor
    residual: Tensor
    norm: Tensor
    dx: Tensor
    dr: Tensor

    def select(self, examples: Tensor) -> AndersonState:
        return AndersonState(self.n, *(t[examples] for t in self[1:]))


@dataclass(frozen=True)
class Anderson:
    """x_{n+1} = x + r - sum_j c_j (dx_j + dr_j) with c = argmin ||r - sum_j c_j dr_j||_2.

    r = f(x) - x; dx_j and dr_j are the last `memory` steps and the changes of r that they made. The
    dr of each new pair is made orthogonal to the older ones, and its dx is changed alike, so that
    dr stays orthonormal and c = dr r: no equations are solved, and no condition number is squared.

    memory: number of pairs.
    independent: a new pair counts only if the orthogonal part of its dr has at least this share of
        the norm of dr. Below it differences are rounding.

    Where a residual grew, that example drops its history: its next step is Picard's.

    Properties: for f(x) = A x + b, and until the memory is full, x_{n+1} = f of the iterate of
        GMRES; d + 1 steps at most. 4 memory d numbers and as many products an example and step.

    Raises:
        ValueError: a memory below 1.

    Source: Anderson (1965), "Iterative procedures for nonlinear integral equations"; Walker and
        Ni (2011), "Anderson acceleration for fixed-point iterations", for the least squares and
        GMRES. They let a new pair replace the oldest in a factorisation that is updated; here
        an old pair leaves together with its component in the later ones.
    """

    memory: int = 5
    independent: float = 1e-4

    def __post_init__(self) -> None:
        check_count("Anderson", "memory", self.memory)

    def init(self, x0: Tensor) -> AndersonState:
        flat = _vectors(x0)
        empty = flat.new_zeros(len(flat), self.memory, flat.shape[1])
        norm = flat.new_full((len(flat),), torch.inf)
        return AndersonState(0, flat, torch.zeros_like(flat), norm, empty, empty.clone())

    def next(self, x: Tensor, fx: Tensor, state: AndersonState) -> tuple[Tensor, AndersonState]:
        flat, image = _vectors(x), _vectors(fx)
        residual = image - flat
        norm = torch.linalg.vector_norm(residual, dim=1)
        dx, dr = state.dx, state.dr
        if state.n:
            dx, dr = self._remember(flat - state.x, residual - state.residual, state)
            # Also where it is NaN; overwritten, not multiplied, as 0 * inf is NaN too.
            grew = ~(norm <= state.norm)
            dx = dx.masked_fill(grew[:, None, None], 0.0)
            dr = dr.masked_fill(grew[:, None, None], 0.0)
        share = torch.bmm(dr, residual[:, :, None]).mT  # (B, 1, memory)
        jump = torch.bmm(share, dx + dr)[:, 0]
        return (image - jump).view_as(x), AndersonState(state.n + 1, flat, residual, norm, dx, dr)

    def _remember(self, dx: Tensor, dr: Tensor, state: AndersonState) -> tuple[Tensor, Tensor]:
        """The history with the pair (dx, dr), (B, d) each, in place of the oldest."""
        size = torch.linalg.vector_norm(dr, dim=1)
        slot = (state.n - 1) % self.memory
        old_dx, old_dr = state.dx.clone(), state.dr.clone()
        old_dx[:, slot] = old_dr[:, slot] = 0.0
        for _ in range(2):  # twice is enough to be orthogonal to rounding
            share = torch.bmm(old_dr, dr[:, :, None]).mT
            dr = dr - torch.bmm(share, old_dr)[:, 0]
            dx = dx - torch.bmm(share, old_dx)[:, 0]
        left = torch.linalg.vector_norm(dr, dim=1)
        new = (left > self.independent * size)[:, None]
        old_dx[:, slot] = torch.where(new, dx / left[:, None], 0.0)
        old_dr[:, slot] = torch.where(new, dr / left[:, None], 0.0)
        return old_dx, old_dr


SecantState = tuple[Tensor, Tensor, Tensor]
"""The last iterate and its r = f(x) - x, (B, d), and ||r||^2, (B,)."""


@dataclass(frozen=True)
class Secant:
    """x_{n+1} = f(x) - c (dx + dr),  c = <dr, r> / ||dr||^2: `Anderson` of memory 1.

    dx and dr are the last step and the change of r = f(x) - x that it made. Where a residual grew,
    the step is Picard's.

    Properties: a few elementwise operations and two products an example and step, where the
        orthogonalised history of `Anderson` costs more than an evaluation of a narrow g.
    Source: as `Anderson`.
    """

    def init(self, x0: Tensor) -> None:
        return None

    def next(self, x: Tensor, fx: Tensor, state: SecantState | None) -> tuple[Tensor, SecantState]:
        flat, image = _vectors(x), _vectors(fx)
        residual = image - flat
        square = torch.linalg.vecdot(residual, residual)
        now = (flat, residual, square)
        if state is None:
            return fx, now
        last, last_residual, last_square = state
        dr = residual - last_residual
        size = torch.linalg.vecdot(dr, dr)
        share = torch.linalg.vecdot(dr, residual) / size
        # 0 / 0 where nothing changed.
        share = torch.where((square <= last_square) & (size > 0), share, 0.0)
        jump = flat - last + dr
        return torch.addcmul(image, share[:, None], jump, value=-1).view_as(x), now


class AutoState(NamedTuple):
    """Steps so far, ||r_1|| (B,), True where the example is slow (B,), and Anderson's state."""

    n: int
    norm: Tensor
    slow: Tensor
    history: AndersonState | None

    def select(self, examples: Tensor) -> AutoState:
        history = None if self.history is None else self.history.select(examples)
        return AutoState(self.n, self.norm[examples], self.slow[examples], history)


@dataclass(frozen=True)
class Auto:
    """Picard's step, and Anderson's for an example whose residual shrinks slowly.

    With r_k the residual before step k, the rate is (||r_n|| / ||r_1||)^(1 / (n - 1)) at
    n = `n_residuals`; where it is above `slow`, Anderson takes over. The choice counts evaluations
    and reads no clock, so that it is reproducible.

    Raises:
        ValueError: fewer than 2 residuals.
    """

    n_residuals: int = 8
    slow: float = 0.85
    anderson: Anderson = Anderson()

    def __post_init__(self) -> None:
        if self.n_residuals < 2:
            raise ValueError(
                f"Auto needs at least 2 residuals for a rate; got n_residuals={self.n_residuals}."
            )

    def init(self, x0: Tensor) -> AutoState:
        norm = x0.new_zeros(len(x0))
        return AutoState(0, norm, torch.zeros_like(norm, dtype=torch.bool), None)

    def next(self, x: Tensor, fx: Tensor, state: AutoState) -> tuple[Tensor, AutoState]:
        n = state.n + 1
        if n not in (1, self.n_residuals):
            if state.history is None:
                return fx, state._replace(n=n)
            accelerated, history = self.anderson.next(x, fx, state.history)
            mask = state.slow.view(-1, *[1] * (x.ndim - 1))
            return torch.where(mask, accelerated, fx), state._replace(n=n, history=history)
        norm = torch.linalg.vector_norm(_vectors(fx - x), dim=1)
        if n == 1:
            return fx, state._replace(n=n, norm=norm)
        slow = norm > self.slow ** (self.n_residuals - 1) * state.norm
        # Off the CPU the host would have to wait for the answer.
        if x.device.type == "cpu" and not bool(slow.any()):
            return fx, state._replace(n=n)
        _, history = self.anderson.next(x, fx, self.anderson.init(x))
        return fx, state._replace(n=n, slow=slow, history=history)


def _vectors(x: Tensor) -> Tensor:
    """(B, *event) -> (B, d)."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]
