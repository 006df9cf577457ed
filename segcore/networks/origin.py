"""What a new system starts from: a backbone with its initial weights, or a trained classifier."""

from dataclasses import dataclass

from segcore.config.networks import BackboneParams
from segcore.errors import Problem
from segcore.networks import backbones
from segcore.networks.classifiers import Classifier, FullyConnectedHead
from segcore.networks.pooled_head import PooledHead
from segcore.networks.trunk import Trunk


@dataclass(frozen=True)
class Origin:
    """The tags that a system is to find, its backbone, and the classifier that was trained on it, if there is one."""

    tags: list[str]
    """Names of the classes 1..L."""
    backbone: BackboneParams
    classifier: Classifier | None

    @property
    def n_tags(self) -> int:
        return len(self.tags)

    def trunk(self, stride: int) -> Trunk:
        """The trunk at a stride of 8, 16 or 32: a copy of the classifier's, or a new one with its initial weights.

        Raises:
            Problem: this network cannot be had at that stride, or its weights are missing.
        """
        if self.classifier is None:
            return backbones.build(self.backbone.model_copy(update={"stride": stride}))
        if stride == self.classifier.trunk.stride:
            return self.classifier.trunk
        return backbones.restride(self.backbone, self.classifier.trunk, stride)

    def fully_connected(self) -> Classifier:
        """The classifier, for a system that goes on from its layers fc6 and fc7.

        Raises:
            Problem: there is none, or it has no such layers.
        """
        if self.classifier is not None and isinstance(self.classifier.head, FullyConnectedHead):
            return self.classifier
        pooled = self.classifier is not None and isinstance(self.classifier.head, PooledHead)
        other = "its classifier has a pooled head" if pooled else "its classifier has a stochastic head"
        found = "starts from a backbone" if self.classifier is None else other
        raise Problem(
            f"this system goes on from the layers fc6 and fc7 of a classifier, but {found}; "
            "set its `start` to a classifier with head.kind: fully_connected"
        )
