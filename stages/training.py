"""How a training stage shows itself: the plan, bars on a terminal or lines in a log, and dvclive files."""

import sys
import time
from pathlib import Path

import torch
from dvclive.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import segcore
from segcore.config import RecipeParams
from segcore.runtime import fingerprint
from segcore.training import Fit
from segcore.training import Progress as Step
from stages import run

SCRATCH = Path(".scratch")
SECONDS_BETWEEN_LINES = 15
MEASURED_STEPS = 3


def scratch_file(name: str, run_key: object, inputs: list[Path]) -> Path:
    """The checkpoint of a run: its name changes with parameters, inputs and the sources of the core."""
    sources = sorted(Path(segcore.__path__[0]).rglob("*.py"))
    return SCRATCH / f"{name}-{fingerprint(run_key, [*inputs, *sources])}.pt"


def announce(name: str, model: nn.Module, recipe: RecipeParams, images: int, fit: Fit) -> None:
    """What is going to happen, before it does."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run.say(
        f"{name}: {parameters / 1e6:.1f} M parameters ({trained / 1e6:.1f} M trained), {images:,} samples, "
        f"{recipe.steps:,} steps of {recipe.batch_size} in {recipe.accumulate} parts, {fit.runtime.precision} on "
        f"{fit.runtime.device} with {fit.runtime.world} process(es)"
    )
    if fit.damage:
        run.say(f"{name}: starting from the first step: {fit.damage}")
    elif fit.history:
        run.say(f"{name}: going on from step {len(fit.history)} of an interrupted run")


def follow(name: str, fit: Fit, log: Path) -> None:
    """Run the training to its end; every step goes to the dvclive files in `log`."""
    main = run.is_main_process()
    live = Live(str(log), dvcyaml=None, save_dvc_exp=False, monitor_system=False) if main else None
    display = _Bars(name, fit.recipe) if sys.stdout.isatty() and main else _Lines(name, fit.recipe)
    with display:
        for progress in fit:
            if live is not None:
                live.step = progress.step
                for term, value in progress.losses.items():
                    live.log_metric(f"loss/{term}", round(value, 6))
                live.log_metric("learning_rate", round(progress.learning_rate, 8))
            display.show(progress)
    if live is not None:
        live.make_summary()


def _estimate(seconds: list[float], steps_left: int) -> str:
    step = min(seconds[1:])  # the first step also pays for starting up
    memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else run.peak_memory_mb()
    return f"{step:.2f} s a step, about {step * steps_left / 60:.1f} min to go, {memory:,.0f} MB"


def _terms(progress: Step) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in progress.losses.items())


class _Lines:
    """A plain line now and then."""

    def __init__(self, name: str, recipe: RecipeParams) -> None:
        self.name = name
        self.recipe = recipe
        self.seconds: list[float] = []
        self.last = time.monotonic()

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, progress: Step) -> None:
        if progress.replayed:
            return
        self.seconds.append(progress.seconds)
        done = progress.step + 1
        if len(self.seconds) == MEASURED_STEPS:
            run.say(f"{self.name}: measured {_estimate(self.seconds, self.recipe.steps - done)}")
        if time.monotonic() - self.last > SECONDS_BETWEEN_LINES or done == self.recipe.steps:
            self.last = time.monotonic()
            rate = self.recipe.batch_size * len(self.seconds) / sum(self.seconds)
            left = (self.recipe.steps - done) * self.recipe.batch_size / rate / 60
            run.say(f"{self.name}: step {done}/{self.recipe.steps}, {_terms(progress)}, {rate:.1f} images/s, {left:.1f} min left")


class _Bars:
    """A bar with the time left, images per second and every term."""

    def __init__(self, name: str, recipe: RecipeParams) -> None:
        self.name = name
        self.recipe = recipe
        self.seconds: list[float] = []
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"), console=run.console,
        )  # fmt: skip
        self.task = self.progress.add_task(name, total=recipe.steps, state="")

    def __enter__(self) -> "_Bars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, progress: Step) -> None:
        state = _terms(progress)
        if not progress.replayed:
            self.seconds.append(progress.seconds)
            if len(self.seconds) == MEASURED_STEPS:
                left = self.recipe.steps - progress.step - 1
                self.progress.console.print(f"{self.name}: measured {_estimate(self.seconds, left)}")
            recent = self.seconds[-20:]
            state += f", {self.recipe.batch_size * len(recent) / sum(recent):.1f} images/s"
        self.progress.update(self.task, completed=progress.step + 1, state=state)
