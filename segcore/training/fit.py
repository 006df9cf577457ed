"""fit(): the one training loop of all classifiers and systems."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import torch
from torch import Tensor, nn

from segcore.config.training import RecipeParams
from segcore.data.batches import Batch, Moment, Samples, Stream
from segcore.data.order import Order
from segcore.errors import Problem
from segcore.losses import Term
from segcore.networks import dropout, normalisation
from segcore.processes import Runtime
from segcore.seeds import derived_seed
from segcore.training import checkpoints
from segcore.training.optimisation import Trainable, optimiser, rate

WATCHED = "watched/"
"""Before the names of terms that carry no gradient: figures that are watched, not minimised."""


@dataclass(frozen=True)
class Progress:
    """One finished step. `losses` are the named terms; `replayed` steps come from the checkpoint of an earlier try.

    A term without a gradient is there as `watched/<name>`.
    """

    step: int
    losses: dict[str, float]
    learning_rate: float
    seconds: float
    replayed: bool


class _Losses(nn.Module):
    """Calls `losses` by way of `forward`, which is where torch hooks in data parallelism and compilation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch | None) -> dict[str, Term]:
        if batch is None:
            return self._nothing()
        return cast(Trainable, self.model).losses(batch)

    def _nothing(self) -> dict[str, Term]:
        """A loss of 0, whose gradient reaches the weights in the opposite order of their layers."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        total = torch.zeros((), device=trained[0].device)
        for parameter in trained:
            total = total + 0 * parameter.sum()
        return {"nothing": Term(total, torch.ones_like(total))}


def _in_fixed_buckets(parallel: nn.Module) -> nn.Module:
    """Data parallelism that sums gradients in the same buckets in every step.

    After its first step torch lays them out anew, in the order in which gradients came. Sums of three processes or
    more round by the place that a value has in its bucket, so a run that goes on would end otherwise than one that was
    never stopped. Therefore all runs begin with a step without samples, in an order that is always the same.
    """
    parallel(None)["nothing"].total.backward()
    parallel.zero_grad(set_to_none=True)
    return parallel


def _compiled(losses: nn.Module, device: torch.device) -> nn.Module:
    if device.type == "cpu":
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler as error:
            raise Problem("compile: true needs a C++ compiler on a CPU; install g++ or set compile: false") from error
    dropout.keep_from_compiler(losses)
    return cast(nn.Module, torch.compile(losses))


class Fit:
    """A training run that can be killed at any moment and goes on from its last checkpoint, bit for bit on a CPU.

    How many parts (`accumulate`) and processes a step is spread over changes its result by rounding alone, dropout
    included, with two exceptions, which lie in the parts: batch normalisation sees one part at a time, and so does a
    loss that is a mean over something that samples have in unequal numbers, such as known pixels: each part's mean
    weighs the same, as in Caffe.

    A checkpoint whose steps another number of processes took is used within one run of `torchrun --rdzv-id` alone,
    where processes may come and go: batches stay the same, but sums round differently.

    Iterating yields `Progress` for every step from the first on, those of an interrupted try replayed.

    Args:
        model: a module that is `Trainable`; trained in place.
        samples: the training samples.
        recipe: how to train.
        seed: of the order of the data, augmentation and dropout.
        runtime: device, processes and precision.
        checkpoint: the scratch file of this run, by its fingerprint; None keeps none.

    Raises:
        Problem: a loss or a weight is not finite, the disk is full, or processes cannot share the work.
    """

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        recipe: RecipeParams,
        seed: int,
        runtime: Runtime,
        checkpoint: Path | None,
    ) -> None:
        self.model = model
        self.recipe = recipe
        self.seed = seed
        self.runtime = runtime
        self.checkpoint = checkpoint
        self.history: list[dict[str, float]] = []
        self.worlds = [runtime.world]
        """By how many processes steps were taken: more than one number where processes came or went."""
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        model.to(device=runtime.device).to(memory_format=layout)  # type: ignore[call-overload]
        model.train()
        if runtime.world > 1:
            normalisation.share(model)
        self.optimiser = optimiser(model, recipe)
        place = runtime.rank, runtime.world
        order = Order.of(samples, recipe.batch_size, recipe.accumulate, seed, *place, recipe.class_power)
        self.stream = Stream(samples, order, recipe.workers)
        self.damage = self._resume()
        """Why an existing checkpoint was not used, or None."""
        self._losses: nn.Module = runtime.accelerator.prepare_model(_Losses(model))
        if runtime.world > 1:
            self._losses = _in_fixed_buckets(self._losses)
        if recipe.compile:
            self._losses = _compiled(self._losses, runtime.device)

    def __iter__(self) -> Iterator[Progress]:
        for step, losses in enumerate(self.history):
            yield Progress(step, losses, self._rate(step), 0.0, True)
        self.model.train()
        first = len(self.history)
        begin = time.perf_counter()
        for step, micro_batches in enumerate(self.stream.steps(first, self.recipe.steps), start=first):
            moment = Moment(step, self.recipe.steps)
            losses = self._step(step, [batch.at(moment) for batch in micro_batches])
            self._same_terms(step, losses)
            self.history.append(losses)
            if (step + 1) % self.recipe.checkpoint_every == 0 and step + 1 < self.recipe.steps:
                self._save()
            now = time.perf_counter()
            yield Progress(step, losses, self._rate(step), now - begin, False)
            begin = now
        if not all(bool(p.isfinite().all()) for group in self.optimiser.param_groups for p in group["params"]):
            raise Problem("the last step left weights that are not finite; lower learning_rate or set clip_norm")
        self.model.eval()

    def finish(self) -> None:
        """Drop the checkpoint, once the result is safe on disk.

        All processes wait for that: torchrun cannot start one again that has ended well, should the first be killed.
        """
        self.runtime.wait()
        if self.checkpoint is not None and self.runtime.is_main:
            self.checkpoint.unlink(missing_ok=True)

    def _rate(self, step: int) -> float:
        return self.recipe.learning_rate * rate(step, self.recipe)

    def _step(self, step: int, micro_batches: list[Batch]) -> dict[str, float]:
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(step) * group["multiplier"]
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        last = len(micro_batches) - 1
        key = derived_seed(self.seed, "dropout", step)
        size = self.recipe.batch_size // self.recipe.accumulate
        for number, batch in enumerate(micro_batches):
            dropout.set_key(self.model, key, self.runtime.rank, self.runtime.world, before=number * size)
            # For layers of others, which draw from torch's own generator and so differ with parts and processes.
            torch.manual_seed(derived_seed(key, number, self.runtime.rank))
            batch = batch.to(self.runtime.device, self.recipe.channels_last)
            terms = self._backward(batch, is_last=number == last)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value / len(micro_batches)
        if self.recipe.clip_norm is not None:
            trained = [p for group in self.optimiser.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.recipe.clip_norm)
        self.optimiser.step()
        # One transfer for all terms, and after the update: each makes the CPU wait until a GPU has done all before it.
        losses = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        if not all(math.isfinite(value) for value in losses.values()):
            self._refuse(step, losses, micro_batches)
        return losses

    def _same_terms(self, step: int, losses: dict[str, float]) -> None:
        # With several processes a term that joins or leaves, or whose gradient does, ends in torch's error about an
        # unfinished reduction.
        if self.history and losses.keys() != self.history[0].keys():
            odd = ", ".join(sorted(losses.keys() ^ self.history[0].keys()))
            raise Problem(f"step {step}: terms of the loss joined or left ({odd}); each must be there in every step")

    def _refuse(self, step: int, losses: dict[str, float], micro_batches: list[Batch]) -> NoReturn:
        mine = [image_id for batch in micro_batches for image_id in batch.ids]
        ids = [image_id for part in self.runtime.gather(mine) for image_id in part]
        terms = ", ".join(f"{name} {value}" for name, value in losses.items())
        raise Problem(
            f"step {step}: the loss is not finite ({terms}); its images are {', '.join(ids)}; "
            "a smaller learning_rate, more warmup_steps or clip_norm help against diverging"
        )

    def _backward(self, batch: Batch, is_last: bool) -> dict[str, Tensor]:
        """Add a micro-batch's gradient; its terms, normalised over all processes."""
        accelerator = self.runtime.accelerator
        # Processes exchange gradients at the last micro-batch of a step only.
        with contextlib.nullcontext() if is_last else accelerator.no_sync(self._losses):
            with self.runtime.autocast():
                terms = self._losses(batch)
            values = {}
            total = torch.zeros((), device=self.runtime.device)
            for name, term in terms.items():
                weight = self.runtime.sum(term.weight)
                if not term.total.requires_grad:
                    values[WATCHED + name] = Term(self.runtime.sum(term.total), weight).over(weight)
                    continue
                # Data parallelism averages gradients over processes; times their number makes it the sum it must be.
                total = total + term.over(weight) * (self.runtime.world / self.recipe.accumulate)
                values[name] = Term(self.runtime.sum(term.total), weight).over(weight)
            total.backward()
        return values

    def _state(self) -> dict[str, Tensor]:
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        return {name: value for name, value in self.model.state_dict().items() if name not in frozen}

    def _save(self) -> None:
        if self.checkpoint is not None and self.runtime.is_main:
            state = {"model": self._state(), "optimiser": self.optimiser.state_dict(), "history": self.history}
            checkpoints.save(self.checkpoint, state | {"worlds": self.worlds, "run": self.runtime.elastic})

    def _resume(self) -> str | None:
        state = checkpoints.load(self.checkpoint) if self.checkpoint is not None else None
        if len(set(self.runtime.gather(len(state["history"]) if isinstance(state, dict) else 0))) > 1:
            raise Problem(f"not every process can see {self.checkpoint}; put it on a file system that all share")
        if state is None:
            return None
        if isinstance(state, checkpoints.Unreadable):
            return state.reason
        worlds, run = state["worlds"], self.runtime.elastic
        if worlds != self.worlds and not (run and run == state["run"]):
            others = " and ".join(map(str, worlds))
            return f"its {len(state['history'])} steps were taken by {others} process(es), whose sums round differently"
        own = {name: value.shape for name, value in self._state().items()}
        try:
            if own != {name: value.shape for name, value in state["model"].items()}:
                raise ValueError("its arrays are others")
            if len(state["history"]) >= self.recipe.steps:
                raise ValueError(f"it has {len(state['history'])} of {self.recipe.steps} steps")
            self.optimiser.load_state_dict(state["optimiser"])
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise Problem(f"{self.checkpoint} is no checkpoint of this run ({error}); delete it") from error
        self.model.load_state_dict(state["model"], strict=False)
        self.history = state["history"]
        self.worlds = sorted({*worlds, *self.worlds})
        return None
