"""Finds tags in images by the maps of a classifier (Lee et al. 2019, section 3.2)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from segcore.config.labels import BackgroundParams, Gradient, MapsEntry, Saliency
from segcore.data import saliency_maps
from segcore.data.geometry import Grid
from segcore.errors import Problem
from segcore.localisation import background
from segcore.localisation.cells import cells_of
from segcore.localisation.deciding import Found
from segcore.localisation.maps import View, localise
from segcore.localisation.mask_bank import MaskBank
from segcore.networks.classifiers import Classifier
from segcore.networks.stochastic_head import StochasticHead
from segcore.networks.vgg import VGG16
from segcore.seeds import derived_seed


class PseudoLabeller:
    """Finds the tags of images at the cells of a classifier's top map (Lee et al. 2019, section 3.2).

    An image without tags gets its background cue only. `deterministic` maps are all the same, so that one is made.
    """

    def __init__(
        self,
        classifier: Classifier,
        params: MapsEntry,
        background: BackgroundParams | None,
        seed: int,
        device: torch.device,
        bins: bool = False,
        levels: bool = False,
    ) -> None:
        """`classifier` must be on `device`; it is put into eval mode.

        `bins` keeps what quantiles are read from, `levels` those of the trunk, for boundaries.

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
        self.background = background
        self.seed = seed
        self.device = device
        self.bins = bins
        self.levels = levels
        self._banks: dict[tuple[int, int, int], MaskBank] = {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the squares that each image is needed at: that of the grid first, then those of other views."""
        stride, base = self.classifier.trunk.stride, self.params.input_size
        wanted = [base if s == 1 else stride * max(1, round((base * s - 1) / stride)) + 1 for s in self._scales]
        return tuple(dict.fromkeys([base, *wanted]))

    @property
    def _scales(self) -> tuple[float, ...]:
        return self.params.views.scales

    @torch.no_grad()
    def __call__(
        self, images: Sequence[Float[Tensor, "B 3 _ _"]], tags: Sequence[tuple[int, ...]], ids: Sequence[str] = ()
    ) -> list[Found]:
        """What is found in images in 0..255, given at each of `sizes`; `tags` are those of each image, in 1..L.

        `ids` are needed for saliency maps only.

        Raises:
            Problem: a tag that the classifier does not know; an image without a saliency map.
        """
        levels, cues = self.features(images[0], ids)
        return self.found(self._looks(images, levels[-1]), cues, levels if self.levels else None, tags)

    @torch.no_grad()
    def found(
        self,
        views: Sequence[View],
        cues: Sequence[Bool[Tensor, "h w"] | None],
        levels: Sequence[Float[Tensor, "B _ _ _"]] | None,
        tags: Sequence[tuple[int, ...]],
    ) -> list[Found]:
        """What is found in images whose views are known."""
        params, n_tags = self.params, self.classifier.n_tags
        if unknown := sorted({tag for some in tags for tag in some if not 1 <= tag <= n_tags}):
            raise Problem(f"{params.input}: it knows the tags 1..{n_tags}, but an image has {unknown[0]}")
        image = torch.tensor([i for i, some in enumerate(tags) for _ in some], dtype=torch.int64, device=self.device)
        tag = torch.tensor([tag - 1 for some in tags for tag in some], dtype=torch.int64, device=self.device)
        with torch.autocast(self.device.type, enabled=False):  # thresholds deserve all digits
            maps = localise(
                self.head, views, image, tag, params.selection, params.rate, params.form, params.normalise, self.bins
            )
        found, first = [], 0
        for number, (some, cue) in enumerate(zip(tags, cues, strict=True)):
            own = None if levels is None else tuple(level[number] for level in levels)
            found.append(Found(some, maps.some(slice(first, first + len(some))), cue, own))
            first += len(some)
        return found

    @torch.no_grad()
    def features(
        self, images: Float[Tensor, "B 3 S S"], ids: Sequence[str]
    ) -> tuple[Sequence[Float[Tensor, "B _ _ _"]], Sequence[Bool[Tensor, "h w"] | None]]:
        """The levels of the trunk (the top map alone, where the gradient needs it so) and each image's cue."""
        how, nothing = self.background, [None] * len(images)
        if isinstance(how, Gradient):
            values, features = background.importance(self.classifier, images)
            levels = self.classifier.trunk(images).levels if self.levels else features.levels
            return levels, list(background.lowest(values, how.fraction))
        levels = self.classifier.trunk(images).levels
        if not isinstance(how, Saliency):
            return levels, nothing
        files = [saliency_maps.file_of(Path(how.root).expanduser(), image_id) for image_id in ids]
        grid = Grid(images.shape[2], self.classifier.trunk.stride)
        cues = [background.saliency_cue(file, grid, how.threshold) for file in files]
        return levels, [torch.from_numpy(cue).to(self.device) for cue in cues]

    def _looks(self, images: Sequence[Float[Tensor, "B 3 _ _"]], top: Float[Tensor, "B C h w"]) -> list[View]:
        """The views of a batch, the plain one first where it is among them."""
        squares = dict(zip(self.sizes, images, strict=True))
        grid = Grid(self.params.input_size, self.classifier.trunk.stride)
        wanted = [grid.size] if 1.0 in self._scales else []
        wanted += [size for size in self.sizes if size != grid.size]
        views = []
        for size in wanted:
            for mirrored in (False, True) if self.params.views.flip else (False,):
                if size == grid.size and not mirrored:
                    seen = top
                else:
                    seen = self.classifier.trunk(squares[size].flip(3) if mirrored else squares[size]).top
                views.append(self.view(seen, Grid(size, grid.stride), grid, mirrored))
        return views

    def view(self, top: Float[Tensor, "B C h w"], own: Grid, grid: Grid, mirrored: bool) -> View:
        """A look at the top map; the selections of the plain view are those of the run's seed alone."""
        plain = own == grid and not mirrored
        seed = self.seed if plain else derived_seed(self.seed, "view", own.size, int(mirrored))
        units = self.head.units(top.float())
        return View(units, self._bank(units, seed), cells_of(grid, own), cells_of(grid, own, mirrored))

    def _bank(self, units: Float[Tensor, "B K h w"], seed: int) -> MaskBank:
        """The bank of the run for a seed; all images have one size at a view."""
        params, key = self.params, (seed, units.shape[2], units.shape[3])
        if key not in self._banks:
            offsets = self.head.kernel**2
            passes, rate = (1, 0.0) if params.selection == "deterministic" else (params.passes, params.rate)
            kinds, centre = (units.shape[1], None) if params.selection == "general" else (offsets, offsets // 2)
            bank = MaskBank(seed, passes, (units.shape[2], units.shape[3]), kinds, rate, centre)
            self._banks[key] = bank.to(self.device)
        return self._banks[key]
