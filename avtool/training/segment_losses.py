"""What networks on ten-segment clips minimise: CACE-Net, CCLN, LoCo on segments, full and weak; cross-modal towers.

Sources: avel.md 5.1, 5.2 (CACE-Net), 9.2 (weak supervision, CCLN, CML: ours), dave.md 2.7 (LoCo).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from avtool.errors import UsageError
from avtool.models.cacenet import CACENetConfig, CACENetOutput
from avtool.models.ccln import CCLNConfig, CCLNOutput, View, over_time
from avtool.models.loco_segments import SegmentOutput
from avtool.models.segments import top_mean
from avtool.training.losses import Correspondence

NEVER = -1e30  # a logit that no softmax sees, and whose gradient is 0 rather than NaN


@dataclass(frozen=True)
class SegmentTargets:
    """What the segments of a batch are in truth.

    Attributes:
        events: (B, T) float, 1 where the segment is an event.
        classes: (B,) int64 event class of the clip.
    """

    events: Tensor
    classes: Tensor


def segment_targets(labels: Tensor) -> SegmentTargets:
    """Targets from one-hot segment labels as the data set has them (avel.md 5.1).

    Args:
        labels: (B, T, C + 1), background last; any number type.

    Raises:
        UsageError: the shape is another.
    """
    if labels.ndim != 3 or labels.shape[2] < 2:
        raise UsageError(f"labels have the shape {tuple(labels.shape)}", "(B, T, C + 1) is needed, background last")
    own = labels[..., :-1]
    # a background row gives 0, so the largest index is the class of the clip
    return SegmentTargets(own.amax(2).to(torch.get_default_dtype()), own.argmax(2).amax(1))


def labels_from_indices(indices: Tensor, classes: int) -> Tensor:
    """(B, T) class indices, `classes` for background -> one-hot (B, T, classes + 1), float."""
    return F.one_hot(indices.long(), classes + 1).to(torch.get_default_dtype())


def binary_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits over the valid entries, in float32 at least."""
    logits = _wide(logits)
    return F.binary_cross_entropy_with_logits(logits[mask], targets.to(logits)[mask])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class CACELosses:
    """The parts of CACE-Net's loss; each scalar keeps its graph.

    Attributes:
        total: their sum, `contrast` times its weight and only where it is switched on.
        event: of the event head, published as L_is_event.
        classification: of the class head, L_event_class.
        gate: of the cross-modal gate, L_is_gate.
        scores: of the single modalities' class scores, L_cas.
        contrast: of the contrastive branch.
    """

    total: Tensor
    event: Tensor
    classification: Tensor
    gate: Tensor
    scores: Tensor
    contrast: Tensor


def cace_loss(
    output: CACENetOutput, targets: SegmentTargets, config: CACENetConfig, *, contrast: bool = True
) -> CACELosses:
    """CACE-Net's loss (avel.md 5.2).

    Args:
        output: of the network.
        targets: see `segment_targets`.
        config: of the network.
        contrast: the published switch, off in the first eighth of the epochs.
    """
    y, mask = targets.events, output.mask
    event = binary_loss(output.events, y, mask)
    if config.gate_loss == "published":
        gate = binary_loss(output.gate, y, mask)  # a probability goes through a second sigmoid, as in the public code
    else:
        gate = F.binary_cross_entropy(_wide(output.gate)[mask], y.to(_wide(output.gate))[mask])
    classification = F.cross_entropy(_wide(output.classes), targets.classes)
    scores = F.cross_entropy(_wide(output.scores), targets.classes)
    contrastive = event_contrast(output.query, output.key, y, mask, config.tau)
    total = event + classification + gate + scores
    if contrast and config.contrast:
        total = total + config.contrast_weight * contrastive
    return CACELosses(total, event, classification, gate, scores, contrastive)


