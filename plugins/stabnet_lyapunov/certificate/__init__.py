"""The certificate of Theorem 3 of [LyaNet], as corrected."""
