"""BibTeX of the methods in this plugin."""

DEQ = """@inproceedings{bai2019deep,
  title = {Deep Equilibrium Models},
  author = {Bai, Shaojie and Kolter, J. Zico and Koltun, Vladlen},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019}
}"""

ANDERSON = """@article{walker2011anderson,
  title = {Anderson Acceleration for Fixed-Point Iterations},
  author = {Walker, Homer F. and Ni, Peng},
  journal = {SIAM Journal on Numerical Analysis},
  volume = {49},
  number = {4},
  pages = {1715--1735},
  year = {2011}
}"""

LYADEQ = """@article{chu2023learning,
  title = {Learning Robust Deep Equilibrium Models},
  author = {Chu, Haoyu and Wei, Shikui and Liu, Ting},
  journal = {arXiv preprint arXiv:2304.12707},
  year = {2023}
}"""

MDEQ = """@inproceedings{bai2020multiscale,
  title = {Multiscale Deep Equilibrium Models},
  author = {Bai, Shaojie and Koltun, Vladlen and Kolter, J. Zico},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020}
}"""

JACOBIAN_REGULARIZATION = """@inproceedings{bai2021stabilizing,
  title = {Stabilizing Equilibrium Models by {J}acobian Regularization},
  author = {Bai, Shaojie and Koltun, Vladlen and Kolter, J. Zico},
  booktitle = {International Conference on Machine Learning},
  year = {2021}
}"""

MONDEQ = """@inproceedings{winston2020monotone,
  title = {Monotone Operator Equilibrium Networks},
  author = {Winston, Ezra and Kolter, J. Zico},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020}
}"""

MONDEQ_LIPSCHITZ = """@inproceedings{pabbaraju2021estimating,
  title = {Estimating {L}ipschitz Constants of Monotone Deep Equilibrium Models},
  author = {Pabbaraju, Chirag and Winston, Ezra and Kolter, J. Zico},
  booktitle = {International Conference on Learning Representations},
  year = {2021}
}"""

SPLITTING = """@article{lions1979splitting,
  title = {Splitting Algorithms for the Sum of Two Nonlinear Operators},
  author = {Lions, Pierre-Louis and Mercier, Bertrand},
  journal = {SIAM Journal on Numerical Analysis},
  volume = {16},
  number = {6},
  pages = {964--979},
  year = {1979}
}"""

BROYDEN = """@article{broyden1965class,
  title = {A Class of Methods for Solving Nonlinear Simultaneous Equations},
  author = {Broyden, Charles G.},
  journal = {Mathematics of Computation},
  volume = {19},
  number = {92},
  pages = {577--593},
  year = {1965}
}"""

IBP_MONDEQ = """@inproceedings{wei2022certified,
  title = {Certified Robustness for Deep Equilibrium Models via Interval Bound Propagation},
  author = {Wei, Colin and Kolter, J. Zico},
  booktitle = {International Conference on Learning Representations},
  year = {2022}
}"""

INTERVAL_BOUNDS = """@article{gowal2018effectiveness,
  title = {On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust
    Models},
  author = {Gowal, Sven and Dvijotham, Krishnamurthy and Stanforth, Robert and Bunel, Rudy and
    Qin, Chongli and Uesato, Jonathan and Arandjelovic, Relja and Mann, Timothy and Kohli,
    Pushmeet},
  journal = {arXiv preprint arXiv:1810.12715},
  year = {2018}
}"""
