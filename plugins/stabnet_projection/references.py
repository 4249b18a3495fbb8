"""BibTeX of the methods in this plugin."""

MANEK_KOLTER = """@inproceedings{manek2019learning,
  title = {Learning Stable Deep Dynamics Models},
  author = {Manek, Gaurav and Kolter, J. Zico},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2019}
}"""

ICNN = """@inproceedings{amos2017input,
  title = {Input Convex Neural Networks},
  author = {Amos, Brandon and Xu, Lei and Kolter, J. Zico},
  booktitle = {International Conference on Machine Learning},
  year = {2017}
}"""

LAWRENCE = """@inproceedings{lawrence2020almost,
  title = {Almost Surely Stable Deep Dynamics},
  author = {Lawrence, Nathan P. and Loewen, Philip D. and Forbes, Michael G. and
            Backstr{\\"o}m, Johan U. and Gopaluni, R. Bhushan},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2020}
}"""

LYADEQ = """@article{chu2023learning,
  title = {Learning Robust Deep Equilibrium Models},
  author = {Chu, Haoyu and Wei, Shikui and Liu, Ting},
  journal = {arXiv preprint arXiv:2304.12707},
  year = {2023}
}"""

MULTIPLE_SHOOTING = """@article{bock1984multiple,
  title = {A Multiple Shooting Algorithm for Direct Solution of Optimal Control Problems},
  author = {Bock, Hans Georg and Plitt, Karl-Josef},
  journal = {IFAC Proceedings Volumes},
  volume = {17},
  number = {2},
  pages = {1603--1608},
  year = {1984}
}"""

SODEF = """@inproceedings{kang2021stable,
  title = {Stable Neural {ODE} with {L}yapunov-Stable Equilibrium Points for Defending Against
           Adversarial Attacks},
  author = {Kang, Qiyu and Song, Yang and Ding, Qinxu and Tay, W. P.},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2021}
}"""

LYAPUNOV = """@book{lyapunov1992general,
  title = {The General Problem of the Stability of Motion},
  author = {Lyapunov, Aleksandr M.},
  note = {Translated by A. T. Fuller},
  publisher = {Taylor and Francis},
  year = {1992}
}"""

ELCD = """@inproceedings{jaffe2024learning,
  title = {Learning Neural Contracting Dynamics: Extended Linearization and Global Guarantees},
  author = {Jaffe, Sean and Davydov, Alexander and Lapsekili, Deniz and Singh, Ambuj and
            Bullo, Francesco},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2024}
}"""

GILLIS_SHARMA = """@article{gillis2017computing,
  title = {On Computing the Distance to Stability for Matrices Using Linear Dissipative
           {H}amiltonian Systems},
  author = {Gillis, Nicolas and Sharma, Punit},
  journal = {Automatica},
  volume = {85},
  pages = {113--121},
  year = {2017}
}"""

CONVEX_OPTIMIZATION = """@book{boyd2004convex,
  title = {Convex Optimization},
  author = {Boyd, Stephen and Vandenberghe, Lieven},
  publisher = {Cambridge University Press},
  year = {2004}
}"""
