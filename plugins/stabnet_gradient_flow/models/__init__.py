"""Networks of non-expansive blocks, and what to compare them with."""
