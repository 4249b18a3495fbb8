"""Lyapunov losses."""
