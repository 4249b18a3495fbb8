"""Models that put an equilibrium between a backbone and a head."""
