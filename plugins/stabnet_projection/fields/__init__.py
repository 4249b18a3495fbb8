"""Vector fields that descend a Lyapunov function."""
