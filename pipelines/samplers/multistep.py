"""Samplers that go on from the outputs of the steps before, which the state slots keep.

Each begins at its lowest order, wherever in a schedule it starts. Formulas follow k-diffusion's
``sampling.py`` (Lu et al. 2022) and, for UniPC, Zhao et al. 2023 as diffusers implements it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipelines.samplers.coefficients import Step, StepBuilder

_LMS_ORDER = 4
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_LMS_ORDER)


def dpmpp_2m(b: StepBuilder, steps: Sequence[Step]) -> None:
    """DPM-Solver++(2M); slot 1 holds the previous denoised picture."""
    h_last: float | None = None
    for sigma, sigma_next, timestep in b.each(steps):
        denoised = (1, 0, 0, 0, -sigma)
        if sigma_next == 0.0:
            b.add(sigma, timestep, s0=denoised, s1=denoised)
            continue
        h = math.log(sigma / sigma_next)
        ratio, weight = sigma_next / sigma, -math.expm1(-h)
        # The extrapolated denoised is now * denoised - before * previous denoised.
        before = 0.0 if h_last is None else h / (2 * h_last)
        now = 1.0 + before
        b.add(
            sigma,
            timestep,
            s0=(ratio + weight * now, -weight * before, 0, 0, -weight * now * sigma),
            s1=denoised,
        )
        h_last = h


def dpmpp_2m_sde(b: StepBuilder, steps: Sequence[Step]) -> None:
    """DPM-Solver++(2M) SDE, midpoint, eta 1; slot 1 holds the previous denoised image."""
    h_last: float | None = None
    for sigma, sigma_next, timestep in b.each(steps):
        denoised = (1, 0, 0, 0, -sigma)
        if sigma_next == 0.0:
            b.add(sigma, timestep, s0=denoised, s1=denoised)
            continue
        h = math.log(sigma / sigma_next)
        ratio, weight, noise = _sde_step(sigma, sigma_next, h)
        before = 0.0 if h_last is None else 0.5 * weight * h / h_last
        now = weight + before
        b.add(
            sigma,
            timestep,
            s0=(ratio + now, -before, 0, 0, -now * sigma, noise),
            s1=denoised,
        )
        h_last = h


def dpmpp_3m_sde(b: StepBuilder, steps: Sequence[Step]) -> None:
    """DPM-Solver++(3M) SDE, eta 1; slots 1 and 2 hold the denoised images before, newest first."""
    h_1: float | None = None
    h_2: float | None = None
    for sigma, sigma_next, timestep in b.each(steps):
        denoised = (1, 0, 0, 0, -sigma)
        older = (0, 1)
        if sigma_next == 0.0:
            b.add(sigma, timestep, s0=denoised, s1=denoised, s2=older)
            continue
        h = math.log(sigma / sigma_next)
        ratio, weight, noise = _sde_step(sigma, sigma_next, h)
        # Factors on the denoised images: of now, of the step before, of the one before that.
        now, last, before = weight, 0.0, 0.0
        phi_2 = 1.0 - weight / (2 * h)
        if h_1 is not None and h_2 is None:
            now, last = now + phi_2 * h / h_1, -phi_2 * h / h_1
        elif h_1 is not None and h_2 is not None:
            phi_3 = phi_2 / (2 * h) - 0.5
            r_0, r_1 = h_1 / h, h_2 / h
            # d1 = slope + bend * r_0 and d2 = bend, with slope the first difference and bend
            # the second: phi_2 * d1 - phi_3 * d2.
            on_bend = (phi_2 * r_0 - phi_3) / (r_0 + r_1)
            on_first, on_second = (phi_2 + on_bend) / r_0, -on_bend / r_1
            now, last, before = now + on_first, on_second - on_first, -on_second
        b.add(
            sigma,
            timestep,
            s0=(ratio + now, last, before, 0, -now * sigma, noise),
            s1=denoised,
            s2=older,
        )
        h_1, h_2 = h, h_1


def _sde_step(sigma: float, sigma_next: float, h: float) -> tuple[float, float, float]:
    """The factors of a first-order SDE step, eta 1: on x, on the denoised image, on the noise."""
    weight = -math.expm1(-2 * h)
    return sigma_next / sigma * math.exp(-h), weight, sigma_next * math.sqrt(weight)


def unipc(b: StepBuilder, steps: Sequence[Step]) -> None:
    """UniPC of order 2, bh2, over denoised images (Zhao et al. 2023): UniC, then UniP, a step.

    Slot 0 is the predicted x, slot 1 the corrected x of the step before, slots 2 and 3 the
    denoised images of the two steps before. The last step is of order 1.
    """
    x, corrected_before, last, before, eps = np.eye(5)
    lambdas = [-math.log(sigma) for sigma, _, _ in steps]
    order = 0
    for i, (sigma, sigma_next, timestep) in enumerate(b.each(steps)):
        denoised = x - sigma * eps
        corrected = x
        if i > 0:
            h = lambdas[i] - lambdas[i - 1]
            e = math.expm1(-h)
            change = denoised - last
            if order == 1:
                residual = 0.5 * change
            else:
                r = (lambdas[i - 2] - lambdas[i - 1]) / h
                on_before, on_change = _unic_weights(h, r)
                residual = on_before * (before - last) / r + on_change * change
            corrected = (steps[i - 1][1] / steps[i - 1][0]) * corrected_before - e * (
                last + residual
            )
        order = 1 if i in (0, len(steps) - 1) else 2
        if sigma_next == 0.0:
            predicted = denoised
        else:
            h = math.log(sigma / sigma_next)
            slope = 0.0 * x
            if order == 2:
                slope = 0.5 * (last - denoised) * h / (lambdas[i - 1] - lambdas[i])
            predicted = (sigma_next / sigma) * corrected - math.expm1(-h) * (denoised + slope)
        b.add(sigma, timestep, s0=predicted, s1=corrected, s2=denoised, s3=last)


def _unic_weights(h: float, r: float) -> tuple[float, float]:
    """The weights of UniC's two differences, for order 2 and bh2.

    They solve ``w0 + w1 = b1``, ``r w0 + w1 = b2``, which match the first two moments.
    """
    phi_1 = math.expm1(-h)
    phi_2 = -phi_1 / h - 1.0
    phi_3 = -phi_2 / h - 0.5
    b_1, b_2 = phi_2 / phi_1, 2 * phi_3 / phi_1
    w_0 = (b_1 - b_2) / (1.0 - r)
    return w_0, b_1 - w_0


def lms(b: StepBuilder, steps: Sequence[Step]) -> None:
    """Linear multistep of order 4; slots 1 to 3 hold the last derivatives, newest first.

    The order counts the steps since the start of this run, so an image-to-image start in the
    middle of a schedule begins with order 1.
    """
    sigmas = [sigma for sigma, _, _ in steps] + [steps[-1][1]]
    for i, (sigma, _, timestep) in enumerate(b.each(steps)):
        order = min(i + 1, _LMS_ORDER)
        c = [_lms_coefficient(order, sigmas, i, j) for j in range(order)] + [0.0] * 3
        b.add(
            sigma,
            timestep,
            s0=(1, c[1], c[2], c[3], c[0]),
            s1=(0, 0, 0, 0, 1),
            s2=(0, 1),
            s3=(0, 0, 1),
        )


def _lms_coefficient(order: int, sigmas: Sequence[float], i: int, j: int) -> float:
    """The integral of the j-th Lagrange polynomial over step i.

    Gauss-Legendre with 4 nodes is exact to degree 7, and the integrand is of degree 3 at most.
    """
    low, high = sigmas[i], sigmas[i + 1]
    tau = (high - low) / 2 * _NODES + (high + low) / 2
    product = np.ones_like(tau)
    for k in range(order):
        if k != j:
            product *= (tau - sigmas[i - k]) / (sigmas[i - j] - sigmas[i - k])
    return float((high - low) / 2 * np.dot(_WEIGHTS, product))
