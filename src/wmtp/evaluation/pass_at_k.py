"""pass@k: the chance that one of k samples is right."""

from fractions import Fraction
from math import comb


def pass_at_k(n: int, c: int, k: int) -> Fraction:
    """The chance that of ``k`` samples drawn from ``n``, of which ``c`` are right, one is right.

        1 - C(n - c, k) / C(n, k)

    Exact, with no rounding however large the numbers are.

    Args:
        n: samples of a problem.
        c: those that passed.
        k: how many are drawn, without putting any back.

    Raises:
        ValueError: more are to be drawn than there are, or more passed than there are.

    Source:
        Chen et al. 2021 (arXiv:2107.03374), equation 1.

    Example:
        Of four samples one is right; two are drawn in six ways, three of which have it.

        >>> pass_at_k(4, 1, 2)
        Fraction(1, 2)
    """
    if k < 1:
        raise ValueError(f"pass@{k}: k is at least 1")
    if not 0 <= c <= n:
        raise ValueError(f"{c} of {n} samples passed")
    if k > n:
        raise ValueError(f"pass@{k} needs {k} samples of each problem; there are {n}")
    return 1 - Fraction(comb(n - c, k), comb(n, k))
