"""The code behind a system's result, as one fingerprint: today's, and that which a result was made by.

`check_params` writes with each stage's parameters which files of code it comes from (`segcore.sources`). A result that
is kept for long remembers the fingerprint of all of them, from the data to the scores: parameters alone do not say
whether it is of the same code as its neighbour.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from segcore.config.labels import LabelsFromFile
from segcore.config.settings import Settings
from segcore.config.systems import CLASSIFIERS, CROPS, PSEUDO_LABELS, SEGMENTERS
from segcore.files import fingerprint
from segcore.reporting.reading import read_json
from segcore.sources import Code

OF_A_SYSTEM = ("train_segmenter", "evaluate")
"""The stages that load the module of a system.

Pseudo-labels from a segmenter load its module, too. They depend on the segmenter, and so run again when a change of its
module trains another one.
"""


def roots(settings: Settings, name: str) -> list[str]:
    """The files that the code of a stage, `<script>` or `<script>/<entry>`, is reached from."""
    script, _, entry = name.partition("/")
    found = [f"stages/{script}.py"]
    if script in OF_A_SYSTEM:
        system = settings.systems[entry]
        found.append(f"segcore/systems/{system.module}.py")
        found += [f"segcore/regularisers/{other}.py" for other in system.training.get("regularisers", {})]
    return found


def stages(settings: Settings, system: str) -> list[str]:
    """The stages behind a system's result, as `roots` takes them."""
    return ["prepare", "split", f"evaluate/{system}", *_behind(settings, f"{SEGMENTERS}/{system}")]


def _behind(settings: Settings, path: str) -> Iterator[str]:
    """Those behind what lies at `path` of a data set's folder; none behind a backbone or masks."""
    kind, _, name = path.partition("/")
    if kind == CROPS:
        yield "make_crops"
    elif kind == CLASSIFIERS:
        yield f"train_classifier/{name}"
    elif path.startswith(PSEUDO_LABELS):
        labels = settings.pseudo_labels[name]
        yield f"extract_pseudo_labels/{name}"
        yield from () if isinstance(labels, LabelsFromFile) else _behind(settings, labels.input)
    elif kind == SEGMENTERS:
        yield f"train_segmenter/{name}"
        for part in (settings.systems[name].start, settings.systems[name].labels):
            yield from _behind(settings, part)


def today(settings: Settings, system: str, code: Code) -> str:
    """The fingerprint of today's code behind a system's result."""
    behind = {root for stage in stages(settings, system) for root in roots(settings, stage)}
    return _of(code.fingerprints(*behind))


def recorded(data: Path, settings: Settings, system: str) -> str | None:
    """That of the code by which the result in `data`, a data set's folder, was made; None where it does not say."""
    found: dict[str, str] = {}
    for stage in stages(settings, system):
        code = read_json(data / "params" / f"{stage}.json").get("code")
        if not isinstance(code, dict):
            return None
        found |= code
    return _of(found)


def _of(files: Mapping[str, str]) -> str:
    return fingerprint(dict(sorted(files.items())), ())
