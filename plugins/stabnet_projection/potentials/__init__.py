"""Lyapunov functions."""
