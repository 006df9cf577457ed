"""Strong views of pictures: other colours, blur, and boxes with a piece of another picture (CutMix).

As in UniMatch (Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation", CVPR
2023, and version 2, 2024), on the device where the network is. Everything is a function of a seed for each picture.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

AREA = (0.02, 0.4)
"""Least and greatest share of the square that a box covers, as published."""
RATIO = (0.3, 1 / 0.3)
"""Of a box's height to its width, as published."""
SIGMA = (0.1, 2.0)
"""Of the blur, in pixels, as published."""


@dataclass(frozen=True)
class StrongViews:
    """How strong views are made.

    Attributes:
        jitter: brightness, contrast and saturation are multiplied by factors from 1 - jitter to 1 + jitter, the hue is
            turned by up to half of it; published 0.5.
        jitter_share: share of the views that it changes; published 0.8.
        grey: share of the views without colours; published 0.2.
        blur: share of the blurred views; published 0.5.
        cutmix: share of the views with a box; published 0.5.
    """

    jitter: float
    jitter_share: float
    grey: float
    blur: float
    cutmix: float

    def changed(self, image: Float[Tensor, "3 H W"], seed: int) -> Float[Tensor, "3 H W"]:
        """One picture in 0..255 with other colours, maybe blurred."""
        # Here, as its import takes longer than checking all parameters, for which every system's module is loaded.
        from torchvision.transforms.v2 import functional as colours

        rng = np.random.default_rng(seed)
        # All is drawn whether it is used or not: what one share decides has no part in the rest.
        takes = rng.random(3) < (self.jitter_share, self.grey, self.blur)
        brightness, contrast, saturation = rng.uniform(max(0.0, 1 - self.jitter), 1 + self.jitter, 3).tolist()
        hue = float(rng.uniform(-self.jitter / 2, self.jitter / 2))
        sigma = float(rng.uniform(*SIGMA))
        image = image / 255
        if takes[0]:
            image = colours.adjust_contrast(colours.adjust_brightness(image, brightness), contrast)
            image = colours.adjust_hue(colours.adjust_saturation(image, saturation), hue)
        if takes[1]:
            image = colours.rgb_to_grayscale(image, num_output_channels=3)
        if takes[2]:
            side = 2 * int(np.ceil(3 * sigma)) + 1
            image = colours.gaussian_blur(image, [side, side], [sigma, sigma])
        return image.clamp(0, 1) * 255

    def box(self, height: int, width: int, seed: int) -> Bool[Tensor, "H W"]:
        """Where a picture of that size shows another one: a box, or nothing."""
        rng = np.random.default_rng(seed)
        there = torch.zeros(height, width, dtype=torch.bool)
        taken = rng.random() < self.cutmix
        area, ratio = rng.uniform(*AREA) * height * width, rng.uniform(*RATIO)
        rows, columns = min(height, round((area * ratio) ** 0.5)), min(width, round((area / ratio) ** 0.5))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        if taken:
            there[top : top + rows, left : left + columns] = True
        return there


def pasted(below: Tensor, above: Tensor, boxes: Bool[Tensor, "B H W"]) -> Tensor:
    """Pictures (B 3 H W) or labels (B H W) that show others inside of boxes."""
    return torch.where(boxes if below.ndim == 3 else boxes[:, None], above, below)
