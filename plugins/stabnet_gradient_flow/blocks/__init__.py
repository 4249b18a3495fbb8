"""Blocks whose Lipschitz constant is bounded, and how states change shape between them."""
