"""The text of `dvc.lock`: its entries, and a lock that was cut short put together again.

After each stage DVC truncates the file and writes it anew, an entry after the other, in an order that never changes;
what was not there before comes last. So a kill leaves the first entries, the last of them perhaps cut. Text in, text
out: DVC's own order and spelling stay, and reading 150 KB of YAML would take longer than all the rest.
"""

import re

HEAD = "schema: '2.0'\nstages:\n"
_ENTRY = re.compile(r"^  (?=\S)", re.MULTILINE)
_NAME = re.compile(r"(.+):\n")


def entries(text: str) -> dict[str, str] | None:
    """The text of each stage's entry by its name, in the order of the file; None if this is no lock of stages."""
    if not text.startswith(HEAD):
        return None
    found: dict[str, str] = {}
    for entry in _ENTRY.split(text.removeprefix(HEAD))[1:]:
        name = _NAME.match(entry)
        found[name[1] if name else entry] = f"  {entry}"
    return found


def together(found: dict[str, str]) -> str:
    """The file with these entries; empty without any."""
    return "".join([HEAD, *found.values()]) if found else ""


def without_last(text: str) -> str:
    """The file without its last entry, which may be cut."""
    return together(dict(list((entries(text) or {}).items())[:-1]))


def mended(text: str, whole: str) -> str:
    """What a kill may have cut off `text`, from a copy that is whole; `text` itself if it was not cut.

    Entries that are there stay, as they are newer than the copy; but not the last one of a file that was cut, as it may
    be cut itself. A file that lacks other entries than the last ones was not cut: another commit was checked out, say.
    """
    known = entries(whole) or {}
    if HEAD.startswith(text):
        return together(known)
    ours = entries(text)
    if ours is None:
        return text
    last = next(reversed(ours), "")
    is_first_part = list(ours) == list(known)[: len(ours)]
    is_cut = (
        not text.endswith("\n")
        or (is_first_part and len(ours) < len(known))
        or (ours[last] != known.get(last) and known.get(last, "").startswith(ours[last]))
    )
    if not is_cut:
        return text
    if ours and ours[last] != known.get(last):
        del ours[last]
    return together(known | ours if list(ours) == list(known)[: len(ours)] else ours)
