"""Oracles: dense float64 NumPy and SciPy, slow, and short enough to be read as the definitions.

Imports nothing of ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import integrate, linalg, spatial, stats

Array = NDArray[np.float64]


# --- Jacobians that attain ||J||_2 = K, one of each kind ------------------------------------------


def linear_families(dim: int, lipschitz: float, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    gaussian = rng.standard_normal((dim, dim))
    orthogonal = stats.ortho_group.rvs(dim, random_state=rng) if dim > 1 else np.ones((1, 1))
    families = {
        "minus-identity": -np.eye(dim),
        "plus-identity": np.eye(dim),
        "orthogonal": orthogonal,
        "symmetric": gaussian + gaussian.T,
        "antisymmetric": gaussian - gaussian.T,
        "gaussian": gaussian,
        "triangular": np.triu(gaussian, 1),
    }
    norms = {name: np.linalg.norm(a, 2) for name, a in families.items()}
    return {name: lipschitz * a / norms[name] for name, a in families.items() if norms[name] > 0}


# --- the series ----------------------------------------------------------------------------------


def log_det(jacobian: Array) -> Array:
    """ln|det(I + J)|."""
    return np.linalg.slogdet(np.eye(jacobian.shape[-1]) + jacobian)[1]


def log_matrix(jacobian: Array) -> Array:
    """log(I + J), one matrix."""
    return np.asarray(linalg.logm(np.eye(len(jacobian)) + jacobian)).real


def term(jacobian: Array, k: int) -> Array:
    """(-1)^(k+1) J^k/k."""
    return (-1) ** (k + 1) / k * np.linalg.matrix_power(jacobian, k)


def series(jacobian: Array, n_terms: int) -> Array:
    """S_N, term by term."""
    return sum((term(jacobian, k) for k in range(1, n_terms + 1)), np.zeros_like(jacobian))


def tail(jacobian: Array, first: int, n_terms: int = 400) -> Array:
    """M_k: `n_terms` terms from the k-th on, the smallest first."""
    terms = (term(jacobian, k) for k in range(first + n_terms - 1, first - 1, -1))
    return sum(terms, np.zeros_like(jacobian))


def log_tail(lipschitz: float, n_terms: int) -> float:
    """tau_N(K) = int_0^L (1 - e^-u)^N du, L = -log(1 - K): int_0^K t^N/(1 - t) dt at t = 1 - e^-u.

    The integrand is positive and rises, so the upper half of what is left is always most of it.
    """
    upper = -np.log1p(-lipschitz)
    edges = upper * (1.0 - 2.0 ** -np.arange(0.0, 40.0))
    pieces = [
        integrate.quad(
            lambda u: (-np.expm1(-u)) ** n_terms, low, high, epsabs=0, epsrel=1e-13, limit=200
        )[0]
        for low, high in itertools.pairwise([*edges, upper])
    ]
    return float(np.sum(pieces))


# --- probes as finite laws ------------------------------------------------------------------------


def probe_law(name: str, dim: int) -> tuple[Array, Array]:
    """All values of a probe, (n, d), and their probabilities, (n,).

    For "gaussian" the three-point law on 0 and +-sqrt(3), which has the moments of N(0, 1) up to
    the fifth: exact for the square of a quadratic form.
    """
    values, weights = {
        "rademacher": ([-1.0, 1.0], [0.5, 0.5]),
        "gaussian": ([-np.sqrt(3.0), 0.0, np.sqrt(3.0)], [1 / 6, 2 / 3, 1 / 6]),
    }[name]
    points = np.array(list(itertools.product(values, repeat=dim)))
    return points, np.array(list(itertools.product(weights, repeat=dim))).prod(axis=1)


def quadratic_forms(a: Array, name: str, n_probes: int = 1) -> tuple[Array, Array]:
    """All values of (1/m) sum_j v_j^T A v_j, A (..., d, d), and their probabilities."""
    points, weights = probe_law(name, a.shape[-1])
    one = np.einsum("ni,...ij,nj->...n", points, a, points)
    values, probabilities = one, weights
    for _ in range(n_probes - 1):
        values = (values[..., :, None] + one[..., None, :]).reshape(*a.shape[:-2], -1)
        probabilities = np.outer(probabilities, weights).ravel()
    return values / n_probes, probabilities


def hutchinson_variance(a: Array, name: str, n_probes: int = 1) -> float:
    """E (q - E q)^2 over all values of the probes."""
    q, p = quadratic_forms(a, name, n_probes)
    return float(p @ (q - p @ q) ** 2)


def fourth_order_variance(a: Array, fourth_moment: float) -> float:
    """sum_ijkl A_ij A_kl E[v_i v_j v_k v_l] - (tr A)^2, all d^4 terms."""
    d = len(a)
    delta = np.eye(d)
    moment = (
        np.einsum("ij,kl->ijkl", delta, delta)
        + np.einsum("ik,jl->ijkl", delta, delta)
        + np.einsum("il,jk->ijkl", delta, delta)
    )
    moment[(np.arange(d),) * 4] = fourth_moment
    return float(np.einsum("ij,kl,ijkl->", a, a, moment) - np.trace(a) ** 2)


def probe_blocks(name: str, dim: int, n: int) -> tuple[Array, Array]:
    """All values of n vectors that know of each other, (N, n, d), and their probabilities.

    "orthogonal": sqrt(d) times the first rows of a rotation, d = 2 or 3, by a quadrature that is
    exact for polynomials of degree 4 in its entries: equidistant angles, and Gauss's points in the
    cosine of the middle one of Euler's. "hadamard": all signs and all choices of n columns.
    """
    if name == "orthogonal":
        angles = np.arange(6) * np.pi / 3
        if dim == 2:
            turns = spatial.transform.Rotation.from_euler("z", angles[:, None]).as_matrix()[
                :, :2, :2
            ]
            weights = np.ones(len(turns))
        else:
            nodes, gauss = np.polynomial.legendre.leggauss(5)
            euler = np.array(list(itertools.product(angles, np.arccos(nodes), angles)))
            turns = spatial.transform.Rotation.from_euler("zyz", euler).as_matrix()
            weights = np.array([w for _, w, _ in itertools.product(angles, gauss, angles)])
        return np.sqrt(dim) * turns[:, :n], weights / weights.sum()
    columns = linalg.hadamard(1 << (dim - 1).bit_length())[:, :dim].astype(float)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=dim)))
    chosen = columns[list(itertools.combinations(range(len(columns)), n))]  # (n_choices, n, d)
    points = (signs[:, None, None] * chosen).reshape(-1, n, dim)
    return points, np.full(len(points), 1 / len(points))


def block_variance(a: Array, name: str, n_probes: int) -> float:
    """Var((1/m) sum_j v_j^T A v_j), the v_j in independent blocks as large as there are."""
    name, size = {
        "sphere": ("orthogonal", 1),
        "orthogonal": ("orthogonal", len(a)),
        "hadamard": ("hadamard", 1 << (len(a) - 1).bit_length()),
    }[name]
    total = 0.0
    for start in range(0, n_probes, size):
        points, p = probe_blocks(name, len(a), min(size, n_probes - start))
        q = np.einsum("nji,ik,njk->n", points, a, points) / n_probes
        total += float(p @ (q - p @ q) ** 2)
    return total


# --- the roulette, by every N and every probe -----------------------------------------------------


def roulette_variance(
    jacobian: Array,
    survival: Callable[[Array], Array],
    name: str,
    n_probes: int = 1,
    max_terms: int = 300,
) -> float:
    """Var(sum_{k<=N} a_k/P_k), a_k = (1/m) sum_j v_j^T term_k v_j, over N <= `max_terms` and all v.

    `survival(k)` is P(N >= k); what it leaves above `max_terms` must not matter.
    """
    k = np.arange(1, max_terms + 1)
    survivals = np.concatenate([[1.0], survival(k), survival(np.array([max_terms + 1]))])
    p_n = survivals[:-1] - survivals[1:]  # P(N = 0), ..., P(N = max_terms)
    terms = np.stack([term(jacobian, int(i)) for i in k])
    a, p_v = quadratic_forms(terms, name, n_probes)  # (max_terms, n), (n,)
    y = np.vstack(
        [np.zeros(len(p_v)), np.cumsum(a / survivals[1:-1, None], axis=0)]
    )  # Y given N, v
    mean = p_n @ y @ p_v
    return float(p_n @ (y - mean) ** 2 @ p_v)


def picard(jacobian: Array, z: Array, n_steps: int) -> list[Array]:
    """x_0 = z, ..., x_n of x <- z - J x."""
    iterates = [z]
    for _ in range(n_steps):
        iterates.append(z - jacobian @ iterates[-1])
    return iterates
