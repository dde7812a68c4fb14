"""What training minimises: focal, interval and correspondence losses, and their targets (dave.md 2.3, 2.5 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, log, pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from avtool.models.loco import LoCoConfig, LoCoOutput
from avtool.models.points import pyramid_points
from avtool.models.unav import UnAVConfig

EPS = 1e-8
TAU_START, TAU_LOW, TAU_HIGH = 0.07, 0.001, 0.5  # ALBEF's temperature and its limits
SIGMA_START, SIGMA_LOW = 1.0, 0.5  # grid steps
SMOOTHING = 0.1  # epsilon of lcf_target = "smoothed"
LCF_ROWS = 1024  # rows of the N x N similarity held at once


@dataclass(frozen=True)
class Events:
    """The true events of one clip.

    Attributes:
        segments: (M, 2) float start and end on the grid (rows; row g is centred at g).
        labels: (M,) int64 class indices.
    """

    segments: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Targets:
    """What the points of a batch should say.

    Attributes:
        labels: (B, N, C) float, 1 where the class is positive.
        offsets: (B, N, C, 2), or (B, N, 2) when classes share them: distances left and right in strides; 0 where
            there is no event.
    """

    labels: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Losses:
    """The parts of one step's loss; each scalar keeps its graph."""

    total: Tensor
    classification: Tensor
    regression: Tensor
    correspondence: Tensor
    positives: Tensor


# ---- targets -----------------------------------------------------------------------------------------------


def assign(points: Tensor, events: Events, classes: int, class_aware: bool = True) -> tuple[Tensor, Tensor]:
    """Targets of one clip: a point is positive for an event around it whose length fits its level (dave.md 3).

    Args:
        points: (N, 4) from `pyramid_points`.
        events: of the clip, possibly none.
        classes: C.
        class_aware: one target per point and class (the later annotation wins), else a point's shortest event
            (events within 1e-3 of the shortest all count as labels; the first of the shortest gives the offsets).

    Returns:
        Labels (N, C) and offsets (N, C, 2), or (N, 2) without `class_aware`, in strides.
    """
    time, low, high, stride = points.unbind(1)
    sides = torch.stack((time[:, None] - events.segments[:, 0], events.segments[:, 1] - time[:, None]), 2)  # (N, M, 2)
    reach = sides.amax(2)
    positive = (sides.amin(2) > 0) & (reach >= low[:, None]) & (reach <= high[:, None])  # (N, M)
    if class_aware:
        return _per_class(positive, sides / stride[:, None, None], events.labels, classes)
    return _shortest(positive, sides / stride[:, None, None], events, classes)