def event_contrast(query: Tensor, key: Tensor, events: Tensor, mask: Tensor, tau: float = 0.01) -> Tensor:
    """Background-event contrast of every clip's segments and their noisy copies (avel.md 5.2, L_con).

    Positives of an event segment are all other event vectors of its clip, of a background segment its own copy; the
    denominator holds every other vector of the clip. The average over positives stands inside the logarithm, which
    adds log |K| to an anchor. Written with logsumexp: at tau 0.01 the exponentials overflow float32.

    Args:
        query: (B, T, d) unit vectors.
        key: (B, T, d) of the noisy copies.
        events: (B, T), above 0.5 where the segment is an event.
        mask: (B, T) valid segments.
        tau: temperature.

    Returns:
        Scalar, the mean over the anchors of all clips.
    """
    z = _wide(torch.cat((query, key), 1))  # (B, 2T, d)
    valid, event = torch.cat((mask, mask), 1), torch.cat((events, events), 1) > 0.5  # (B, 2T)
    logits = z @ z.transpose(1, 2) / tau
    rows = torch.arange(z.shape[1], device=z.device)
    others = valid[:, None] & (rows != rows[:, None])  # (B, 2T, 2T)
    copies = (rows - rows[:, None]).abs() == query.shape[1]
    positive = torch.where(event[..., None], event[:, None], copies) & others
    near = logits.masked_fill(~positive, NEVER).logsumexp(2)
    every = logits.masked_fill(~others, NEVER).logsumexp(2)
    loss = every - near + positive.sum(2).clamp(min=1).to(logits).log()
    return loss[valid].mean()


# ---- weak supervision, shared by CCLN and LoCo (avel.md 9.2, "Weak") ---------------------------------------

MIL_SEGMENTS = 3  # the likeliest events of a clip, whose mean says whether it has one


def mil_loss(
    events: Tensor, clip_logits: Tensor, classes: Tensor, mask: Tensor, count: int = MIL_SEGMENTS
) -> tuple[Tensor, Tensor]:
    """Multiple-instance loss: clip labels alone, no segment label reaches it.

    Args:
        events: (B, T) probabilities of an event.
        clip_logits: (B, C + 1), see `avtool.models.ccln.over_time`.
        classes: (B,) class of the clip; C for a clip of background alone.
        mask: (B, T).
        count: how many of the likeliest segments stand for the clip.

    Returns:
        Cross-entropy of the class, and binary cross-entropy of "this clip has an event".
    """
    wide = _wide(events)
    clip = top_mean(wide[..., None], mask, count)[:, 0].clamp(1e-6, 1 - 1e-6)
    has_event = (classes < clip_logits.shape[1] - 1).to(clip)
    return F.cross_entropy(_wide(clip_logits), classes), F.binary_cross_entropy(clip, has_event)


def loco_segment_loss(
    output: SegmentOutput,
    targets: SegmentTargets,
    correspondence: Correspondence | None = None,
    weight: float = 0.1,
) -> Tensor:
    """LoCo's loss on segment labels (dave.md 2.7): cross-entropy, or the MIL loss for a weak network, plus LCF.

    Args:
        output: of `LoCoSegments`.
        targets: see `segment_targets`; a weak network's loss reads `classes` alone.
        correspondence: the LCF module of `avtool.training.losses`, or None.
        weight: of LCF.
    """
    if output.weak:
        probability = output.events()
        clip = over_time(probability, output.logits, output.mask)
        loss = sum(mil_loss(probability, clip, targets.classes, output.mask), output.logits.new_zeros(()))
    else:
        own = targets.classes[:, None].expand_as(output.mask)
        labels = torch.where(targets.events > 0.5, own, output.background)
        loss = F.cross_entropy(_wide(output.logits)[output.mask], labels[output.mask])
    if correspondence is not None:
        loss = loss + weight * correspondence(output.visual, output.audio, output.mask)
    return loss


# ---- CCLN (avel.md 9.2) ------------------------------------------------------------------------------------

APART, STEP_APART = 0.0, 0.2  # m1 and m2 of FEE
HARD = 0.5  # temperature of its weights
EARLY_WEIGHT = 0.5  # of the pre-score


@dataclass(frozen=True)
class CCLNLosses:
    """The parts of the CCLN-style loss; each scalar keeps its graph, 0 where a part is switched off.

    Attributes:
        total: weighted sum.
        event, classification: of the backbone (weak: "has an event" and the class of the clip).
        early: of FEE's pre-score (full supervision alone).
        branch: sum of the branch's two terms.
        fee: separation of events and scene.
        wccl: contrast by video labels.
    """

    total: Tensor
    event: Tensor
    classification: Tensor
    early: Tensor
    branch: Tensor
    fee: Tensor
    wccl: Tensor


