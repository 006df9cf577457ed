"""From localisation maps and tags to labels of pixels (Lee et al. 2019, section 3.2)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from segcore.config.labels import Gradient, LabelsFromMaps, NoBackground
from segcore.data import saliency_maps
from segcore.data.geometry import Grid
from segcore.data.pictures import IGNORE
from segcore.errors import Problem
from segcore.localisation import background
from segcore.localisation.maps import localise
from segcore.localisation.mask_bank import MaskBank
from segcore.networks.classifiers import Classifier
from segcore.networks.stochastic_head import StochasticHead
from segcore.networks.vgg import VGG16


def classes_at(
    members: Bool[Tensor, "T h w"],
    means: Float[Tensor, "T h w"],
    tags: tuple[int, ...],
    background: Bool[Tensor, "h w"] | None = None,
) -> UInt8[Tensor, "h w"]:
    """The class of each place of one image.

    Of the tags (1..L) that a place is a member of, that with the greatest mean map (the first one named, if equal)
    wins; foreground wins over background; 255 where there is neither.
    """
    labels = torch.full(members.shape[1:], IGNORE, dtype=torch.uint8, device=members.device)
    if background is not None:
        labels[background] = 0
    if tags:
        winner = means.masked_fill(~members, -1).argmax(0)
        named = torch.tensor(tags, dtype=torch.uint8, device=members.device)[winner]
        labels = torch.where(members.any(0), named, labels)
    return labels


class PseudoLabeller:
    """Labels images at the cells of a classifier's top map from their tags (Lee et al. 2019, section 3.2).

    An image without tags gets its background cue only. `deterministic` maps are all the same, so that one is made.
    """

    def __init__(self, classifier: Classifier, params: LabelsFromMaps, seed: int, device: torch.device) -> None:
        """`classifier` must be on `device`; it is put into eval mode.

        Raises:
            Problem: its head is not a stochastic one; its cells do not lie where `geometry.Grid` has them.
        """
        if not isinstance(classifier.head, StochasticHead):
            raise Problem(
                f"{params.input}: a classifier with a pooled or fully connected head has no localisation maps of this "
                "kind; name one whose head is of kind: stochastic"
            )
        if isinstance(classifier.trunk, VGG16) and classifier.trunk.stride == 32:
            raise Problem(
                f"{params.input}: at backbone.stride 32 the cells of {classifier.backbone.name} lie between pixels, as "
                "its poolings of 2x2 have no centre; train a classifier of backbone.stride 8 or 16"
            )
        self.classifier = classifier.eval()
        self.head = classifier.head
        self.params = params
        self.seed = seed
        self.device = device
        self._bank: MaskBank | None = None

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "B 3 S S"], tags: Sequence[tuple[int, ...]], ids: Sequence[str] = ()
    ) -> UInt8[Tensor, "B h w"]:
        """Labels of images in 0..255: class indices, 255 where unknown; `tags` are those of each image, in 1..L.

        `ids` are needed for saliency maps only.

        Raises:
            Problem: a tag that the classifier does not know; an image without a saliency map.
        """
        return self.labels(*self.features(images, ids), tags)

    @torch.no_grad()
    def labels(
        self,
        top: Float[Tensor, "B K h w"],
        cues: Sequence[Bool[Tensor, "h w"] | None],
        tags: Sequence[tuple[int, ...]],
    ) -> UInt8[Tensor, "B h w"]:
        """The labels of images whose `features` are known."""
        params, n_tags = self.params, self.classifier.n_tags
        if unknown := sorted({tag for some in tags for tag in some if not 1 <= tag <= n_tags}):
            raise Problem(f"{params.input}: it knows the tags 1..{n_tags}, but an image has {unknown[0]}")
        image = torch.tensor([i for i, some in enumerate(tags) for _ in some], dtype=torch.int64, device=self.device)
        tag = torch.tensor([tag - 1 for some in tags for tag in some], dtype=torch.int64, device=self.device)
        with torch.autocast(self.device.type, enabled=False):  # thresholds deserve all digits
            members, means = localise(
                self.head, top.float(), image, tag, self._masks(top), params.selection, params.rate, params.form,
                params.theta, params.normalise,
            )  # fmt: skip
        labels, sizes = [], [len(some) for some in tags]
        for some, member, mean, cue in zip(tags, members.split(sizes), means.split(sizes), cues, strict=True):
            labels.append(classes_at(member, mean, some, cue))
        return torch.stack(labels)

    @torch.no_grad()
    def features(
        self, images: Float[Tensor, "B 3 S S"], ids: Sequence[str]
    ) -> tuple[Float[Tensor, "B K h w"], Sequence[Bool[Tensor, "h w"] | None]]:
        """The top map and the background cue of each image."""
        params = self.params
        if isinstance(params.background, Gradient):
            values, features = background.importance(self.classifier, images)
            return features.top, list(background.lowest(values, params.background.fraction))
        top: Tensor = self.classifier.trunk(images).top
        if isinstance(params.background, NoBackground):
            return top, [None] * len(images)
        files = [saliency_maps.file_of(Path(params.background.root).expanduser(), image_id) for image_id in ids]
        grid = Grid(images.shape[2], self.classifier.trunk.stride)
        cues = [background.saliency_cue(file, grid, params.background.threshold) for file in files]
        return top, [torch.from_numpy(cue).to(self.device) for cue in cues]

    def _masks(self, top: Float[Tensor, "B K h w"]) -> MaskBank:
        """The bank of the run; all images have one size."""
        params, grid = self.params, (top.shape[2], top.shape[3])
        if self._bank is None or self._bank.grid != grid:
            offsets = self.head.kernel**2
            passes, rate = (1, 0.0) if params.selection == "deterministic" else (params.passes, params.rate)
            units, centre = (top.shape[1], None) if params.selection == "general" else (offsets, offsets // 2)
            self._bank = MaskBank(self.seed, passes, grid, units, rate, centre).to(self.device)
        return self._bank
