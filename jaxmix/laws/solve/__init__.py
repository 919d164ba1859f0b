"""Solvers: least squares for the parameters of a law, mirror descent for mixtures."""
