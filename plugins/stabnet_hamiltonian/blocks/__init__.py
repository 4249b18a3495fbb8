"""Blocks of this plugin."""
