"""A finished system that predicts as its project says: `segcore.load`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from segcore.config.data import EdgeParams
from segcore.config.reading import section
from segcore.config.section import Section, Views
from segcore.data.pictures import read_image, to_rgb
from segcore.errors import Problem
from segcore.evaluation import inference
from segcore.evaluation.score_maps import Enlarged, ScoreMaps
from segcore.files import fingerprint
from segcore.models.cards import read_card
from segcore.models.systems import load_system
from segcore.prediction import tiles as tiling
from segcore.prediction.tiles import Tiles
from segcore.systems.contract import System

Picture = str | Path | Image.Image | UInt8[np.ndarray, "H W 3"]
Pixels = UInt8[np.ndarray, "_ _ 3"]
Labels = UInt8[np.ndarray, "H W"]

ROUNDING = 2
"""Raised where the same weights come to round otherwise, so that no run goes on from one that rounded as before."""

HOW = "prediction.json"
"""Beside a model that was taken out of its project: how it predicts."""


class _Edges(Section):
    """The part of a file of `check_params` that a system with proposals needs."""

    edges: EdgeParams | None


@dataclass(frozen=True)
class Predicted:
    """What a model says of a picture with K classes, the background first."""

    labels: Labels
    """The class of each pixel, at the picture's own size."""
    shares: Float[np.ndarray, " K"]
    """Of the pixels, those of each class; they sum to 1."""
    probabilities: Float[np.ndarray, " K"]
    """Of each class, the greatest of a grid of pixels: low where the picture shows nothing of it."""
    confidence: UInt8[np.ndarray, "H W"] | None
    """The probability of each pixel's class, 255 being 1; None where nobody asked for it."""