def ccln_loss(
    output: CCLNOutput,
    targets: SegmentTargets,
    config: CCLNConfig,
    *,
    fee: bool = True,
    memory: VideoMemory | None = None,
) -> CCLNLosses:
    """The CCLN-style loss (avel.md 9.2, ours).

    Args:
        output: of the network.
        targets: see `segment_targets`; weak supervision reads `classes` alone, where C means background throughout.
        config: of the network.
        fee: whether FEE's separation counts yet; weak supervision starts it after a quarter of the epochs.
        memory: recent video embeddings for WCCL, for batches below 64.
    """
    weak = config.supervision == "weak"
    event, classification = _view_loss(output.main, output, targets, weak)
    zero = event.new_zeros(())
    early = binary_loss(output.early, targets.events, output.mask) if output.early is not None and not weak else zero
    branch = sum(_view_loss(output.branch, output, targets, weak), zero) if output.branch is not None else zero
    apart = zero
    if fee and output.boundary is not None:
        truth = (output.main.events.detach() > 0).to(event) if weak else targets.events
        apart = fee_loss(output.boundary, truth, output.mask)
    contrast = wccl_loss(output.pooled, targets.classes, config.tau, memory) if output.pooled else zero
    total = event + classification + EARLY_WEIGHT * early + config.branch_weight * branch
    total = total + config.fee_weight * apart + config.wccl_weight * contrast
    return CCLNLosses(total, event, classification, early, branch, apart, contrast)


def _view_loss(view: View, output: CCLNOutput, targets: SegmentTargets, weak: bool) -> tuple[Tensor, Tensor]:
    """Event term and class term of one branch."""
    if weak:
        classification, event = mil_loss(view.events.sigmoid(), view.classes, targets.classes, output.mask)
        return event, classification
    return binary_loss(view.events, targets.events, output.mask), F.cross_entropy(_wide(view.classes), targets.classes)


def fee_loss(vectors: Tensor, events: Tensor, mask: Tensor) -> Tensor:
    """Separates event and scene segments of each clip, hard ones most, and keeps an event together.

    Args:
        vectors: (B, T, d) unit vectors.
        events: (B, T), above 0.5 where the segment is an event.
        mask: (B, T).

    Returns:
        Mean over the clips that have both kinds; 0 if none has.
    """
    u, event = _wide(vectors), (events > 0.5) & mask
    scene = ~event & mask
    both = event.any(1) & scene.any(1)
    if not bool(both.any()):
        return u.sum() * 0
    apart = F.relu((_hard_mean(u, event) * _hard_mean(u, scene)).sum(2)[:, 0] - APART)
    near = (u[:, 1:] * u[:, :-1]).sum(2)  # (B, T - 1) cosines of neighbours
    pair = mask[:, 1:] & mask[:, :-1]
    change, inside = pair & (event[:, 1:] != event[:, :-1]), pair & event[:, 1:] & event[:, :-1]
    steps = torch.where(change, F.relu(near - STEP_APART), torch.where(inside, 1 - near, 0))
    steps = steps.sum(1) / (change | inside).sum(1).clamp(min=1)
    return (apart + steps)[both].mean()


def _hard_mean(u: Tensor, chosen: Tensor) -> Tensor:
    """(B, 1, d) unit mean of the chosen rows of u (B, T, d), those far from their plain mean weighing more."""
    plain = F.normalize((u * chosen[..., None]).sum(1, keepdim=True), dim=2)
    distance = 1 - (u * plain).sum(2)
    weight = (distance / HARD).masked_fill(~chosen, NEVER).softmax(1).detach() * chosen
    return F.normalize((weight[..., None] * u).sum(1, keepdim=True), dim=2)


