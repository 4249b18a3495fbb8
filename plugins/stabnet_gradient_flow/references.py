"""BibTeX of the methods in this plugin."""

ANIL = """@inproceedings{anil2019sorting,
  title = {Sorting Out {L}ipschitz Function Approximation},
  author = {Anil, Cem and Lucas, James and Grosse, Roger},
  booktitle = {International Conference on Machine Learning},
  year = {2019}
}"""

AOL = """@inproceedings{prach2022almost,
  title = {Almost-Orthogonal Layers for Efficient General-Purpose {L}ipschitz Networks},
  author = {Prach, Bernd and Lampert, Christoph H.},
  booktitle = {European Conference on Computer Vision},
  year = {2022}
}"""

CAYLEY = """@inproceedings{trockman2021orthogonalizing,
  title = {Orthogonalizing Convolutional Layers with the {Cayley} Transform},
  author = {Trockman, Asher and Kolter, J. Zico},
  booktitle = {International Conference on Learning Representations},
  year = {2021}
}"""

CELLEDONI = """@article{celledoni2023dynamical,
  title = {Dynamical Systems-Based Neural Networks},
  author = {Celledoni, Elena and Murari, Davide and Owren, Brynjulf and
            Sch{\\"o}nlieb, Carola-Bibiane and Sherry, Ferdia},
  journal = {SIAM Journal on Scientific Computing},
  volume = {45},
  number = {6},
  year = {2023}
}"""

SANDWICH = """@inproceedings{wang2023direct,
  title = {Direct Parameterization of {Lipschitz}-Bounded Deep Networks},
  author = {Wang, Ruigang and Manchester, Ian R.},
  booktitle = {International Conference on Machine Learning},
  year = {2023}
}"""

SLL = """@inproceedings{araujo2023unified,
  title = {A Unified Algebraic Perspective on {L}ipschitz Neural Networks},
  author = {Araujo, Alexandre and Havens, Aaron and Delattre, Blaise and Allauzen, Alexandre and
            Hu, Bin},
  booktitle = {International Conference on Learning Representations},
  year = {2023}
}"""

SNN = """@misc{ehrhardt2025stable,
  title = {Stable Neural Networks and Connections to Continuous Dynamical Systems},
  author = {Ehrhardt, Matthias J. and Murari, Davide and Sherry, Ferdia},
  year = {2025},
  eprint = {2510.22299},
  archivePrefix = {arXiv}
}"""

TSUZUKU = """@inproceedings{tsuzuku2018lipschitz,
  title = {Lipschitz-Margin Training: Scalable Certification of Perturbation Invariance for Deep
           Neural Networks},
  author = {Tsuzuku, Yusuke and Sato, Issei and Sugiyama, Masashi},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2018}
}"""
