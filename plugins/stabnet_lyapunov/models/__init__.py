"""Models that Lyapunov losses train, and the models that they are compared with."""
