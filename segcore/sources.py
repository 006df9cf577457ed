"""The code that a result comes from: the files that a stage imports, at once or by way of others.

`check_params` writes them with their fingerprints into what each stage is handed, which is what DVC compares. So nobody
lists source files in dvc.yaml, and a stage runs again when a file that it uses says something else: comments,
docstrings and blank lines say nothing to an interpreter, and are left out.
"""

import ast
import hashlib
import io
import tokenize
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

PACKAGE = Path(__file__).parent

CHANGES_NO_RESULT = (
    "segcore/config",  # checks values; which of them a stage is handed stands beside the code
    "segcore/cli",  # shows, keeps time, reads options
    "segcore/commands",  # what a person starts
    "segcore/errors.py",  # words for a person
    "segcore/memory.py",  # where memory goes that is given back
    "segcore/systems/__init__.py",  # finds a module by its name and checks its parameters
    "segcore/regularisers/__init__.py",  # likewise
)
"""What stages import and no result comes from: every new message would train everything again."""

KINDS = (".py", ".j2", ".css", ".js", ".html")
"""Code, and what pages are made of."""

_BETWEEN = (tokenize.NL, tokenize.COMMENT)
_BEFORE_A_LINE = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def files() -> dict[str, Path]:
    """Every file of the project's code, by a name that is the same in a checkout and in an installed package.

    The stages lie beside the package in a checkout, and within it where it is installed.
    """
    within = PACKAGE / "stages"
    stages = within if within.is_dir() else PACKAGE.parent / "stages"
    found = {f"stages/{path.name}": path for path in stages.glob("*.py")}
    for path in PACKAGE.rglob("*"):
        name = path.relative_to(PACKAGE).as_posix()
        if path.is_file() and path.suffix in KINDS and not name.startswith(("stages/", "template/")):
            found[f"segcore/{name}"] = path
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Module:
    """What one file of code imports, reads and says."""

    imports: frozenset[str]
    """Dotted names, of its top and of its functions."""
    words: frozenset[str]
    """Its strings, among them the names of folders that it reads."""
    fingerprint: str
    """Of what it says to an interpreter; empty if that is nothing."""


def read(path: Path) -> Module:
    """Read a file of code.

    Raises:
        SyntaxError: it is none, or imports relatively.
    """
    return _said(path.read_text(), str(path))


@cache
def _said(text: str, path: str) -> Module:
    names: set[str] = set()
    words: set[str] = set()
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise SyntaxError(f"{path} imports relatively")
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
    said = without_remarks(text)
    return Module(frozenset(names), frozenset(words), _sum(said.encode()) if said else "")


def without_remarks(text: str) -> str:
    """A file's lines without comments, docstrings (any string that is a statement) and blank lines.

    Whether a line says something is told by Python's own tokens, so strings of several lines stay as they are.
    """
    lines = text.splitlines()
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    gone: set[int] = set()
    before = tokenize.ENCODING
    for token, following in zip(tokens, tokens[1:], strict=False):
        first, last = token.start[0] - 1, token.end[0] - 1
        if token.type == tokenize.COMMENT:
            lines[first] = lines[first][: token.start[1]].rstrip()
        if token.type in _BETWEEN and not lines[first].strip():
            gone.add(first)
        alone = before in _BEFORE_A_LINE and following.type in (tokenize.NEWLINE, tokenize.COMMENT)
        if token.type == tokenize.STRING and alone:
            gone |= {*range(first, last + 1)}
        before = before if token.type in _BETWEEN else token.type
    return "\n".join(line for row, line in enumerate(lines) if row not in gone)


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Code:
    """The code as it is now; a file is read once, when it is asked for."""

    def __init__(self) -> None:
        self.files = files()
        self._read: dict[str, Module] = {}
        self._imported: dict[str, frozenset[str]] = {}

    def module(self, name: str) -> Module:
        """What a file of Python says.

        Raises:
            KeyError: there is none of that name.
        """
        if name not in self._read:
            self._read[name] = read(self.files[name])
        return self._read[name]

    def imported(self, name: str) -> frozenset[str]:
        """The project's files that loading `name` loads first, with the packages that they lie in."""
        if name not in self._imported:
            wanted = self.module(name).imports
            dotted = {module.rsplit(".", count)[0] for module in wanted for count in range(module.count(".") + 1)}
            self._imported[name] = frozenset(found for found in map(self._file_of, dotted) if found and found != name)
        return self._imported[name]

    def _file_of(self, module: str) -> str | None:
        """The project's file of a module, without the empty roots of the packages."""
        base = module.replace(".", "/")
        found = next((f for f in (f"{base}.py", f"{base}/__init__.py") if f in self.files), None)
        return None if found in ("segcore/__init__.py", "stages/__init__.py") else found

    def behind(self, *roots: str) -> set[str]:
        """All files of code that a result of these comes from, themselves included."""
        seen: set[str] = set()
        left = [*roots]
        while left:
            name = left.pop()
            seen.add(name)
            left += [other for other in self.imported(name) if other not in seen and not changes_no_result(other)]
        return {name for name in seen if self.module(name).fingerprint}

    def fingerprints(self, *roots: str) -> dict[str, str]:
        """What `behind` finds, and the files of the folders beside that these name, each with its fingerprint."""
        behind = self.behind(*roots)
        found = {name: self.module(name).fingerprint for name in behind}
        for name in behind:
            folder = name.rpartition("/")[0]
            for other in self._beside.get(folder, ()):
                if other.removeprefix(f"{folder}/").partition("/")[0] in self.module(name).words:
                    found[other] = _sum(self.files[other].read_bytes())
        return dict(sorted(found.items()))

    @cached_property
    def _beside(self) -> dict[str, list[str]]:
        """By a folder of code, the files in folders below it that are no code: templates."""
        found: dict[str, list[str]] = {}
        for name in self.files:
            if not name.endswith(".py"):
                found.setdefault(name.rsplit("/", 2)[0], []).append(name)
        return found


def changes_no_result(name: str) -> bool:
    """Whether stages may import a file of code without depending on it."""
    return any(name == place or name.startswith(f"{place}/") for place in CHANGES_NO_RESULT)
