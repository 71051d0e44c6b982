"""Samplers that remember nothing of the steps before: Euler, Heun, DPM-Solver and the like.

Formulas follow k-diffusion's ``sampling.py`` (Karras et al. 2022, Lu et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipelines.samplers.coefficients import Step, StepBuilder, ancestral_step, log_midpoint


def euler(b: StepBuilder, steps: Sequence[Step]) -> None:
    """Euler's method; DDIM with eta 0 is the same line in sigma space."""
    for sigma, sigma_next, timestep in b.each(steps):
        b.add(sigma, timestep, s0=(1, 0, 0, 0, sigma_next - sigma))


def euler_ancestral(b: StepBuilder, steps: Sequence[Step]) -> None:
    """Euler with ancestral noise; DDPM (fixed small variance) is the same line in sigma space."""
    for sigma, sigma_next, timestep in b.each(steps):
        down, up = ancestral_step(sigma, sigma_next)
        b.add(sigma, timestep, s0=(1, 0, 0, 0, down - sigma, up))


def heun(b: StepBuilder, steps: Sequence[Step]) -> None:
    """Heun's method (Karras et al. 2022, algorithm 1); slot 1 holds the half-finished step."""
    for i, (sigma, sigma_next, timestep) in enumerate(b.each(steps)):
        dt = sigma_next - sigma
        if sigma_next == 0.0:  # Euler method
            b.add(sigma, timestep, s0=(1, 0, 0, 0, dt))
            continue
        b.add(sigma, timestep, s0=(1, 0, 0, 0, dt), s1=(1, 0, 0, 0, dt / 2))
        timestep_next = steps[i + 1][2] if i + 1 < len(steps) else None
        b.add(sigma_next, timestep_next, s0=(0, 1, 0, 0, dt / 2))


def dpm_2(b: StepBuilder, steps: Sequence[Step]) -> None:
    """DPM-Solver-2; slot 1 holds the latents the step began with."""
    for sigma, sigma_next, timestep in b.each(steps):
        _dpm_2_step(b, sigma, sigma_next, 0.0, timestep)


def dpm_2_ancestral(b: StepBuilder, steps: Sequence[Step]) -> None:
    """DPM-Solver-2 down to ``sigma_down``, then noise."""
    for sigma, sigma_next, timestep in b.each(steps):
        down, up = ancestral_step(sigma, sigma_next)
        _dpm_2_step(b, sigma, down, up, timestep)


def _dpm_2_step(b: StepBuilder, sigma: float, down: float, up: float, timestep: float) -> None:
    if down == 0.0:  # Euler method
        b.add(sigma, timestep, s0=(1, 0, 0, 0, -sigma))
        return
    middle = log_midpoint(sigma, down)
    b.add(sigma, timestep, s0=(1, 0, 0, 0, middle - sigma), s1=(1,))
    b.add(middle, None, s0=(0, 1, 0, 0, down - sigma, up))


def dpmpp_2s_ancestral(b: StepBuilder, steps: Sequence[Step]) -> None:
    """DPM-Solver++(2S) with ancestral noise; slot 1 holds the latents the step began with."""
    for sigma, sigma_next, timestep in b.each(steps):
        down, up = ancestral_step(sigma, sigma_next)
        if down == 0.0:  # Euler method
            b.add(sigma, timestep, s0=(1, 0, 0, 0, -sigma))
            continue
        h = math.log(sigma / down)
        middle = log_midpoint(sigma, down)
        half, full = -math.expm1(-h / 2), -math.expm1(-h)
        # denoised = slot 0 - sigma * eps
        b.add(sigma, timestep, s0=(middle / sigma + half, 0, 0, 0, -half * sigma), s1=(1,))
        b.add(middle, None, s0=(full, down / sigma, 0, 0, -full * middle, up))


def dpmpp_sde(b: StepBuilder, steps: Sequence[Step]) -> None:
    """DPM-Solver++ (SDE) with eta 1 and r 1/2; slot 1 holds what the second half goes on from.

    The noise of the whole step is that of its first half and some of its own, as of one Brownian
    motion over sigma: k-diffusion draws both from such a tree, with correlation sqrt(first half /
    whole step) in lengths of sigma. So the pair has the same covariance here, from two draws.
    """
    for sigma, sigma_next, timestep in b.each(steps):
        if sigma_next == 0.0:  # Euler method
            b.add(sigma, timestep, s0=(1, 0, 0, 0, -sigma))
            continue
        middle = log_midpoint(sigma, sigma_next)
        down_middle, up_middle = ancestral_step(sigma, middle)
        down, up = ancestral_step(sigma, sigma_next)
        shared = (sigma - middle) / (sigma - sigma_next)
        b.add(
            sigma,
            timestep,
            # Euler to down_middle: to a x + (1 - a) denoised, a the ratio of the sigmas.
            s0=(1, 0, 0, 0, down_middle - sigma, up_middle),
            s1=(down / sigma, 0, 0, 0, 0, up * math.sqrt(shared)),
        )
        weight = 1 - down / sigma
        own = up * math.sqrt(1 - shared)
        b.add(middle, None, s0=(weight, 1, 0, 0, -weight * middle, own))


_LCM_SIGMA_DATA = 0.5
_LCM_TIMESTEP_SCALING = 10.0


def lcm(b: StepBuilder, steps: Sequence[Step]) -> None:
    """Latent consistency (Luo et al. 2023): to the predicted picture, then noise to the next sigma.

    The boundary scalings are those of diffusers' LCMScheduler; they act on latents of unit
    variance, which ``slot 0 / sqrt(sigma^2 + 1)`` are.
    """
    for sigma, sigma_next, timestep in b.each(steps):
        scaled = timestep * _LCM_TIMESTEP_SCALING
        length = scaled**2 + _LCM_SIGMA_DATA**2
        skip, out = _LCM_SIGMA_DATA**2 / length, scaled / math.sqrt(length)
        on_x = out + skip / math.sqrt(sigma**2 + 1.0)
        b.add(sigma, timestep, s0=(on_x, 0, 0, 0, -out * sigma, sigma_next))
