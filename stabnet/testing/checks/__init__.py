"""The checks: each a function of one entry that raises where the entry breaks its contract."""
