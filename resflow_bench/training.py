"""Maximum likelihood with the estimator's gradient: seeded, resumable, and clear when it fails."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resflow_bench.flows import ResidualFlow


@dataclass(frozen=True)
class Training:
    """Adam on -mean log p(x), with the spectral norms updated after every step.

    n_steps: optimiser steps.
    batch_size: examples a step, drawn without replacement within an epoch.
    learning_rate: after a linear warm-up of `warm_up` steps; decays to a tenth by a cosine.
    clip_norm: the gradient's norm is clipped at this.
    n_power_steps: power-iteration steps in each linear layer after each optimiser step.
    seed: of batches, probes and roulette.
    """

    n_steps: int
    batch_size: int = 256
    learning_rate: float = 1e-3
    warm_up: int = 50
    clip_norm: float = 10.0
    n_power_steps: int = 2
    seed: int = 0


class Diverged(ArithmeticError):
    """The training loss is not a number."""


class Trainer:
    """min_theta -E[log p(x)] by stochastic gradients of an estimated log-likelihood.

    `step()` is one optimiser step; `state_dict()` and `load_state_dict()` hold all that the next
    step depends on, so that a resumed training goes on to the same numbers.

    Args:
        flow: trained in place; its ActNorms are set from the first batch.
        data: (n, d), on the flow's device.
        settings: see `Training`.
    """

    def __init__(self, flow: ResidualFlow, data: Tensor, settings: Training) -> None:
        self.flow = flow
        self.data = data
        self.settings = settings
        self.n_steps_done = 0
        self.generator = torch.Generator(data.device).manual_seed(settings.seed)
        self.order = torch.empty(0, dtype=torch.long, device=data.device)
        self.optimiser = torch.optim.Adam(flow.parameters(), lr=settings.learning_rate)

    def step(self) -> float:
        """One step on the next batch; the loss, nats per example.

        Raises:
            Diverged: if the loss is not finite; the parameters are left as they were.
        """
        batch = self._next_batch()
        if self.n_steps_done == 0:
            self.flow.initialise(batch)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = -self.flow.log_prob(batch, self.generator).mean()
        if not torch.isfinite(loss):
            raise Diverged(
                f"The training loss is {loss.item()} at step {self.n_steps_done + 1} (learning "
                f"rate {self.learning_rate:.2g}). Lower `learning_rate`, or use an estimator whose "
                "variance is finite at the spectral radius that the flow has reached."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.settings.clip_norm)
        self.optimiser.step()
        self.flow.update(self.settings.n_power_steps)
        self.n_steps_done += 1
        return loss.item()

    @property
    def learning_rate(self) -> float:
        """The rate of the next step: linear warm-up, then a cosine down to a tenth."""
        settings, done = self.settings, self.n_steps_done
        warm = min(1.0, (done + 1) / settings.warm_up) if settings.warm_up else 1.0
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done / settings.n_steps)))
        return settings.learning_rate * warm * (0.1 + 0.9 * cosine)

    def state_dict(self) -> dict[str, object]:
        """All that the next step depends on."""
        return {
            "flow": self.flow.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "order": self.order,
            "n_steps_done": self.n_steps_done,
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from what `state_dict` returned."""
        self.flow.load_state_dict(state["flow"])  # type: ignore[arg-type]
        self.optimiser.load_state_dict(state["optimiser"])  # type: ignore[arg-type]
        self.generator.set_state(state["generator"])  # type: ignore[arg-type]
        self.order = state["order"]  # type: ignore[assignment]
        self.n_steps_done = state["n_steps_done"]  # type: ignore[assignment]

    def _next_batch(self) -> Tensor:
        size = min(self.settings.batch_size, len(self.data))
        if len(self.order) < size:
            self.order = torch.randperm(
                len(self.data), generator=self.generator, device=self.data.device
            )
        batch, self.order = self.order[:size], self.order[size:]
        return self.data[batch]
