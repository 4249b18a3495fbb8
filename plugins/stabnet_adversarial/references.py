"""BibTeX of what this plugin implements."""

from __future__ import annotations

__all__ = ["APGD", "IFGSM", "LYADEQ", "PGD", "TORCHATTACKS"]

APGD = """\
@inproceedings{croce2020reliable,
  title     = {Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
               Parameter-Free Attacks},
  author    = {Croce, Francesco and Hein, Matthias},
  booktitle = {International Conference on Machine Learning},
  year      = {2020},
}"""

IFGSM = """\
@inproceedings{kurakin2017adversarial,
  title     = {Adversarial Examples in the Physical World},
  author    = {Kurakin, Alexey and Goodfellow, Ian J. and Bengio, Samy},
  booktitle = {International Conference on Learning Representations, Workshop Track},
  year      = {2017},
}"""

PGD = """\
@inproceedings{madry2018towards,
  title     = {Towards Deep Learning Models Resistant to Adversarial Attacks},
  author    = {Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and
               Tsipras, Dimitris and Vladu, Adrian},
  booktitle = {International Conference on Learning Representations},
  year      = {2018},
}"""

TORCHATTACKS = """\
@article{kim2020torchattacks,
  title   = {Torchattacks: A {PyTorch} Repository for Adversarial Attacks},
  author  = {Kim, Hoki},
  journal = {arXiv preprint arXiv:2010.01950},
  year    = {2020},
}"""

LYADEQ = """\
@article{chu2023learning,
  title   = {Learning Robust Deep Equilibrium Models},
  author  = {Chu, Haoyu and Wei, Shikui and Liu, Ting},
  journal = {arXiv preprint arXiv:2304.12707},
  year    = {2023},
}"""