class Model:
    """A finished segmenter.

    Attributes:
        classes: the names of the classes, `background` first; a label is an index of it.
        views: the sizes at which pictures are predicted, and whether mirrored, too.
        tiles: the windows in which larger pictures are predicted; None predicts every picture whole.
    """

    def __init__(self, system: System, card: dict[str, Any], how: dict[str, Any]) -> None:
        self.system, self.card = system, card
        self.name: str = card["name"]
        self.classes: tuple[str, ...] = ("background", *card["tags"])
        self.views: Views = system.prediction.views
        self.tiles: Tiles | None = None
        self._edges = section({"how": {"edges": how.get("edges")}}, "how", _Edges).edges
        self._how = how

    @property
    def device(self) -> torch.device:
        return next(self.system.parameters()).device

    def fingerprint(self, weights: Path) -> str:
        """A short name for the weights and for how they are used: equal only for equal predictions."""
        how = self._how["prediction"], self.views.model_dump(mode="json")
        return fingerprint([self.card, *how, ROUNDING], [weights])

    def predict(self, picture: Picture) -> Labels:
        """The class of each pixel of a picture, at its own size as a person sees it (turned by its EXIF orientation).

        Args:
            picture: a file, a Pillow image, or an array (height, width, 3) of RGB in 0..255.

        Raises:
            Problem: the file cannot be read.
        """
        return self.predict_all([as_array(picture)])[0].labels

    def predict_all(
        self,
        pictures: Sequence[Pixels],
        allowed: Sequence[Sequence[int] | None] | None = None,
        confidence: bool = False,
    ) -> list[Predicted]:
        """What the model says of some pictures, predicted together.

        Args:
            allowed: for each picture the classes 1..L that it may show, or None for all.
        """
        limits = allowed or [None] * len(pictures)
        whole = [place for place, picture in enumerate(pictures) if self.fits(*picture.shape[:2])]
        maps = dict(zip(whole, self.scores([pictures[place] for place in whole]) if whole else (), strict=True))
        return [
            self.said(maps[place], picture, limit, confidence)
            if place in maps
            else self.said_in_windows(picture, limit, confidence, len(pictures))
            for place, (picture, limit) in enumerate(zip(pictures, limits, strict=True))
        ]

    def scores(self, pictures: Sequence[Pixels]) -> list[ScoreMaps]:
        """What the network says of pictures, for `said`."""
        return list(inference.score_maps(self.system, pictures, self.card["input_size"], self.views, self._edges))

    def squares(self, picture: Pixels) -> inference.Squares | None:
        """The picture as the network takes it, which any thread may ask for; None if it is predicted by proposals."""
        if self.system.proposals:
            return None
        return inference.squares_of(self.system, picture, self.card["input_size"], self.views.scales)

    def scores_of(self, squares: Sequence[inference.Squares]) -> list[ScoreMaps]:
        """The same as `scores`, of what `squares` made of the pictures."""
        return [*inference.maps_of(self.system, squares, self.views.flip)]

    def check(self) -> None:
        """See that the system takes pictures at the views.

        Raises:
            Problem: a scale makes images too small for the system.
        """
        if not self.system.proposals:
            inference.sizes_of(self.system, self.card["input_size"], self.views.scales)

    def in_windows(self, tiles: Tiles) -> None:
        """Predict pictures that are larger than a window in windows from now on.

        Raises:
            Problem: the system refines its scores by a CRF, or predicts by proposals, which want the whole picture.
        """
        for wants, name in (
            (self.system.prediction.crf is not None, "a CRF"),
            (self.system.proposals > 0, "proposals"),
        ):
            if wants:
                raise Problem(
                    f"--tile: '{self.name}' predicts with {name}, which wants whole pictures; leave --tile out"
                )
        self.tiles = tiles

    def fits(self, height: int, width: int) -> bool:
        """Whether a picture of that size is predicted whole, and not in windows."""
        return self.tiles is None or self.tiles.fits(height, width)

    @torch.no_grad()
    def said(
        self, scores: ScoreMaps, picture: Pixels | None, allowed: Sequence[int] | None, confidence: bool
    ) -> Predicted:
        """What these scores mean; it may be asked by another thread while the network goes on.

        The `picture` is asked for by a CRF alone.
        """
        crf = self.system.prediction.crf
        if scores.small and (crf is not None or confidence):
            scores = Enlarged(scores.whole())  # once for all that follows
        if allowed is not None:
            labels = inference.restricted(self.system, scores, [0, *allowed], picture, crf)
        elif crf is not None:
            assert picture is not None
            labels = inference.refined(self.system, scores, picture, crf)
        else:
            labels = scores.winners()
        sure = self._sure(scores, labels) if confidence else None
        some = inference.probabilities(self.system, scores)
        counts = counted(labels, len(self.classes))
        return Predicted(labels, counts / labels.size, some, sure)

    @torch.no_grad()
    def said_in_windows(
        self, picture: Pixels, allowed: Sequence[int] | None, confidence: bool, batch_size: int
    ) -> Predicted:
        """What the model says of a picture that does not fit into one of its `tiles`."""
        if self.tiles is None:
            raise ValueError("no windows were asked for")
        among = None if allowed is None else [0, *allowed]
        step = max(1, min(picture.shape[:2]) // inference.SAMPLES)
        # Of the whole picture from the start: pieces that are kept between large ones that go scatter the memory.
        whole = np.zeros(picture.shape[:2], dtype=np.uint8)
        sure = np.zeros_like(whole) if confidence else None
        counts = np.zeros(len(self.classes), dtype=np.int64)
        most = np.zeros(len(self.classes), dtype=np.float32)
        given = self.tiles, self.card["input_size"], self.views, batch_size
        for rows, columns, scores in tiling.blocks(self.system, picture, *given):
            block, place = Enlarged(scores), (rows, columns)
            whole[place] = block.winners(among)
            if sure is not None:
                sure[place] = self._sure(block, whole[place])
            counts += counted(whole[place], len(self.classes))
            sampled = scores[None, :, ::step, -columns.start % step :: step]
            if sampled.numel():
                some = self.system.probabilities(sampled)[0].flatten(1).amax(1)
                most = np.maximum(most, some.cpu().numpy())
        return Predicted(whole, counts / whole.size, most, sure)

    def _sure(self, scores: ScoreMaps, labels: Labels) -> UInt8[np.ndarray, "H W"]:
        """The probability of each pixel's class, 255 being 1."""
        probabilities = self.system.probabilities(scores.whole()[None])[0]
        index = torch.from_numpy(labels.astype(np.int64)).to(probabilities.device)
        return (probabilities.gather(0, index[None])[0] * 255).round().to(torch.uint8).cpu().numpy()


def counted(labels: Labels, classes: int) -> Int64[np.ndarray, " K"]:
    """How many pixels each class has; by Pillow, as numpy's count would hold each label in 8 bytes."""
    return np.array(Image.fromarray(labels).histogram()[:classes], dtype=np.int64)


def as_array(picture: Picture) -> UInt8[np.ndarray, "H W 3"]:
    """A picture as the networks take it.

    Raises:
        Problem: the file cannot be read.
    """
    if isinstance(picture, (str, Path)):
        return read_image(Path(picture))
    return np.asarray(to_rgb(picture)) if isinstance(picture, Image.Image) else picture


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    how: str | Path | None = None,
    as_trained: bool = False,
) -> Model:
    """A finished segmenter, ready to predict.

    Args:
        path: the folder that training wrote, `data/<data set>/segmenters/<system>`, or the `model/` in it.
        device: where it runs; a GPU if there is one.
        how: a JSON file with the key `prediction`; otherwise `prediction.json` beside the model, or what
            `check_params` wrote in the project that trained it.
        as_trained: keep the network's layers as they were trained, instead of fusing what predicts faster as one.

    Raises:
        Problem: no model there, or nothing says how it predicts.
    """
    folder = model_folder(Path(path))
    card = read_card(folder, "system")
    content = _how(folder, card["name"], None if how is None else Path(how))
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    system, card = load_system(folder, content["prediction"], target, as_trained)
    return Model(system, card, content)


def model_folder(path: Path) -> Path:
    """Where the card of a model lies, in a folder or in the `model/` below it."""
    return path / "model" if not (path / "model.json").is_file() and (path / "model").is_dir() else path


def _how(folder: Path, name: str, given: Path | None) -> dict[str, Any]:
    place = folder.absolute()
    beside, project = place / HOW, place.parents[2] / "params" / "evaluate" / f"{name}.json"
    file = given or next((file for file in (beside, project) if file.is_file()), None)
    if file is None:
        raise Problem(
            f"{folder}: nothing says how '{name}' predicts; looked for {beside} and {project}; run `check_params` in "
            'its project, or give a JSON file that holds {"prediction": {...}} as params.yaml has it, resolved'
        )
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise Problem(f"{file} cannot be read as JSON ({error})") from error
    if not (isinstance(content, dict) and isinstance(content.get("prediction"), dict)):
        raise Problem(f"{file}: it must hold the key 'prediction' with a system's prediction")
    return content
