"""BibTeX of the methods in this plugin."""

SNN = """@incollection{ehrhardt2025stable,
  title = {Stable Neural Networks and Connections to Continuous Dynamical Systems},
  author = {Ehrhardt, Matthias J. and Murari, Davide and Sherry, Ferdia},
  year = {2025}
}"""
