"""How a training stage shows itself: the plan, bars on a terminal or lines in a log, and dvclive files."""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from dvclive.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from segcore.cli import console, held, provenance, scratch
from segcore.config.training import RecipeParams
from segcore.errors import Problem
from segcore.files import fingerprint, fresh_folder
from segcore.processes import Runtime
from segcore.training.fit import WATCHED, Fit
from segcore.training.fit import Progress as Step

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 15
MEASURED_STEPS = 3


def scratch_file(name: str, run_key: object, inputs: list[Path], model: nn.Module, runtime: Runtime) -> Path:
    """The checkpoint of a run: its name changes with all that the result depends on.

    That is parameters, inputs, sources, torch, the initial weights, and how this machine rounds.
    """
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    run_key = [run_key, torch.__version__, weights.hexdigest(), runtime.arithmetic]
    file = scratch.FOLDER / f"{name}-{fingerprint(run_key, [*inputs, *provenance.sources()])}.pt"
    return runtime.gather(file)[0]  # that of the first process, which writes it: nodes may differ in their cores


def announce(name: str, model: nn.Module, recipe: RecipeParams, images: int, fit: Fit) -> None:
    """What is going to happen, before it does."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    console.say(
        f"{name}: {parameters / 1e6:.1f} M parameters ({trained / 1e6:.1f} M trained), {images:,} samples, "
        f"{recipe.steps:,} steps of {recipe.batch_size} in {recipe.accumulate} parts, {fit.runtime.precision} on "
        f"{fit.runtime.device} with {fit.runtime.world} process(es)"
    )
    if fit.runtime.emulates_bf16:
        console.say(f"{name}: this CPU has no units for bf16 and emulates it; precision: fp32 is faster")
    if fit.damage:
        console.say(f"{name}: starting from the first step: {fit.damage}")
    elif fit.history:
        numbers = " and ".join(map(str, fit.worlds))
        mixed = f"; steps of {numbers} processes, whose sums round differently" if len(fit.worlds) > 1 else ""
        console.say(f"{name}: going on from step {len(fit.history)} of an interrupted run{mixed}")


def follow(name: str, fit: Fit, log: Path, look: Callable[[int], None] | None = None) -> None:
    """Run the training to its end; every step goes to the dvclive files in `log`, which appears whole at the end.

    After each new step `look` is called with the number of those that are done; it must change nothing.

    Raises:
        Problem: another run goes on from the same checkpoint.
    """
    on_terminal = console.console.is_terminal and console.is_main_process()
    display = _Bars(name, fit.recipe) if on_terminal else _Lines(name, fit.recipe)
    with _held(fit.checkpoint), display, logged(log) as write:
        for progress in fit:
            write(progress.step, _metrics(progress))
            display.show(progress)
            if look is not None and not progress.replayed:
                look(progress.step + 1)


def finish(fit: Fit) -> None:
    """Drop the checkpoint, and those of former runs of this name, once the result is safe on disk."""
    fit.finish()
    if fit.checkpoint is not None and console.is_main_process():
        scratch.sweep(fit.checkpoint)


def _held(checkpoint: Path | None) -> contextlib.AbstractContextManager[None]:
    if checkpoint is None or not console.is_main_process():
        return contextlib.nullcontext()
    return held.held(checkpoint, patiently=False)


@contextlib.contextmanager
def logged(log: Path) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """What writes the numbers of a step into dvclive files, which appear whole in `log` when the block ends.

    While the run lasts they can be watched in `.<log>.partial`.
    """
    if not console.is_main_process():
        yield lambda _, __: None
        return
    partial = log.with_name(f".{log.name}.partial")
    with _as_problem(partial):
        fresh_folder(partial)
        live = Live(str(partial), dvcyaml=None, save_dvc_exp=False, monitor_system=False)

    def write(step: int, numbers: Mapping[str, float]) -> None:
        with _as_problem(partial):
            live.step = step
            for name, value in numbers.items():
                live.log_metric(name, value)

    try:
        yield write
        with _as_problem(partial):
            live.make_summary()
            shutil.rmtree(log, ignore_errors=True)
            partial.rename(log)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def counted(name: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, and a line now and then of how many of them there were."""
    begin = last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            left = (now - begin) / number * (total - number) / 60
            console.say(f"{name}: image {number:,}/{total:,}, {left:.1f} min left")
            last = now


def _metrics(progress: Step) -> dict[str, float]:
    """The numbers of a step, by the names that curves have."""
    terms = {
        term if term.startswith(WATCHED) else f"loss/{term}": round(value, 6) for term, value in progress.losses.items()
    }
    return {**terms, "learning_rate": round(progress.learning_rate, 8)}


@contextlib.contextmanager
def _as_problem(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Problem(f"{folder} could not be written ({error.strerror})") from error


def _estimate(seconds: list[float], steps_left: int) -> str:
    step = min(seconds[1:])  # the first step also pays for starting up
    memory = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else provenance.peak_memory_mb()
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
            console.say(f"{self.name}: measured {_estimate(self.seconds, self.recipe.steps - done)}")
        if time.monotonic() - self.last > SECONDS_BETWEEN_LINES or done == self.recipe.steps:
            self.last = time.monotonic()
            rate = self.recipe.batch_size * len(self.seconds) / sum(self.seconds)
            left = (self.recipe.steps - done) * self.recipe.batch_size / rate / 60
            speed = f"{rate:.1f} images/s, {left:.1f} min left"
            console.say(f"{self.name}: step {done}/{self.recipe.steps}, {_terms(progress)}, {speed}")


class _Bars:
    """A bar with the time left, images per second and every term."""

    def __init__(self, name: str, recipe: RecipeParams) -> None:
        self.name = name
        self.recipe = recipe
        self.seconds: list[float] = []
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"), console=console.console,
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
