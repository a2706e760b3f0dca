"""Flows: bijections in a chain, a base density, likelihood, sampling and a certified inverse."""

from resflow_bench.flows.bases import (
    BaseDensity,
    DiagonalNormal,
    NormalMixture,
    StandardNormal,
)
from resflow_bench.flows.bijection import Bijection, ClosedForm
from resflow_bench.flows.composition import Chain, FactorOut
from resflow_bench.flows.flow import ResidualFlow
from resflow_bench.flows.forms import ActNorm, AffineCoupling, Cube, Flatten, Logit, Mixing, Squeeze
from resflow_bench.flows.image import MultiScale, image_flow, sample_grid, tiled
from resflow_bench.flows.inverse import InverseBlock
from resflow_bench.flows.inversion import Inversion, ToError, ToRounding, ToTolerance
from resflow_bench.flows.monotone import MonotoneBlock
from resflow_bench.flows.residual import ResidualBlock

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "BaseDensity",
    "Bijection",
    "Chain",
    "ClosedForm",
    "Cube",
    "DiagonalNormal",
    "FactorOut",
    "Flatten",
    "InverseBlock",
    "Inversion",
    "Logit",
    "Mixing",
    "MonotoneBlock",
    "MultiScale",
    "NormalMixture",
    "ResidualBlock",
    "ResidualFlow",
    "Squeeze",
    "StandardNormal",
    "ToError",
    "ToRounding",
    "ToTolerance",
    "image_flow",
    "sample_grid",
    "tiled",
]
