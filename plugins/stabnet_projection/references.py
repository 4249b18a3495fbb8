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
