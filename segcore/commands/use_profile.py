"""Put a profile in place of params.yaml: complete, with its comments.

What was made of another data set stays where it is, in `data/<its name>/`, and is found again when its profile comes
back. No stage of the pipeline.
"""

from pathlib import Path

from segcore.cli import command, console
from segcore.config import profiles
from segcore.config.reading import parsed
from segcore.config.settings import Settings
from segcore.errors import Problems
from segcore.files import write_atomically


def main(*, profile: str, folder: Path = Path("profiles"), params: Path = Path("params.yaml")) -> None:
    """Compose the profile into `params`, which stays as it is where the profile has a mistake."""
    text = profiles.compose(folder, profile)
    try:
        dataset = command.checked(Settings(parsed(text, f"the profile {profile}"))).dataset
    except Problems as found:
        raise Problems(f"the profile {profile} has a mistake:", found.problems) from None
    write_atomically(params, text.encode())
    console.say(f"{params}: profile {profile}; what is made of it will lie in data/{dataset.name}/")


if __name__ == "__main__":
    command.start(main)
