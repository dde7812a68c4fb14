"""What networks on ten-segment clips minimise: CACE-Net's losses, and the targets that all of them share.

Sources: avel.md 5.1, 5.2 (CACE-Net).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from avtool.errors import UsageError
from avtool.models.cacenet import CACENetConfig, CACENetOutput

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
