"""A sound part of every kind; the option ``fault`` breaks one thing about it."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import nn

import stabnet
from stabnet.interfaces import (
    Attack,
    Backbone,
    Block,
    Cell,
    Guarantee,
    Integrator,
    Objective,
    Potential,
    Solver,
    SolverResult,
    Trajectory,
    VectorField,
    lift_features,
)


class Head(nn.Module):
    def __init__(self, in_features, num_outputs, fault=""):
        super().__init__()
        self.linear, self.fault = nn.Linear(in_features, num_outputs), fault
        self.register_buffer("passes", torch.zeros(()), persistent=fault != "unsaved buffer")
        if fault == "seeds":
            torch.manual_seed(0)
        if fault == "default dtype":
            torch.set_default_dtype(torch.float64)

    def forward(self, z):
        if self.training:
            self.passes += 1
        out = self.linear(z) + self.passes
        match self.fault:
            case "shape":
                return out[:, :-1]
            case "dtype":
                return out.float()
            case "coupled":
                return out - out.mean(0)
            case "random":
                return out + torch.randn_like(out)
            case "detached":
                return (out + out.detach()) / 2
            case "grad mode":
                return out if torch.is_grad_enabled() else out + 1
            case "wakes":
                self.linear.train()
        return out

    def __deepcopy__(self, memo):
        if self.fault == "shared":
            return self
        copied = object.__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def lipschitz_bound(self):
        if self.fault == "stale" and hasattr(self, "kept"):
            return self.kept
        norm = float(torch.linalg.matrix_norm(self.linear.weight.detach().double(), 2))
        self.kept = norm * (0.5 if self.fault == "bound" else 1 + 1e-12)
        return self.kept

    def guarantees(self):
        claim = Guarantee("it is affine", "Wz + b", "its code", "by construction")
        return ["it is affine"] if self.fault == "claim" else [claim]


class ExtraStateHead(Head):
    def get_extra_state(self):
        return {"a file of tensors": "cannot hold this"}

    def set_extra_state(self, state):
        pass


def undescribed_head(in_features, num_outputs, activation=torch.tanh):
    return Head(in_features, num_outputs)


def careless_head(**kwargs):
    return Head(**kwargs)


def narrow_head(in_features):
    return Head(in_features, 3)


def no_module(in_features, num_outputs):
    return lambda z: z


class Reader(Backbone):
    def __init__(self, in_shape, fault=""):
        super().__init__()
        self.in_shape, self.out_shape, self.fault = tuple(in_shape), (4,), fault
        self.linear = nn.Linear(math.prod(in_shape), 4)

    def forward(self, x):
        out = torch.tanh(self.linear(x.flatten(1)))
        return out - out.mean(0) if self.fault == "coupled" else out


class Map(Cell):
    def __init__(self, state_shape, feature_shape, fault=""):
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), tuple(feature_shape)
        self.state, self.drive = nn.Linear(4, 4), nn.Linear(4, 4)
        self.fault = fault

    def forward(self, z, u=None):
        out = torch.tanh(self.state(z) / 4 + self.drive(u))
        return out + out.mean(0) if self.fault in ("coupled", "declared") else out

    @property
    def per_sample(self):
        return self.fault != "declared"


class Field(VectorField):
    def __init__(self, state_shape, feature_shape, fault=""):
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), tuple(feature_shape)
        self.state, self.drive = nn.Linear(4, 4), nn.Linear(2, 4)
        self.fault = fault

    def forward(self, t, z, u=None):
        term = lift_features(self.drive(u), z, 1)
        out = torch.tanh(self.state(z)) + term
        return out + out.mean(1, keepdim=True) if self.fault == "mixes" and z.ndim == 3 else out


class Bowl(Potential):
    def __init__(self, state_shape, fault=""):
        super().__init__()
        self.state_shape, self.fault = tuple(state_shape), fault
        self.depth = nn.Parameter(torch.tensor(1.5))

    def forward(self, z, context=None):
        value = self.depth * self._offset(z, context).square().sum(-1)
        if self.fault == "mixes" and z.ndim == 3:
            value = value + value.mean(1, keepdim=True)
        value = -value if self.fault == "negative" else value
        return value + 1 if self.fault == "center" else value

    def value_and_gradient(self, z, context=None):
        if self.fault == "gradient":  # the factor 2 forgotten
            return self(z, context), self.depth * self._offset(z, context)
        return super().value_and_gradient(z, context)

    def _offset(self, z, context):
        center = None if context is None else context.center
        return z if center is None else z - lift_features(center, z, 1)


class Step(Block):
    def __init__(self, state_shape, fault=""):
        super().__init__()
        self.state_shape, self.fault = tuple(state_shape), fault
        self.linear = nn.Linear(4, 4)

    def forward(self, z, u=None):
        if self.fault == "in place":
            u.zero_()
        out = z + torch.tanh(self.linear(z))
        if self.fault == "far":  # steep where no derivative is looked at
            out = out + 50 * torch.relu(z.norm(dim=-1, keepdim=True) - 500)
        return out + u if self.fault == "features" else out

    def lipschitz_bound(self):
        norm = torch.linalg.matrix_norm(self.linear.weight.detach().double(), 2)
        return (1 + float(norm)) * (1 + 1e-12)


class Heun(Integrator):
    def __init__(self, steps=8, fault=""):
        super().__init__()
        self.steps, self.fault = steps, fault

    def forward(self, vector_field, z0, times, u=None):
        points = torch.as_tensor(times, dtype=torch.float64).tolist()
        gaps = [b - a for a, b in pairwise(points)]
        monotone = bool(gaps) and (all(g > 0 for g in gaps) or all(g < 0 for g in gaps))
        if not monotone and self.fault != "times":
            raise stabnet.InvalidInputError(f"times {points}")
        states, nfe = [z0], 0
        for start, gap in zip(points[:-1], gaps, strict=True):
            z, h = states[-1], gap / self.steps
            for k in range(self.steps):
                slope = vector_field(start + k * h, z, u)
                end = vector_field(start + (k + 1) * h, z + h * slope, u)
                z = z + h * (slope + end) / (1 if self.fault == "step" else 2)
            states.append(z)
            nfe += self.steps if self.fault == "nfe" else 2 * self.steps
        return Trajectory(torch.stack(states), nfe)


class Picard(Solver):
    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault

    def forward(self, f, z0, u=None):
        z, best, nfe = z0, z0, 0
        residual = torch.full_like(z0[:, 0], torch.inf)
        while nfe < 100 and not bool((residual < 1e-12).all()):
            image = f(z, u)
            nfe += 1
            gap = torch.linalg.vector_norm(image - z, dim=1)
            relative = gap / torch.linalg.vector_norm(image, dim=1)
            if self.fault != "origin":
                relative = torch.where(gap == 0, gap, relative)
            better = (relative < residual) | (self.fault == "last")
            residual = torch.where(better, relative, residual)
            best = torch.where(better[:, None], z, best)
            z = image
        converged = residual < (0 if self.fault == "modest" else 1e-10)
        return SolverResult(best, residual, converged, nfe)


class Squares(Objective):
    task = "regression"

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault

    def forward(self, model, x, y):
        loss = nn.functional.mse_loss(model(x), y)
        return loss, {"loss": loss if self.fault == "logs" else loss.detach()}


class Sign(Attack):
    norm = "linf"

    def __init__(self, eps=0.1, fault=""):
        self.eps, self.steps, self.fault = eps, 1, fault

    def __call__(self, model, x, y):
        modes = [(m, m.training) for m in model.modules()]
        model.eval()
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(at), y)
            if self.fault == "gradients":
                loss.backward()
                slope = at.grad
            else:
                (slope,) = torch.autograd.grad(loss, at)
        for module, training in modes:
            module.training = training or self.fault == "modes"
        step = self.eps * {"ball": 1.5, "sign": -1}.get(self.fault, 1)
        found = x + step * slope.sign()
        return found if self.fault == "pixels" else found.clamp(0, 1)


class Growing(torch.utils.data.TensorDataset):
    def __len__(self):
        self.length = getattr(self, "length", 100) + 1
        return self.length


def pixels(root=None, download=False, fault=""):
    if fault == "absent":
        raise stabnet.MissingDataError("no files here")
    x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 3
    data = stabnet.data.from_tensors(x[:150], y[:150], x[150:], y[150:])
    if fault == "range":
        object.__setattr__(data, "train", torch.utils.data.TensorDataset(255 * x, y))
    if fault == "grows":
        object.__setattr__(data, "train", Growing(x, y))
    return data


class Forgetful(torch.optim.SGD):
    def state_dict(self):
        return {**super().state_dict(), "state": {}}


def descent(params, lr=0.1, fault=""):
    kind = Forgetful if fault == "forgetful" else torch.optim.SGD
    return kind(params, 0.0 if fault == "idle" else lr, momentum=0.9)


def network(in_shape, num_outputs, fault=""):
    dynamics = stabnet.Equilibrium(Map((4,), (4,)), Picard(fault))
    head = nn.Linear(4, num_outputs)
    return stabnet.StabilityModel(in_shape, num_outputs, Reader(in_shape), dynamics, head)