class VideoMemory:
    """The last video embeddings by stream, so that small batches have partners of the same class.

    Args:
        size: embeddings kept of each stream.
    """

    def __init__(self, size: int = 256) -> None:
        self.size = size
        self.vectors: dict[str, Tensor] = {}
        self.classes: Tensor | None = None

    def add(self, pooled: Mapping[str, Tensor], classes: Tensor) -> None:
        """Keeps a batch, detached; the oldest go."""
        for name, vectors in pooled.items():
            kept = self.vectors.get(name, vectors.detach()[:0])
            self.vectors[name] = torch.cat((kept, vectors.detach()))[-self.size :]
        kept = classes[:0] if self.classes is None else self.classes
        self.classes = torch.cat((kept, classes))[-self.size :]


def wccl_loss(pooled: Mapping[str, Tensor], classes: Tensor, tau: float, memory: VideoMemory | None = None) -> Tensor:
    """Contrast by video labels between backbone and branch, and between picture and sound.

    Args:
        pooled: of `CCLNOutput`: stream -> (B, d) unit vectors.
        classes: (B,) class of each clip.
        tau: temperature.
        memory: earlier clips as further partners; it is read, then given this batch.
    """
    loss = classes.new_zeros((), dtype=torch.get_default_dtype())
    for first, second in (("main", "branch"), ("visual", "audio")):
        if first in pooled and second in pooled:
            for anchor, other in ((first, second), (second, first)):
                keys, labels = pooled[other], classes
                if memory is not None and memory.classes is not None:
                    keys, labels = torch.cat((keys, memory.vectors[other])), torch.cat((classes, memory.classes))
                loss = loss + 0.5 * class_contrast(pooled[anchor], keys, classes, labels, tau)
    if memory is not None:
        memory.add(pooled, classes)
    return loss


def class_contrast(anchors: Tensor, keys: Tensor, anchor_classes: Tensor, key_classes: Tensor, tau: float) -> Tensor:
    """Supervised contrast: the mean over anchors of the mean over keys of their class of -log softmax(similarity).

    Args:
        anchors: (B, d) unit vectors.
        keys: (K, d) unit vectors, the first B of the same clips as the anchors.
        anchor_classes: (B,).
        key_classes: (K,).
        tau: temperature.
    """
    scores = (_wide(anchors) @ _wide(keys).T / tau).log_softmax(1)  # (B, K)
    same = (anchor_classes[:, None] == key_classes).to(scores)
    return -((same * scores).sum(1) / same.sum(1)).mean()


# ---- cross-modality localization (avel.md 9.2, "CML") ------------------------------------------------------

CML_MARGIN, CML_TAU = 1.0, 0.1


def tower_loss(visual: Tensor, audio: Tensor, events: Tensor, classes: Tensor) -> Tensor:
    """Loss of per-segment towers: margin contrast, InfoNCE over the seconds of a clip, and contrast by class.

    Args:
        visual, audio: (B, T, d) unit vectors of the towers.
        events: (B, T), above 0.5 where the segment is an event.
        classes: (B,).
    """
    v, a, event = _wide(visual), _wide(audio), events > 0.5
    distance = 1 - (v * a).sum(2)
    margin = torch.where(event, distance**2, F.relu(CML_MARGIN - distance) ** 2).mean()
    return margin + _seconds_contrast(v, a, event) + _mean_event_contrast(v, a, event, classes)


def _seconds_contrast(v: Tensor, a: Tensor, event: Tensor) -> Tensor:
    """Symmetric InfoNCE over the seconds of each clip; an event second does not compete with its clip's other ones."""
    scores = v @ a.transpose(1, 2) / CML_TAU  # (B, T, T)
    own = torch.eye(v.shape[1], dtype=torch.bool, device=v.device)
    scores = scores.masked_fill(event[:, :, None] & event[:, None] & ~own, NEVER)
    both = [part.log_softmax(2).diagonal(dim1=1, dim2=2).mean() for part in (scores, scores.transpose(1, 2))]
    return -(both[0] + both[1]) / 2


def _mean_event_contrast(v: Tensor, a: Tensor, event: Tensor, classes: Tensor) -> Tensor:
    """The tower term of WCCL on the mean embedding of the event segments; clips without any are left out."""
    has = event.any(1)
    if not bool(has.any()):
        return v.sum() * 0
    means = {name: F.normalize((x * event[..., None]).sum(1)[has], dim=1) for name, x in (("visual", v), ("audio", a))}
    return wccl_loss(means, classes[has], CML_TAU)
