"""Samplers as programs of step coefficients, and the schedules that they run over."""

from __future__ import annotations

from pipelines.samplers.programs import SamplerProgram, StepCoefficients, compile_program

__all__ = ["SamplerProgram", "StepCoefficients", "compile_program"]
