"""BibTeX of the methods in this plugin."""

GEOTORCH = """@inproceedings{lezcano2019trivializations,
  title = {Trivializations for Gradient-Based Optimization on Manifolds},
  author = {Lezcano-Casado, Mario},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019}
}"""
