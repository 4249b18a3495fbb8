"""Objectives that train for a certified radius."""
