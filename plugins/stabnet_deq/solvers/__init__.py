"""Fixed-point solvers. Each stops on the relative residual, per sample."""
