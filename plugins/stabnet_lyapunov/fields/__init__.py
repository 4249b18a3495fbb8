"""Vector fields whose states are meant to converge to the right prediction."""
