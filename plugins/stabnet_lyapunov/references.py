"""BibTeX of the methods in this plugin."""

LYANET = """@inproceedings{jimenez2022lyanet,
  title = {{LyaNet}: A {L}yapunov Framework for Training Neural {ODE}s},
  author = {Jimenez Rodriguez, Ivan Dario and Ames, Aaron D. and Yue, Yisong},
  booktitle = {International Conference on Machine Learning},
  year = {2022}
}"""

NERO = """@inproceedings{liu2021learning,
  title = {Learning by Turning: Neural Architecture Aware Optimisation},
  author = {Liu, Yang and Bernstein, Jeremy and Meister, Markus and Yue, Yisong},
  booktitle = {International Conference on Machine Learning},
  year = {2021}
}"""

CONTINUOUS_NET = """@article{queiruga2020continuous,
  title = {Continuous-in-Depth Neural Networks},
  author = {Queiruga, Alejandro F. and Erichson, N. Benjamin and Taylor, Dane
            and Mahoney, Michael W.},
  journal = {arXiv:2008.02389},
  year = {2020}
}"""

NEURAL_ODE = """@inproceedings{chen2018neural,
  title = {Neural Ordinary Differential Equations},
  author = {Chen, Ricky T. Q. and Rubanova, Yulia and Bettencourt, Jesse and Duvenaud, David},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2018}
}"""

RESNET = """@inproceedings{he2016deep,
  title = {Deep Residual Learning for Image Recognition},
  author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {Conference on Computer Vision and Pattern Recognition},
  year = {2016}
}"""
