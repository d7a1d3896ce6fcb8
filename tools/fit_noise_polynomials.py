"""Fits the polynomials of csrc/math/noise.h and prints their float32 coefficients and errors.

Needs mpmath. Weighted Remez exchange, then coefficients rounded to float32 one by one with the
remaining ones fitted again, so that rounding costs as little as possible. Run it to check or to
change the degrees; the numbers it prints are the ones that stand in noise.h.

    python tools/fit_noise_polynomials.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import mpmath as mp

mp.mp.dps = 40

Function = Callable[[mp.mpf], mp.mpf]


def to_float32(value: mp.mpf) -> mp.mpf:
    return mp.mpf(struct.unpack("f", struct.pack("f", float(value)))[0])


def remez(target: Function, weight: Function, low: mp.mpf, high: mp.mpf, powers: list[int]) -> list[mp.mpf]:
    """Minimax coefficients of sum_k c_k z^powers[k] to `target` under `weight` on [low, high]."""
    count = len(powers) + 1
    nodes = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)
    ]
    coefficients: list[mp.mpf] = []
    for _ in range(20):
        matrix = mp.matrix(count, count)
        right = mp.matrix(count, 1)
        for row, node in enumerate(nodes):
            for column, power in enumerate(powers):
                matrix[row, column] = node**power * weight(node)
            matrix[row, count - 1] = (-1) ** row
            right[row] = target(node) * weight(node)
        solution = mp.lu_solve(matrix, right)
        coefficients = [solution[i] for i in range(len(powers))]

        def error(z: mp.mpf, c: list[mp.mpf] = coefficients) -> mp.mpf:
            return (sum(ck * z**p for ck, p in zip(c, powers, strict=True)) - target(z)) * weight(z)

        grid = [low + (high - low) * i / 1500 for i in range(1501)]
        values = [error(z) for z in grid]
        extrema = [0]
        for i in range(1, len(grid)):
            if values[i] * values[extrema[-1]] > 0:
                if abs(values[i]) > abs(values[extrema[-1]]):
                    extrema[-1] = i
            else:
                extrema.append(i)
        if len(extrema) < count:
            break
        while len(extrema) > count:
            extrema.pop(0 if abs(values[extrema[0]]) < abs(values[extrema[-1]]) else -1)
        moved = [grid[i] for i in extrema]
        if max(abs(a - b) for a, b in zip(moved, nodes, strict=True)) < mp.mpf(10) ** -12:
            break
        nodes = moved
    return coefficients


def fit(name: str, target: Function, weight: Function, low: mp.mpf, high: mp.mpf, degree: int) -> None:
    fixed: list[mp.mpf] = []
    for k in range(degree + 1):

        def rest(z: mp.mpf, c: tuple[mp.mpf, ...] = tuple(fixed)) -> mp.mpf:
            return target(z) - sum(ck * z**p for p, ck in enumerate(c))

        fixed.append(to_float32(remez(rest, weight, low, high, list(range(k, degree + 1)))[0]))
    worst = max(
        abs((sum(ck * z**p for p, ck in enumerate(fixed)) - target(z)) * weight(z))
        for z in (low + (high - low) * i / 4000 for i in range(4001))
    )
    print(f"{name}: weighted error {mp.nstr(worst, 3)} (2^{mp.nstr(mp.log(worst, 2), 4)})")
    for p, c in enumerate(fixed):
        print(f"  z^{p}: {float(c).hex()}F")


def main() -> None:
    half = mp.mpf(1) / 2
    low, high = mp.sqrt(half) - 1, mp.sqrt(2) - 1

    def log_target(t: mp.mpf) -> mp.mpf:  # -2 ln(1 + t) = -2 t + t^2 P(t)
        if abs(t) < mp.mpf(10) ** -8:
            return 1 - 2 * t / 3 + t**2 / 2
        return (-2 * mp.log(1 + t) + 2 * t) / t**2

    def log_weight(t: mp.mpf) -> mp.mpf:  # relative error of the whole
        return abs(t) / 2 if abs(t) < mp.mpf(10) ** -8 else t**2 / abs(2 * mp.log(1 + t))

    fit("log: P, t in [sqrt(1/2)-1, sqrt(2)-1]", log_target, log_weight, low, high, 8)

    def sin_target(z: mp.mpf) -> mp.mpf:  # sin(pi x / 2) = x S(x^2)
        x = mp.sqrt(z)
        return mp.sin(mp.pi * x / 2) / x if x > 0 else mp.pi / 2

    fit("sin: S, x^2 in [0, 1]", sin_target, lambda z: 1 / sin_target(z), mp.mpf(0), mp.mpf(1), 4)

    def cos_target(z: mp.mpf) -> mp.mpf:  # cos(pi x / 2) = (1 - x^2) C(x^2)
        if abs(1 - z) < mp.mpf(10) ** -12:
            return mp.pi / 4
        return mp.cos(mp.pi * mp.sqrt(z) / 2) / (1 - z)

    fit("cos: C, x^2 in [0, 1]", cos_target, lambda z: 1 / cos_target(z), mp.mpf(0), mp.mpf(1), 4)


if __name__ == "__main__":
    main()
