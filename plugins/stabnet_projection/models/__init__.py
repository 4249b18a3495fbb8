"""Models with a projection in their dynamics."""
