"""Maximum likelihood with an estimator's gradient: seeded, resumable, failures diagnosed."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resflow_bench.arguments import finite_rows
from resflow_bench.data import Dataset
from resflow_bench.flows import ResidualFlow
from resflow_bench.flows.certificate import branch_bounds
from resflow_bench.logdet import LogDetEstimator

JUMP = 1e3
"""Nats per dimension above the best loss so far at which a training counts as diverged. A bad batch
or a heavy-tailed roulette moves a loss by a few; no training recovers from a thousand."""


@dataclass(frozen=True)
class Training:
    """Adam on -mean log p(x), with the norms updated after every step.

    n_steps: optimiser steps.
    batch_size: examples a step, drawn without replacement within an epoch.
    learning_rate: after a linear warm-up of `warm_up` steps; decays to a tenth by a cosine over
        `decay_steps`, and stays there.
    clip_norm: the gradient's norm is clipped at this.
    ema: d of the parameters' average, sum_i d^(t-i) theta_i / sum_i d^(t-i) over the steps i <= t;
        0 keeps none.
    seed: of batches, dequantisation, probes and roulette.
    decay_steps: 0 is `n_steps`.

    Raises:
        ValueError: a number outside its range.
    """

    n_steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    warm_up: int = 50
    clip_norm: float = 10.0
    ema: float = 0.0
    seed: int = 0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        for name, value, rule, holds in (
            ("n_steps", self.n_steps, "at least 1", self.n_steps >= 1),
            ("batch_size", self.batch_size, "at least 1", self.batch_size >= 1),
            ("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0),
            ("warm_up", self.warm_up, "at least 0", self.warm_up >= 0),
            ("clip_norm", self.clip_norm, "above 0", self.clip_norm > 0),
            ("ema", self.ema, "in [0, 1)", 0 <= self.ema < 1),
            ("seed", self.seed, "in [0, 2^63)", 0 <= self.seed < 2**63),
            ("decay_steps", self.decay_steps, "at least 0", self.decay_steps >= 0),
        ):
            if not holds:
                raise ValueError(f"Training needs {name} {rule}; got {value}.")

    @property
    def schedule_steps(self) -> int:
        """The steps over which the learning rate decays."""
        return self.decay_steps or self.n_steps


class Diverged(ArithmeticError):
    """A loss or gradient that is not finite, or a loss `JUMP` nats per dimension above the best."""


class Trainer:
    """min_theta -E[log p(x)], or the flow's own `loss`, by stochastic gradients.

    Args:
        flow: trained in place.
        data: the training data, on the flow's device; `prepare` draws fresh noise for each batch.
        initialise: whether the ActNorms are set from the first batch; False keeps trained ones.
    """

    def __init__(
        self, flow: ResidualFlow, data: Dataset, settings: Training, initialise: bool = True
    ) -> None:
        self.flow = flow
        self.data = data
        self.settings = settings
        self.initialise = initialise
        self.n_steps_done = 0
        self.best_loss = math.inf
        device = data.train.device
        # On the CPU whatever the device, so that a training draws the same numbers on every one,
        # and a checkpoint goes on on another.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.order = torch.empty(0, dtype=torch.long, device=device)
        # One kernel for all parameters: a quarter of the time.
        self.optimiser = torch.optim.Adam(flow.parameters(), lr=settings.learning_rate, fused=True)
        kept = flow.parameters() if settings.ema else ()
        self.average = [torch.zeros_like(parameter) for parameter in kept]
        self._before_update: dict[str, Tensor] = {}
        self._last_step = ""  # a description, once this trainer has taken one

    def step(self) -> float:
        """One step on the next batch; the loss, nats per example.

        Properties: the host waits once for an accelerator, for the loss and the gradient's norm.

        Raises:
            Diverged: the step failed, see there. The parameters, and in the first step the
                ActNorms, are left as they were before it, unless the step itself made them
                infinite. The update of the norms finds that on the CPU; elsewhere the next step or
                `state_dict` does. The batch is not drawn again.
        """
        x = self._next_batch()
        untouched = None
        if self.n_steps_done == 0:
            untouched = copy.deepcopy(self.flow.state_dict())
            try:
                if self.initialise:
                    self.flow.initialise(x)
            except ValueError as error:
                self.flow.load_state_dict(untouched)
                raise Diverged(f"The training cannot begin. {error}") from error
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        objective = self.flow.loss(x, self.generator)
        objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.settings.clip_norm)
        loss, gradient_norm = torch.stack([objective.detach(), norm.to(objective)]).tolist()
        limit = self.best_loss + JUMP * x[0].numel()
        if not (math.isfinite(loss) and math.isfinite(gradient_norm) and loss <= limit):
            self.optimiser.zero_grad(set_to_none=True)
            if not x.is_cpu:
                self._check_last_step()
            if untouched is not None:
                self.flow.load_state_dict(untouched)
            raise Diverged(self._diagnosis(x, loss, gradient_norm))
        self._last_step = (
            f"Step {self.n_steps_done + 1} (learning rate {self.learning_rate:.2g}, gradient norm "
            f"{gradient_norm:.3g})"
        )
        self.optimiser.step()
        # `update` replaces the buffers, so these stay what the step was taken with.
        self._before_update = dict(self.flow.named_buffers())
        try:
            self.flow.update()
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise self._not_finite() from error
        self.n_steps_done += 1
        self.best_loss = min(self.best_loss, loss)
        self._take_average()
        return float(loss)

    @property
    def learning_rate(self) -> float:
        """The rate of the next step: linear warm-up, then a cosine down to a tenth."""
        settings, done = self.settings, self.n_steps_done
        warm = min(1.0, (done + 1) / settings.warm_up) if settings.warm_up else 1.0
        share = min(1.0, done / settings.schedule_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * share))
        return settings.learning_rate * warm * (0.1 + 0.9 * cosine)

    def averaged(self) -> ResidualFlow:
        """A copy of the flow with the average of its parameters, aligned: its promises are kept.

        Without `ema`, or before the first step, the parameters are the flow's own. The copy has
        its own power iterations, and the trained flow keeps its: an average swapped into the
        trained flow and out again would leave it singular vectors of other weights.
        """
        flow = copy.deepcopy(self.flow)
        if self.average and self.n_steps_done:
            with torch.no_grad():
                for parameter, mean in zip(flow.parameters(), self.average, strict=True):
                    parameter.copy_(mean)
        flow.align()
        return flow

    def excess(self) -> float:
        """max over blocks of certified / promised constant, after the last step, before its update.

        Above 1, a flow whose norms are not updated breaks its promise. 0 if it has no block.

        Raises:
            ValueError: if this trainer has taken no step.
        """
        if not self._before_update:
            raise ValueError(
                "excess compares a flow before and after a step; got no step of this trainer. "
                "Call `step` first."
            )
        flow = copy.deepcopy(self.flow)
        before = self._before_update
        flow.load_state_dict({k: before.get(k, v) for k, v in self.flow.state_dict().items()})
        ratios = [block.branch.lipschitz_certified() / block.lipschitz for block in flow.blocks]
        return max(ratios, default=0.0)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on, to resume to the same numbers.

        Raises:
            Diverged: the last step left parameters that are not finite.
        """
        self._check_last_step()
        state = {
            "flow": self.flow.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "generator": self.generator.get_state(),
            "order": self.order,
            "n_steps_done": self.n_steps_done,
            "best_loss": self.best_loss,
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: if only one of the two, the state and this trainer, keeps an average; or the
                state's random numbers are those of an accelerator. Nothing is loaded then.
        """
        if len(state["generator"]) != len(self.generator.get_state()):
            raise ValueError(
                "A training draws its random numbers on the CPU; this state has a generator of an "
                "accelerator, from an earlier version. Begin a new training from its weights."
            )
        if len(state["average"]) != len(self.average):
            raise ValueError(
                f"A state goes into a trainer with the same `ema`; got {len(state['average'])} "
                f"averaged parameters for {len(self.average)}. Make the trainer as it was made."
            )
        self.flow.load_state_dict(state["flow"])
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        for ours, theirs in zip(self.average, state["average"], strict=True):
            ours.copy_(theirs)
        self.generator.set_state(state["generator"].cpu())
        self.order = state["order"].to(self.order.device)
        self.n_steps_done = state["n_steps_done"]
        self.best_loss = state["best_loss"]
        self._before_update = {}
        self._last_step = ""

    def _check_last_step(self) -> None:
        """Raise `Diverged` if it left parameters that are not finite; the host waits."""
        if self._last_step and not self._is_finite():
            raise self._not_finite()

    def _is_finite(self) -> bool:
        return all(bool(parameter.isfinite().all()) for parameter in self.flow.parameters())

    def _not_finite(self) -> Diverged:
        return Diverged(
            f"{self._last_step} left parameters that are not finite. Lower `learning_rate`, and go "
            "on from a checkpoint."
        )

    def _next_batch(self) -> Tensor:
        """x of the next rows, (B, *event)."""
        rows = self.data.train
        size = min(self.settings.batch_size, len(rows))
        if len(self.order) < size:
            order = torch.randperm(len(rows), generator=self.generator)
            self.order = order.to(rows.device, non_blocking=True)
        batch, self.order = self.order[:size], self.order[size:]
        return self.data.prepare(rows[batch], self.generator)

    @torch.no_grad()
    def _take_average(self) -> None:
        """a_t = a_(t-1) + (1 - d)/(1 - d^t) (theta_t - a_(t-1)): nothing is left of a_0 = 0."""
        decay = self.settings.ema
        weight = (1 - decay) / (1 - decay**self.n_steps_done)
        for mean, parameter in zip(self.average, self.flow.parameters(), strict=False):
            mean.lerp_(parameter, weight)

    def _diagnosis(self, x: Tensor, loss: float, gradient_norm: float) -> str:
        """A message: the failure, the state of the flow before the step, and the remedy."""
        failed = f"loss is {loss:.6g}"
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            failed += f", after {self.best_loss:.6g} at best,"
        said = (
            f"The training {failed} at step {self.n_steps_done + 1} (learning rate "
            f"{self.learning_rate:.2g}, gradient norm {gradient_norm:.3g})."
        )
        remedy = "Lower `learning_rate`"
        blocks, estimator = self.flow.blocks, self.flow.estimator
        n_bad = int((~finite_rows(x)).sum())
        if n_bad:
            said += f" {n_bad} of the batch's {len(x)} examples are not finite."
        if not self._is_finite():
            said += " The parameters were not finite before it."
        elif blocks:
            largest = max(branch_bounds(block.branch).lipschitz for block in blocks)
            said += f" The largest certified constant of a block is {largest:.4g}"
            if isinstance(estimator, LogDetEstimator):
                finite = estimator.truncation.moment_is_finite(largest, 2)
                said += f"; there the variance of {estimator.truncation} is "
                said += "finite" if finite else "infinite"
                remedy += "" if finite else ", or use a roulette that stops later, or `Fixed`"
            said += "."
        if n_bad:
            remedy = "Leave the examples that are not finite out of the data"
        return f"{said} {remedy}. The parameters are left as they were before this step."
