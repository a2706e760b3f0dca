"""J_g(x), the Jacobian of a residual branch, as a linear operator on each example of a batch."""

from resflow_bench.jacobian.chain import JacobianChain
from resflow_bench.jacobian.dense_matrix import CHUNK_NUMBERS, DenseJacobian, dense, dense_jacobian
from resflow_bench.jacobian.linearisation import Linearisable, autograd, cached, linearise
from resflow_bench.jacobian.matrix_stage import MatrixStage
from resflow_bench.jacobian.operator import (
    Examples,
    FunctionJacobian,
    Jacobian,
    Linearisation,
    Map,
    PerExampleMap,
    Products,
)
from resflow_bench.jacobian.stages import (
    ConcatenationStage,
    KernelStage,
    SkipStage,
    SlopeStage,
    Stage,
)

__all__ = [
    "CHUNK_NUMBERS",
    "ConcatenationStage",
    "DenseJacobian",
    "Examples",
    "FunctionJacobian",
    "Jacobian",
    "JacobianChain",
    "KernelStage",
    "Linearisable",
    "Linearisation",
    "Map",
    "MatrixStage",
    "PerExampleMap",
    "Products",
    "SkipStage",
    "SlopeStage",
    "Stage",
    "autograd",
    "cached",
    "dense",
    "dense_jacobian",
    "linearise",
]
