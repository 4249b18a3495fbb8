"""BibTeX of the methods in this plugin."""

SNN = """@misc{ehrhardt2025stable,
  title = {Stable Neural Networks and Connections to Continuous Dynamical Systems},
  author = {Ehrhardt, Matthias J. and Murari, Davide and Sherry, Ferdia},
  year = {2025},
  eprint = {2510.22299},
  archivePrefix = {arXiv}
}"""

STORMER_VERLET = """@article{hairer2003geometric,
  title = {Geometric Numerical Integration Illustrated by the St{\\"o}rmer--Verlet Method},
  author = {Hairer, Ernst and Lubich, Christian and Wanner, Gerhard},
  journal = {Acta Numerica},
  volume = {12},
  pages = {399--450},
  year = {2003}
}"""

YOSHIDA = """@article{yoshida1990construction,
  title = {Construction of Higher Order Symplectic Integrators},
  author = {Yoshida, Haruo},
  journal = {Physics Letters A},
  volume = {150},
  number = {5--7},
  pages = {262--268},
  year = {1990}
}"""

GEOMETRIC_INTEGRATION = """@book{hairer2006geometric,
  title = {Geometric Numerical Integration: Structure-Preserving Algorithms for Ordinary
           Differential Equations},
  author = {Hairer, Ernst and Lubich, Christian and Wanner, Gerhard},
  publisher = {Springer},
  edition = {2},
  year = {2006}
}"""

REVERSIBLE = """@inproceedings{gomez2017reversible,
  title = {The Reversible Residual Network: Backpropagation Without Storing Activations},
  author = {Gomez, Aidan N. and Ren, Mengye and Urtasun, Raquel and Grosse, Roger B.},
  booktitle = {Advances in Neural Information Processing Systems},
  volume = {30},
  year = {2017}
}"""
