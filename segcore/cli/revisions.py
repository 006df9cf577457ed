"""What another commit holds of the results, read without touching the workspace."""

import subprocess
from pathlib import Path

from segcore.errors import Problem
from segcore.reporting.earlier import FILES, PARAMS, RESULTS


def lay_out(revision: str, data: Path, folder: Path) -> str:
    """Lay params.yaml and the results in `data` of a revision into `folder`; gives its short hash and subject.

    What Git holds is read from Git, what DVC holds from its cache; a file that is not in the cache is left out. `data`
    is relative to the root of the project, the current folder.

    Raises:
        Problem: there is no such revision, or the project is no checkout with DVC.
    """
    asked = ["git", "log", "-1", "--format=%h %s", "--end-of-options", f"{revision}^{{commit}}", "--"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True)
    except OSError as error:
        raise Problem(f"git could not be started ({error.strerror}), and other commits are read by it") from None
    if said.returncode or not said.stdout.strip():
        last = (said.stderr.strip().splitlines() or ["it is not in this repository"])[-1]
        raise Problem(
            f"found the revision '{revision}', which names no commit ({last}); `git log --oneline` lists them"
        )
    commit = said.stdout.strip()
    from dvc.exceptions import DvcException  # takes a second
    from dvc.repo import Repo

    try:
        with Repo(".", rev=commit.split()[0]) as repo:
            files = repo.dvcfs
            if not files.isfile(PARAMS):
                raise Problem(f"commit {commit} has no {PARAMS}, so it is not known what its results are of")
            found = [PARAMS]
            results = (data / RESULTS).as_posix()
            if files.isdir(results):
                found += [path.lstrip("/") for path in files.find(results) if path.rpartition("/")[2] in FILES]
            for path in found:
                _copy(files, path, folder / path)
    except DvcException as error:
        raise Problem(f"commit {commit} cannot be read by DVC ({error})") from None
    return commit


def _copy(files, path: str, target: Path) -> None:  # noqa: ANN001
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.write_bytes(files.read_bytes(path))
    except FileNotFoundError:  # neither in the cache nor in a remote
        target.unlink(missing_ok=True)
