"""What a system learned from, followed back through all that it was made of."""

from segcore import systems
from segcore.config.data import StrongList, StrongPerClass
from segcore.config.labels import LabelsFromFile, learns_from_masks
from segcore.config.reading import section
from segcore.config.settings import Settings
from segcore.config.systems import CLASSIFIERS, PSEUDO_LABELS, SEGMENTERS


def supervision(system: str, settings: Settings) -> tuple[int | str | None, bool]:
    """What a system learned from: masks (per class, `all` or `own list`; None where it saw none), and W's tags or not.

    Both are followed back through the models that it starts from and those that made its pseudo-labels.
    """
    behind = [system]
    sees_masks = sees_tags = False
    for name in behind:  # grows on the way
        entry = settings.systems[name]
        module = systems.load(entry.module)
        training = section({"systems": {name: entry.model_dump()}}, f"systems.{name}.training", module.Training)
        learns = module.supervision(training, entry.labels)
        sees_masks |= learns.masks
        makers = [entry.start]
        if entry.labels.startswith(PSEUDO_LABELS):
            labels = settings.pseudo_labels[entry.labels.removeprefix(PSEUDO_LABELS)]
            sees_tags |= labels.images == "weak"
            sees_masks |= learns_from_masks(labels)
            makers += [] if isinstance(labels, LabelsFromFile) else [labels.input]
        else:
            sees_tags |= learns.tags
        for kind, maker in (path.split("/") for path in makers):
            if kind == CLASSIFIERS:
                sees_tags |= settings.classifiers[maker].images == "weak"
            elif kind == SEGMENTERS and maker not in behind:
                behind.append(maker)
    return _masks(settings) if sees_masks else None, sees_tags


def _masks(settings: Settings) -> int | str:
    strong = settings.split.strong
    if isinstance(strong, StrongPerClass):
        return strong.images
    return "own list" if isinstance(strong, StrongList) else "all"
