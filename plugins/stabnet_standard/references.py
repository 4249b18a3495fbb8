"""BibTeX of the methods that the standard parts implement."""

from __future__ import annotations

__all__ = [
    "ADAM",
    "ADAMW",
    "BOGACKI_SHAMPINE",
    "DORMAND_PRINCE",
    "KUTTA",
    "LABEL_SMOOTHING",
    "NEURAL_ODE",
    "PRINCE_DORMAND",
    "RESNET",
    "RUNGE",
    "TORCHDIFFEQ",
]

RESNET = """@inproceedings{he2016deep,
  title={Deep residual learning for image recognition},
  author={He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  pages={770--778},
  year={2016}
}"""

NEURAL_ODE = """@inproceedings{chen2018neural,
  title={Neural ordinary differential equations},
  author={Chen, Ricky T. Q. and Rubanova, Yulia and Bettencourt, Jesse and Duvenaud, David},
  booktitle={Advances in Neural Information Processing Systems},
  volume={31},
  year={2018}
}"""

TORCHDIFFEQ = """@misc{torchdiffeq,
  title={torchdiffeq},
  author={Chen, Ricky T. Q.},
  url={https://github.com/rtqichen/torchdiffeq},
  year={2018}
}"""

RUNGE = """@article{runge1895ueber,
  title={{\\"U}ber die numerische {A}ufl{\\"o}sung von {D}ifferentialgleichungen},
  author={Runge, Carl},
  journal={Mathematische Annalen},
  volume={46},
  number={2},
  pages={167--178},
  year={1895}
}"""

KUTTA = """@article{kutta1901beitrag,
  title={Beitrag zur n{\\"a}herungsweisen {I}ntegration totaler {D}ifferentialgleichungen},
  author={Kutta, Wilhelm},
  journal={Zeitschrift f{\\"u}r Mathematik und Physik},
  volume={46},
  pages={435--453},
  year={1901}
}"""

DORMAND_PRINCE = """@article{dormand1980family,
  title={A family of embedded {R}unge--{K}utta formulae},
  author={Dormand, John R. and Prince, Peter J.},
  journal={Journal of Computational and Applied Mathematics},
  volume={6},
  number={1},
  pages={19--26},
  year={1980}
}"""

PRINCE_DORMAND = """@article{prince1981high,
  title={High order embedded {R}unge--{K}utta formulae},
  author={Prince, Peter J. and Dormand, John R.},
  journal={Journal of Computational and Applied Mathematics},
  volume={7},
  number={1},
  pages={67--75},
  year={1981}
}"""

BOGACKI_SHAMPINE = """@article{bogacki1989pair,
  title={A 3(2) pair of {R}unge--{K}utta formulas},
  author={Bogacki, Przemys{\\l}aw and Shampine, Lawrence F.},
  journal={Applied Mathematics Letters},
  volume={2},
  number={4},
  pages={321--325},
  year={1989}
}"""

LABEL_SMOOTHING = """@inproceedings{szegedy2016rethinking,
  title={Rethinking the {I}nception architecture for computer vision},
  author={Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jon and
          Wojna, Zbigniew},
  booktitle={IEEE Conference on Computer Vision and Pattern Recognition},
  pages={2818--2826},
  year={2016}
}"""

ADAM = """@inproceedings{kingma2015adam,
  title={Adam: a method for stochastic optimization},
  author={Kingma, Diederik P. and Ba, Jimmy},
  booktitle={International Conference on Learning Representations},
  year={2015}
}"""

ADAMW = """@inproceedings{loshchilov2019decoupled,
  title={Decoupled weight decay regularization},
  author={Loshchilov, Ilya and Hutter, Frank},
  booktitle={International Conference on Learning Representations},
  year={2019}
}"""
