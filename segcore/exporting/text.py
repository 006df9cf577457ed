"""The card of an exported model for people."""

from typing import Any


def markdown(card: dict[str, Any]) -> str:
    """`README.md`, of what `card.json` holds."""
    lines = [f"# {card['name']}", "", f"A segmenter (`{card['module']}`), exported as `{card['file']}`.", ""]
    lines += ["| | name | type | shape | |", "| --- | --- | --- | --- | --- |"]
    for what in ("input", "output"):
        one = card[what]
        shape = " x ".join(map(str, one["shape"]))
        lines.append(f"| {what} | `{one['name']}` | {one['dtype']} | {shape} | {one['about']} |")
    lines += ["", "Classes: " + ", ".join(f"{i} {name}" for i, name in enumerate(card["classes"])) + "."]
    lines += ["", "## Checked", "", *_checked(card)]
    lines += ["", "## Made of", "", *_made_of(card)]
    lines += ["", "## Limits", "", *(f"- {limit}" for limit in card["limits"])]
    lines += ["", "Written by " + ", ".join(f"{name} {version}" for name, version in card["versions"].items()) + "."]
    return "\n".join(lines) + "\n"


def _checked(card: dict[str, Any]) -> list[str]:
    checked, loss = card["checked"], card["int8"]
    scores = "" if checked["scores"] is None else f", and scores within {checked['scores']:.1e}"
    if checked["rounding"] is not None:
        scores += f" (the model's own differ by {checked['rounding']:.1e} between single and double precision)"
    lines = [
        f"Against the model that it was made of, on {checked['pictures']} pictures, at {', '.join(checked['sizes'])}: "
        f"the same class at {checked['same_labels']:.4%} of the pixels{scores}. One input took "
        f"{checked['milliseconds']} ms on the machine of the export, in torch {checked['torch_milliseconds']} ms."
    ]
    if loss is not None:
        lines += [
            "",
            f"With 8-bit weights (`{loss['file']}`): mIoU {loss['mean_iou_int8']} instead of {loss['mean_iou']} on "
            f"{loss['pictures']} pictures, {loss['bytes_int8'] / 1e6:.1f} instead of {loss['bytes'] / 1e6:.1f} MB, "
            f"{loss['milliseconds_int8']} ms.",
        ]
    return lines


def _made_of(card: dict[str, Any]) -> list[str]:
    data, learned, scores, trunk = card["data_set"], card["learned_from"], card["scores"], card["trunk"]
    about = "not known" if data is None else f"{data['name']}, {data['images']} images ({data['layout']})"
    if learned is None:
        source = "What it learned from is not known: the parameters of its training are not beside it."
    else:
        models = f", by way of {', '.join(learned['models'])}" if learned["models"] else ""
        source = f"Learned from the masks of {learned['masks']} images and the tags of {learned['tags']}{models}."
    measured = (
        f"none: {card['no_scores']}."
        if scores is None
        else f"mIoU {scores['mean_iou']} on {scores['images']} validation images, by the whole of `segcore predict`."
    )
    weights = f"{trunk['network']}, weights {trunk['weights']}. Licence of these weights: {trunk['licence']}"
    return [
        f"- Data set: {about}.",
        f"- {source}",
        f"- Scores: {measured}",
        f"- Trunk: {weights.removesuffix('.')}. {trunk['note']}",
    ]