def _per_class(positive: Tensor, sides: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """positive (N, M), sides (N, M, 2) -> (N, C), (N, C, 2): the last positive event of each class."""
    rank = positive * torch.arange(1, labels.shape[0] + 1, device=labels.device)  # (N, M), 0 = not positive
    winner = rank.new_zeros(rank.shape[0], classes).scatter_reduce(1, labels.expand_as(rank), rank, "amax")  # (N, C)
    found = winner > 0
    offsets = F.pad(sides, (0, 0, 1, 0)).gather(1, winner[..., None].expand(-1, -1, 2))
    return found.to(sides.dtype), offsets * found[..., None]


def _shortest(positive: Tensor, sides: Tensor, events: Events, classes: int) -> tuple[Tensor, Tensor]:
    """positive (N, M), sides (N, M, 2) -> (N, C), (N, 2): the shortest positive event, labels of all that tie."""
    if events.labels.shape[0] == 0:
        return sides.new_zeros(sides.shape[0], classes), sides.new_zeros(sides.shape[0], 2)
    lengths = (events.segments[:, 1] - events.segments[:, 0]).masked_fill(~positive, torch.inf)  # (N, M)
    least, index = lengths.min(1)
    ties = positive & (lengths <= least[:, None] + 1e-3)
    labels = (ties.to(sides.dtype) @ F.one_hot(events.labels, classes).to(sides.dtype)).clamp(max=1)
    offsets = sides.gather(1, index[:, None, None].expand(-1, 1, 2))[:, 0]
    return labels, offsets * positive.any(1)[:, None]


# ---- elementwise losses ------------------------------------------------------------------------------------


def sigmoid_focal(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of independent classes (arXiv 1708.02002, eq. 5), not reduced.

    Args:
        logits: any shape.
        targets: same shape, in [0, 1].
        alpha: weight of positives, 1 - alpha of negatives; below 0 no weighting.
        gamma: focus on hard examples.
    """
    p = logits.sigmoid()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    loss = loss * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    return loss if alpha < 0 else loss * (alpha * targets + (1 - alpha) * (1 - targets))


def interval_loss(predicted: Tensor, target: Tensor, kind: str = "diou") -> Tensor:
    """Overlap loss of two intervals around one point, not reduced (dave.md 2.5).

    Args:
        predicted: (..., 2) distances left and right, >= 0.
        target: (..., 2).
        kind: "giou" = 1 - IoU (both intervals hold the point, so nothing lies between them); "diou" adds the squared
            distance of the centres over the length of the enclosing interval.

    Returns:
        (...) losses.
    """
    inside = torch.minimum(predicted, target).sum(-1)
    union = predicted.sum(-1) + target.sum(-1) - inside
    loss = 1 - inside / union.clamp(min=EPS)
    if kind == "giou":
        return loss
    hull = torch.maximum(predicted, target).sum(-1).clamp(min=EPS)
    shift = 0.5 * ((predicted[..., 1] - predicted[..., 0]) - (target[..., 1] - target[..., 0]))
    return loss + (shift / hull) ** 2


# ---- correspondence ----------------------------------------------------------------------------------------


class Correspondence(nn.Module):
    """LCF: pulls the two streams together where they are near in time (dave.md 2.3; training only).

    Args:
        width: D of the streams; each is projected to D / 2.
        max_length: T_max; bounds sigma at T_max / 4.
        target: "diagonal", "smoothed", "fixed_gaussian" or "learned_gaussian"; 0 between clips in every case.
        objective: "ce" with the Gaussian as printed, or "kl" with rows that sum to 1.
    """

    def __init__(self, width: int, max_length: int, target: str = "learned_gaussian", objective: str = "kl") -> None:
        super().__init__()
        self.target, self.objective = target, objective
        self.visual, self.audio = nn.Linear(width, width // 2), nn.Linear(width, width // 2)
        self.log_tau = nn.Parameter(torch.tensor(log(TAU_START)))
        learnt = target == "learned_gaussian"
        self.rho = nn.Parameter(torch.tensor(log(expm1(SIGMA_START))), requires_grad=learnt)  # sigma = softplus(rho)
        self._rho_limits = tuple(log(expm1(s)) for s in (SIGMA_LOW, max(SIGMA_LOW, max_length / 4)))

    @property
    def sigma(self) -> Tensor:
        """Width of the Gaussian in rows, a scalar."""
        return F.softplus(self.rho)

    @property
    def tau(self) -> Tensor:
        """Temperature, a scalar."""
        return self.log_tau.exp()

    def forward(self, visual: Tensor, audio: Tensor, mask: Tensor) -> Tensor:
        """Mean of both directions over the valid rows of the batch.

        Args:
            visual: (B, T, D) stream V.
            audio: (B, T, D) stream A.
            mask: (B, T) bool.

        Returns:
            Scalar; 0 if no row is valid.
        """
        self._clamp()
        clip, step = mask.nonzero(as_tuple=True)  # (N,), (N,)
        if clip.numel() == 0:
            return visual[mask].sum()
        v = F.normalize(self.visual(visual[mask]), dim=-1)  # (N, D / 2)
        a = F.normalize(self.audio(audio[mask]), dim=-1)
        return 0.5 * (self._direction(v, a, clip, step) + self._direction(a, v, clip, step))

    @torch.no_grad()
    def _clamp(self) -> None:
        """Keeps tau and sigma inside their limits by moving the parameters, so that no gradient dies at a limit."""
        if self.training:
            self.log_tau.clamp_(log(TAU_LOW), log(TAU_HIGH))
            self.rho.clamp_(*self._rho_limits)

    def _direction(self, rows: Tensor, columns: Tensor, clip: Tensor, step: Tensor) -> Tensor:
        """rows, columns (N, D / 2) -> mean over rows of the divergence from the target, `LCF_ROWS` rows at a time."""
        n = rows.shape[0]
        if n <= LCF_ROWS:
            return self._rows(rows, columns, clip, step, 0) / n
        total = rows.new_zeros(())
        for start in range(0, n, LCF_ROWS):
            chunk = rows[start : start + LCF_ROWS]
            total = total + checkpoint(self._rows, chunk, columns, clip, step, start, use_reentrant=False)
        return total / n

    def _rows(self, rows: Tensor, columns: Tensor, clip: Tensor, step: Tensor, start: int) -> Tensor:
        """Sum over rows [start, start + R) of -sum_j G log softmax(S), minus the entropy of G for "kl"."""
        scores = (rows @ columns.T / self.tau).log_softmax(1)  # (R, N)
        stop = start + rows.shape[0]
        same = clip[start:stop, None] == clip  # (R, N)
        distance = (step[start:stop, None] - step).abs().to(scores.dtype)  # rows of the grid
        log_target = self._log_target(same, distance)
        goal = log_target.exp()  # 0 where the target is -inf
        if self.objective == "ce":
            return -(goal * scores).sum()
        known = goal > 0
        return (goal * (log_target.masked_fill(~known, 0) - scores)).sum()

    def _log_target(self, same: Tensor, distance: Tensor) -> Tensor:
        """same, distance (R, N) -> log G (R, N), -inf where G = 0; rows sum to 1 but for the Gaussian of "ce"."""
        if self.target == "diagonal":
            return torch.zeros_like(distance).masked_fill(~(same & (distance == 0)), -torch.inf)
        if self.target == "smoothed":
            return _smoothed(same, distance)
        # distance to the diagonal = |t(i) - t(j)| / sqrt(2)
        log_goal = -(distance**2) / (4 * self.sigma**2)
        if self.objective == "ce":
            return (log_goal - torch.log(self.sigma * sqrt(2 * pi))).masked_fill(~same, -torch.inf)
        return log_goal.masked_fill(~same, -torch.inf).log_softmax(1)


def _smoothed(same: Tensor, distance: Tensor) -> Tensor:
    """1 - eps on the diagonal, eps / (T_n - 1) on the clip's other rows; a clip of one row keeps all of it."""
    others = same.sum(1, keepdim=True) - 1  # (R, 1)
    spread = SMOOTHING / others.clamp(min=1)
    goal = torch.where(distance == 0, 1 - SMOOTHING * (others > 0).to(distance.dtype), spread.to(distance.dtype))
    return goal.log().masked_fill(~same, -torch.inf)


# ---- the whole ---------------------------------------------------------------------------------------------


class LoCoLoss(nn.Module):
    """L = L_cls + L_reg + lcf_weight * L_LCF, the first two over one running number of positive points (dave.md 2.5).

    Its parameters (projections, tau, sigma) train along with the network, its buffer belongs into checkpoints.

    Args:
        config: of the network; UnAV's has no correspondence loss.
        start: of the normaliser.
        momentum: of the normaliser.
    """

    normaliser: Tensor

    def __init__(self, config: LoCoConfig | UnAVConfig, start: float = 250.0, momentum: float = 0.9) -> None:
        super().__init__()
        self.config, self.momentum = config, momentum
        self.register_buffer("normaliser", torch.tensor(float(start)))
        self.correspondence, self.correspondence_weight = None, 0.0
        if isinstance(config, LoCoConfig) and config.lcf_weight:
            self.correspondence_weight = config.lcf_weight
            lcf = Correspondence(config.width, config.max_length, config.lcf_target, config.lcf_objective)
            self.correspondence = lcf

    def targets(self, events: Sequence[Events], length: int) -> Targets:
        """Targets of a batch padded to `length` rows, on the device of the loss; see `assign`."""
        points = torch.from_numpy(pyramid_points(length, self.config.levels)).to(self.normaliser.device)
        aware = self.config.regression == "class"
        parts = [
            assign(points, Events(e.segments.to(points), e.labels.to(points.device)), self.config.classes, aware)
            for e in events
        ]
        return Targets(torch.stack([labels for labels, _ in parts]), torch.stack([offsets for _, offsets in parts]))

    def forward(self, output: LoCoOutput, targets: Targets) -> Losses:
        """Loss of one batch; in training it first moves the normaliser.

        Args:
            output: of the network.
            targets: labels (B, N, C) and offsets for the N points of all levels.
        """
        mask = torch.cat(output.masks, 1)  # (B, N)
        positive = (targets.labels > 0) & mask[..., None]  # (B, N, C)
        count = positive.any(2).sum()
        if self.training:
            self._move_normaliser(count)
        logits = torch.cat(output.logits, 1).to(torch.promote_types(output.logits[0].dtype, torch.float32))
        cls = sigmoid_focal(logits[mask], targets.labels[mask].to(logits)).sum() / self.normaliser
        reg = self._regression(output, targets, positive) / self.normaliser
        lcf = logits.new_zeros(())
        if self.correspondence is not None:
            lcf = self.correspondence(output.visual, output.audio, output.masks[0])
        return Losses(cls + reg + self.correspondence_weight * lcf, cls, reg, lcf, count)

    @torch.no_grad()
    def _move_normaliser(self, count: Tensor) -> None:
        """Exponential mean of the number of positive points, counted as 1 at least."""
        self.normaliser.mul_(self.momentum).add_((1 - self.momentum) * count.clamp(min=1))

    def _regression(self, output: LoCoOutput, targets: Targets, positive: Tensor) -> Tensor:
        """Sum over the positive (point, class) pairs, or points when classes share offsets; 0 without any."""
        if not output.offsets:
            return output.logits[0].new_zeros(())
        offsets = torch.cat(output.offsets, 1)  # (B, N, 2C) or (B, N, 2)
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        if self.config.regression == "class":
            offsets = torch.unflatten(offsets, 2, (-1, 2))  # (B, N, C, 2)
        else:
            positive = positive.any(2)  # (B, N)
        return interval_loss(offsets[positive], targets.offsets[positive].to(offsets), self.config.reg_loss).sum()


def parameter_groups(*modules: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: decay on the weights of convolutions and linear maps alone (dave.md 2.8).

    Args:
        modules: network and loss.
        weight_decay: of the first group; the second (biases, norms, scales, sigma, tau) has none.
    """
    every = [m for module in modules for m in module.modules()]
    decayed = {id(m.weight) for m in every if isinstance(m, nn.Conv1d | nn.Linear)}
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
