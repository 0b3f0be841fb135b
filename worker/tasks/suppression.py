"""Of boxes that overlap, the best."""

import torch


def best_boxes(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    """The places of the boxes that are left, best first, when each removes the worse ones that overlap it too much.

    Non-maximum suppression, as torchvision's `nms` does it. `boxes` are [n, 4]: left, top, right, bottom; `scores`
    [n]; a box goes if its intersection over union with a better one that stays is above `threshold`.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = torch.ones(len(boxes), dtype=torch.bool)
    kept = []
    for place in range(len(boxes)):
        if not left[place]:
            continue
        kept.append(int(order[place]))
        corner = torch.maximum(boxes[place, :2], boxes[place + 1 :, :2])
        sides = (torch.minimum(boxes[place, 2:], boxes[place + 1 :, 2:]) - corner).clamp(min=0)
        common = sides[:, 0] * sides[:, 1]
        # Two empty boxes have no union: they do not overlap.
        left[place + 1 :] &= ~(common / (areas[place] + areas[place + 1 :] - common) > threshold)
    return kept
