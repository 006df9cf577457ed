"""What `benchmarks.next_frozen` chooses images by: `segcore next`'s own rule, parts of it, chance, and the truth."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks.next_parts.frozen_cells import Linear, Looked
from segcore.acquisition.choice import Candidate, Cost, Known, choose
from segcore.acquisition.looking import uncertainty
from segcore.data.manifest import Record
from segcore.data.pictures import IGNORE
from segcore.seeds import derived_seed

COST = Cost(20.0, 239.7)
ARMS = {
    "next": "as the command chooses: entropy, rarity, distance",
    "random": "",
    "entropy, rarity": "",
    "rarity, distance": "",
    "rarity": "",
    "entropy, distance": "the command until now",
    "entropy": "",
    "distance": "greedy k-centre",
    "loss, rarity, distance": "what is expected of the loss within the tags, in place of the entropy",
    "truth, rarity": "the true loss in place of the entropy",
    "truth": "",
}
"""What is multiplied, and what it is."""


@dataclass(frozen=True)
class Start:
    """Images that may be chosen from, some of which have masks, and a layer that learned from these."""

    data: Looked
    wanting: list[Record]
    known: list[Record]
    layer: Linear
    seed: int

    def chosen(self, arm: str, seconds: float) -> list[str]:
        """Ids, as many as the budget pays for."""
        if arm == "random":
            order = sorted(self.wanting, key=lambda record: derived_seed("next", self.seed, record.image_id))
            return [record.image_id for record in order][: int(seconds / COST.of("masks", True) + 1e-9)]
        parts = {*("entropy, rarity, distance" if arm == "next" else arm).split(", ")}
        alone = next(iter(parts & {"entropy", "loss", "truth"}), None)
        unsure = getattr(self, alone) if alone else self._as_drawn()
        rarity, distance = "rarity" in parts, "distance" in parts
        candidates = [
            Candidate(r.image_id, one, COST.of("masks", True), self._at(r, distance), r.tags if rarity else ())
            for r, one in zip(self.wanting, unsure, strict=True)
        ]
        known = [Known((r.label_classes or ()) if rarity else (), self._at(r, distance)) for r in self.known]
        return [one.candidate.image_id for one in choose(candidates, known, seconds)]

    def _at(self, record: Record, matters: bool) -> Float[np.ndarray, " C"]:
        """The mean of the image's cells, or what is as far from everything."""
        features = self._means[self.data.place[record.image_id]]
        return features if matters else np.zeros_like(features)

    @cached_property
    def _means(self) -> Float[np.ndarray, "N C"]:
        return self.data.means().numpy()

    def _as_drawn(self) -> list[float]:
        """Nothing but who comes first among equals."""
        return (1 + 1e-6 * np.random.default_rng(derived_seed("equals", self.seed)).random(len(self.wanting))).tolist()

    @cached_property
    def entropy(self) -> list[float]:
        return [uncertainty(self._probabilities(record), [0, *record.tags]) for record in self.wanting]

    @cached_property
    def loss(self) -> list[float]:
        """1 - exp(-loss), the truth being one of the tags as often as the layer has it among them."""
        found = []
        for record in self.wanting:
            q = self._probabilities(record)[[0, *record.tags]].clamp(min=1e-8)
            found.append(1 - float(np.exp(float((q / q.sum(0) * q.log()).sum(0).mean()))))
        return found

    @cached_property
    def truth(self) -> list[float]:
        found = []
        for record in self.wanting:
            at = self.data.place[record.image_id]
            loss = F.cross_entropy(self.layer(self.data.cells[at]), self.data.labels[at], ignore_index=IGNORE)
            found.append(1 - float(np.exp(-float(loss))))
        return found

    def _probabilities(self, record: Record) -> Float[Tensor, "K P"]:
        at = self.data.place[record.image_id]
        return self.layer(self.data.cells[at][self.data.inside[at]]).softmax(1).T
