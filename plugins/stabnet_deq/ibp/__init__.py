"""Equilibria with sound boxes around them: the cell, its interval extension, certified training."""
