"""Check `params.yaml` before any stage runs, and write what each stage is handed of it.

DVC clears the outputs of a stage before it runs it. All stages depend on what this command writes, so a mistake stops
it, and them, while nothing else was touched; and a stage runs again only when the values or the code that it uses have
changed (`segcore.sources`).

Writes `<data>/params/<stage>.json`, and `<data>/backbones/<name>/model/model.json` for systems to start from.
"""

import json
from pathlib import Path

from segcore.cli import command, console
from segcore.commands.outside_files import SCRATCH
from segcore.config import outside, plan
from segcore.files import write_atomically
from segcore.models.systems import save_backbone
from segcore.networks import sizes
from segcore.reporting.code_behind import roots
from segcore.sources import Code


def main(*, data: Path, params: Path = Path("params.yaml")) -> None:
    """Write the files of all stages into `data`, the data set's folder."""
    settings = command.settings(params)
    sizes.check(settings)
    if not console.is_main_process():
        return
    code = Code()
    for name, content in plan.files(settings):
        content["code"] = code.fingerprints(*roots(settings, name))
        # The lists of the split are chosen, and cues and saliency maps are checked, before anything is trained.
        read = {"split": [content, settings.given["pseudo_labels"]], "report": []}.get(name, [content])
        if sums := outside.sums(dict(enumerate(read)), settings.dataset.root, data, SCRATCH):
            content["files"] = sums
        file = data / f"params/{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    for name, backbone in plan.backbones(settings):
        sums = outside.sums({name: backbone.model_dump(mode="json")}, None, data, SCRATCH)
        save_backbone(data / f"backbones/{name}/model", name, backbone, sums)
    console.say(f"{params} is in order")


if __name__ == "__main__":
    command.start(main)
