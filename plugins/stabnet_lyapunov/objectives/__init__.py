"""Lyapunov losses."""

from .monte_carlo import LyapunovMonteCarlo
from .schedules import GainSchedule, RateSchedule

__all__ = ["GainSchedule", "LyapunovMonteCarlo", "RateSchedule"]
