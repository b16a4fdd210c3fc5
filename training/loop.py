"""The training loop: exact to the step, whenever it is interrupted.

Everything random (order, augmentation, dropout) is a function of the seed and of the step, and
everything else is in the checkpoint, so that a run that was killed and resumed ends with the same
bits as one that was not.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

import models

import megengine as mge
import megengine.module as M
import numpy as np
from megengine.amp import GradScaler, autocast
from megengine.autodiff import GradManager
from tqdm import tqdm

from data import mixing
from data.evaluation import Score, evaluate
from data.loader import Loader
from utils import UserError
from weights import checkpoint

from . import (
    accumulation,
    distributed,
    gradients,
    losses,
    low_memory,
    optimizer,
    precise_bn,
    schedule,
)
from .ema import WeightAverage
from .parameters import kinds
from .progress import Progress, describe
from .run_folder import RunFolder, versions
from .settings import Settings
from .swap import swapped
from .teacher import Teacher
from .tensorboard import EventFile

if TYPE_CHECKING:
    from .qat import FakeQuantized  # needs ONNX


CALIBRATION_BATCHES = 4  # for the first ranges of activations in quantization-aware training


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the run has been saved. `signal` is its number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Trainer:
    """Trains a network made by `models.create`.

    Args:
        model: the network in train form.
        settings, train, val: how, on what, and what to evaluate on after each epoch.
        folder: where results and checkpoints go.
        print_freq: steps between log lines.
        save_freq: steps between saves beside the one after every epoch; 0 for none.
        workers: the processes that share each batch; the network, and all else that is kept,
            is the same in all of them after every step.
        teacher: what to learn from beside the labels; settings.teacher is its name.
        low_memory: compute activations again instead of keeping them; the result is the same.
        quantized: for settings.qat, the int8 form of `model`: it is trained and evaluated instead.
    """

    def __init__(
        self,
        model: M.Module,
        settings: Settings,
        train: Loader,
        val: Loader,
        folder: RunFolder,
        print_freq: int = 20,
        save_freq: int = 0,
        workers: distributed.Workers | None = None,
        teacher: Teacher | None = None,
        low_memory: bool = False,
        quantized: FakeQuantized | None = None,
    ):
        self.workers = workers or distributed.Workers()
        if settings.batch_size > len(train.dataset):
            raise UserError(
                f"the batch of {settings.batch_size} is larger than the {len(train.dataset)} "
                f"training images; use --batch-size {len(train.dataset)} or less"
            )
        if settings.custom_l2 and not any(hasattr(m, "custom_l2") for m in model.modules()):
            raise UserError(f"--custwd is for RepVGG's own blocks, and {model.arch} has none")
        self.model, self.settings = model, settings
        self.quantized = quantized
        self.network = model if quantized is None else quantized  # what computes
        self.train, self.val = train, val
        self.folder = folder
        self.print_freq, self.save_freq = print_freq, save_freq
        self.teacher = teacher
        self.low_memory = low_memory and not settings.freeze  # a frozen trunk keeps none anyway
        self.steps_per_epoch = len(train.dataset) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        if settings.batch_size < self.workers.size:
            raise UserError(
                f"the batch of {settings.batch_size} has less than one image for each of the "
                f"{self.workers.size} workers; use --batch-size {self.workers.size} or more"
            )
        if settings.sync_bn:
            distributed.synchronize_batch_norms(model, self.workers)
        self.workers.broadcast([*model.parameters(), *model.buffers()])
        names = {name for name, _ in model.named_parameters()}
        if settings.freeze:
            names = set(models.head_names(model))
        self.learnt = {name: p for name, p in model.named_parameters() if name in names}
        self.grad_manager = GradManager().attach(self.learnt.values())
        groups = optimizer.parameter_groups(
            model, settings.weight_decay, settings.custom_l2, names, settings.decay_rule
        )
        self.optimizer = optimizer.make(
            settings.optimizer, groups, settings.lr, settings.momentum, settings.nesterov
        )
        self.average = WeightAverage(model, settings.ema) if settings.ema else None
        # what best.pkl is chosen by; with an average it holds the average
        self.judged_by = "ema_top1" if settings.ema else "val_top1"
        self.scaler = GradScaler() if settings.amp else None
        self.step = 0  # steps done
        self.score = Score()  # of the training images in the current epoch
        self.history: list[dict[str, float]] = []  # a row an epoch
        self.progress = Progress(settings.batch_size)
        self.events: EventFile | None = None  # of the first worker, while it trains
        self._pending: list[tuple] = []  # outcomes of steps that have not been looked at
        self._stop_signal: int | None = None

    # ---------------------------------------------------------------- state

    def save(self) -> None:
        """Write latest.pkl; refuses to replace it by weights that are not finite.

        All workers must call it.
        """
        self._look_at_pending()
        if not all(np.isfinite(p.numpy()).all() for p in self.model.parameters()):
            raise self._not_finite("weight", self.step)
        if self.events is not None:
            self.events.flush()
        contents = self._checkpoint(
            {
                "step": self.step,
                "score": asdict(self.score),
                "history": self.history,
                "optimizer": _plain(self.optimizer.state_dict()),
                "ema": self.average and self.average.state_dict(),
                "scaler": self.scaler and self.scaler.state_dict(),
                "settings": asdict(self.settings),
                "augmentation": asdict(self.train.dataset.augment),
                "training_images": len(self.train.dataset),
                "versions": versions(),
            },
        )
        if self.workers.rank == 0:
            checkpoint.save(contents, self.folder.latest)

    def _checkpoint(self, training: dict | None = None) -> checkpoint.Checkpoint:
        return checkpoint.of_model(
            self.model,
            self.val.preprocessing,
            self.val.dataset.classes,
            training,
            self.quantized and self.quantized.ranges,
        )

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Go on where `found` (a latest.pkl whose weights the model already has) was saved.

        Raises UserError when the run was another: other settings or other data.
        """
        state = found.training
        if state is None:
            raise UserError(
                "this checkpoint has weights only, so training cannot go on from it; "
                "resume from a latest.pkl"
            )
        before = asdict(Settings(**state["settings"]))  # older runs had fewer: the defaults
        for name, now in asdict(self.settings).items():
            if (then := before[name]) != now:
                raise UserError(
                    f"the run to resume had {name} {then}, and now it is {now}; "
                    "give the same flags, or start a new run with another --tag"
                )
        then, now = state.get("augmentation"), asdict(self.train.dataset.augment)
        if then not in (None, now):  # older runs do not say
            name = next(name for name in now if then.get(name) != now[name])
            raise UserError(
                f"the run to resume had {name} {then.get(name)}, and now it is {now[name]}; "
                "give the same flags, or start a new run with another --tag"
            )
        if found.preprocessing != self.val.preprocessing:
            raise UserError(
                f"the run to resume had {found.preprocessing}, and now it is "
                f"{self.val.preprocessing}; give the same --size and --crop-ratio"
            )
        if state["training_images"] != len(self.train.dataset):
            raise UserError(
                f"the run to resume had {state['training_images']} training images, and now there "
                f"are {len(self.train.dataset)}; give the same --data"
            )
        for name, version in versions().items():
            if state["versions"].get(name) != version:
                self.folder.log(
                    f"warning: {name} was {state['versions'].get(name)} and is now {version}: "
                    "the result may differ in the last bits"
                )
        self.step = state["step"]
        self.score = Score(**state["score"])
        self.history = state["history"]
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        if state["optimizer"]["state"]:  # SGD without momentum has none; MegEngine expects some
            self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])
        if self.quantized is not None:
            self.quantized.ranges = dict(found.activation_ranges)

    # ---------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Train to the end. Raises Interrupted after saving when SIGINT or SIGTERM arrives, and
        UserError when the loss is not finite or a checkpoint cannot be written."""
        self._start_training()
        if self.workers.rank == 0:
            self.events = EventFile(self.folder.path, self.step)
        with self._signals(), self._progress_bar() as bar:
            self.progress.open(self.step)
            try:
                self._fit(bar)
            except Interrupted:  # in all workers
                self.save()
                raise

    def _start_training(self) -> None:
        """Bring the network into training mode; in int8 form it first needs ranges."""
        if self.quantized is not None and not self.quantized.ranges:
            images = self._training_images(CALIBRATION_BATCHES)
            self.quantized.calibrate(images, self.workers)
        self.network.train(not self.settings.freeze)

    def _fit(self, bar: tqdm) -> None:
        while True:
            if self.step == (len(self.history) + 1) * self.steps_per_epoch:
                with self.progress.evaluating():
                    self._end_epoch()
            if self.step >= self.total_steps:
                return
            epoch, done = divmod(self.step, self.steps_per_epoch)
            batches = self.train.training(self.settings.seed, epoch, skip=done)
            for images, labels in self.progress.watch(batches):
                counts = self._counts_or_leave(len(labels))
                self._train_step(images, labels, counts)
                bar.update()
                if self.step % self.print_freq == 0:
                    self._show(bar)
                if self.save_freq and self.step % self.save_freq == 0:
                    self.save()

    def losses_at(self, rates: Iterable[float]) -> Iterator[float]:
        """The loss of a training step at each learning rate, one after the other: for find_lr.py,
        and not to be trained on after. Ends early when a loss is not finite."""
        rates = list(rates)
        self.learning_rate = rates.__getitem__
        self._start_training()
        while self.step < len(rates):
            epoch = self.step // self.steps_per_epoch
            with closing(self.train.training(self.settings.seed, epoch)) as batches:
                for images, labels in batches:
                    self.score = Score()
                    self._train_step(images, labels, self._counts_or_leave(len(labels)))
                    try:
                        self._look_at_pending()
                    except UserError:
                        return
                    yield self.score.mean_loss
                    if self.step == len(rates):
                        return

    def learning_rate(self, step: int) -> float:
        """Of the given step."""
        settings, steps = self.settings, self.steps_per_epoch
        return schedule.learning_rate(
            step,
            self.total_steps,
            settings.lr,
            settings.schedule,
            round(settings.warmup_epochs * steps),
            settings.warmup_lr,
            settings.min_lr,
            [round(epoch * steps) for epoch in settings.milestones],
            settings.step_factor,
        )

    def _counts_or_leave(self, count: int) -> np.ndarray:
        """How many images each worker has for the next step; leaves when one was told to."""
        stops, counts = self.workers.gather((self._stop_signal or 0, count)).T
        if stops.any():
            raise Interrupted(int(stops.max()))
        return counts

    def _parts(self, *arrays: np.ndarray, counts: np.ndarray) -> Iterator[tuple]:
        """A batch in as many parts as the other workers make of theirs; see accumulation.parts."""
        if counts.all():  # a worker has none left when every image of its part was bad
            yield from accumulation.parts(arrays, min(self.settings.accumulate, int(counts.min())))

    def _train_step(self, images: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> None:
        settings = self.settings
        if counts.all():
            rank = self.workers.rank
            seed = (settings.seed, self.step) + ((rank,) if rank else ())
            mge.random.seed(hash(seed) % 2**31)
            optimizer.set_learning_rate(self.optimizer, self.learning_rate(self.step))
            images, targets = self._mixed(images, labels)
            share = float(counts[rank] / counts.mean())  # each image counts the same
            parts = self._parts(images, labels, targets, counts=counts)
            for *part, part_share in parts:
                self._add_gradients(*part, share * part_share)
            self._exchange()
            if self.scaler is not None:  # after an overflow there are no gradients, and no step
                self.scaler.unscale(self.learnt.values())
                self.scaler.update()
            if settings.agc:
                gradients.clip_adaptively(self._without_classifier(), settings.agc)
            if settings.clip_norm:
                gradients.clip_by_norm(self.learnt.values(), settings.clip_norm)
            self.optimizer.step().clear_grad()
            if self.average is not None:
                self.average.update(self.step)
        self.step += 1
        self._look_at_pending(keep=settings.accumulate)  # late: the device need not wait for us

    def _mixed(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The batch after mixup or cutmix, with soft targets, or with the labels as targets."""
        augmentation = self.train.dataset.augment
        if not (augmentation.mixup or augmentation.cutmix):
            return images, labels
        rng = np.random.default_rng((self.settings.seed, self.step))  # the same in all workers
        return mixing.mix(images, labels, len(self.train.dataset.classes), augmentation, rng)

    def _add_gradients(
        self, images: np.ndarray, labels: np.ndarray, targets: np.ndarray, share: float
    ) -> None:
        """Of a part of a batch, for which its mean loss counts by its share."""
        settings = self.settings
        taught = None if self.teacher is None else self.teacher(images)
        scale = 1.0 if self.scaler is None else self.scaler.scale_factor

        def objective(outputs: mge.Tensor | dict) -> tuple[mge.Tensor, ...]:
            if taught is not None:
                outputs, student = losses.split_heads(outputs)
            loss, logits = losses.classification(
                outputs,
                mge.Tensor(targets),
                settings.label_smoothing,
                getattr(self.model, "auxiliary_weight", 0.0),
            )
            if taught is not None:
                distance = losses.distillation(
                    student, taught, settings.distillation, settings.distillation_temperature
                )
                alpha = settings.distillation_alpha
                loss = (1 - alpha) * loss + alpha * distance
            if settings.custom_l2:
                loss = loss + 0.5 * settings.weight_decay * losses.custom_l2(self.model)
            return loss * (share * scale), loss, logits

        backward = low_memory.backward if self.low_memory else low_memory.backward_at_once
        with autocast(enabled=settings.amp):
            _, loss, logits = backward(
                self.network, self.grad_manager, mge.Tensor(images), objective
            )
        self._pending.append((self.step, loss, logits, labels))

    def _without_classifier(self) -> list[tuple[mge.Tensor, str]]:
        """What is clipped adaptively: (parameter, kind) pairs."""
        kind, head = kinds(self.model), set(models.head_names(self.model))
        return [(p, kind[name]) for name, p in self.learnt.items() if name not in head]

    def _exchange(self) -> None:
        """Average the gradients over the workers; and, so that the networks stay the same, the
        batch norms' running statistics."""
        shared = [p.grad for p in self.learnt.values() if p.grad is not None]
        if self.quantized is not None:
            self.quantized.observe(self.workers)
        elif not self.settings.sync_bn:
            shared += self.model.buffers()
        self.workers.average(shared)

    def _look_at_pending(self, keep: int = 0) -> None:
        while len(self._pending) > keep:
            step, loss, logits, labels = self._pending.pop(0)
            score = Score()
            score.add(logits.numpy(), labels, float(loss.numpy()))
            score = score.over_all(self.workers)
            if not np.isfinite(score.loss):
                raise self._not_finite("loss", step)
            self.score += score

    def _not_finite(self, what: str, step: int) -> UserError:
        self._pending.clear()
        kept = (
            f"the last good checkpoint is {self.folder.latest}"
            if self.folder.latest.exists()
            else "no checkpoint had been saved yet"
        )
        return UserError(
            f"the {what} became infinite or not a number at step {step} "
            f"(epoch {step // self.steps_per_epoch + 1}); {kept}; try a lower --lr or a warm-up"
        )

    def _end_epoch(self) -> None:
        self._look_at_pending()
        distributed.check_equal(self.model, self.workers)
        row = {
            "epoch": len(self.history) + 1,
            "step": self.step,
            "lr": self.learning_rate(self.step),
            "train_loss": self.score.mean_loss,
            "train_top1": self.score.top1,
        }
        line = (
            f"epoch {row['epoch']}/{self.settings.epochs}: "
            f"training loss {self.score.mean_loss:.4f}, top-1 {self.score.top1:.2f} %"
        )
        best = max((row[self.judged_by] for row in self.history), default=-1.0)
        networks = [("val", "validation", nullcontext())]
        if self.average is not None:
            networks.append(("ema", "averaged weights", self.average.applied()))
        for column, name, applied in networks:
            with applied, swapped(self.model, self._precise_statistics()):
                val = evaluate(
                    self.network, self.val.evaluation(), lambda _: self._leave_if_alone()
                ).over_all(self.workers)
                line += (
                    f"; {name} loss {val.mean_loss:.4f}, top-1 {val.top1:.2f} %, "
                    f"top-5 {val.top5:.2f} % ({val.correct1} of {val.total} right)"
                )
                row |= {
                    f"{column}_loss": val.mean_loss,
                    f"{column}_top1": val.top1,
                    f"{column}_top5": val.top5,
                }
                better = f"{column}_top1" == self.judged_by and val.top1 > best
                if better and self.workers.rank == 0:
                    checkpoint.save(self._checkpoint(), self.folder.best)
        self.history.append(row)
        self.folder.log(line)
        if self.events is not None:
            self.events.add("epoch", row, self.step)
        self.score = Score()
        self.save()
        self.folder.write_metrics(self.history, last=self.step >= self.total_steps)

    def _precise_statistics(self) -> dict[str, mge.Tensor]:
        """Of the batch norms, for the weights that the network now has; none if not wanted."""
        if not self.settings.precise_bn:
            return {}
        count = -(-self.settings.precise_bn // self.settings.batch_size)
        return precise_bn.statistics(self.model, self._training_images(count), self.workers)

    def _training_images(self, batches: int) -> Iterator[np.ndarray]:
        """The first of the epoch to come, in parts."""
        epoch = self.train.training(self.settings.seed, len(self.history))
        with closing(epoch):
            for batch, labels in islice(epoch, batches):
                counts = self._counts_or_leave(len(labels))
                for part, _ in self._parts(batch, counts=counts):
                    yield part

    # ---------------------------------------------------------------- people and signals

    @contextmanager
    def _progress_bar(self) -> Iterator[tqdm]:
        with tqdm(
            total=self.total_steps, initial=self.step, unit="step", disable=None, dynamic_ncols=True
        ) as bar:
            yield bar

    def _show(self, bar: tqdm) -> None:
        rate = self.learning_rate(self.step - 1)
        seen = self.progress.look(
            self.step, self.total_steps - self.step, self.settings.epochs - len(self.history)
        )
        if self.events is not None:
            points = {"loss": self.score.mean_loss, "lr": rate, "images_per_second": seen["speed"]}
            self.events.add("step", points, self.step)
        facts = {
            "loss": f"{self.score.mean_loss:.4f}",
            "top-1": f"{self.score.top1:.2f} %",
            "lr": f"{rate:.5f}",
            **describe(**seen),
        }
        if not bar.disable:
            bar.set_postfix(facts)
            return
        epoch, done = divmod(self.step - 1, self.steps_per_epoch)
        self.folder.log(
            f"epoch {epoch + 1} step {done + 1}/{self.steps_per_epoch}: "
            + ", ".join(f"{name} {value}" for name, value in facts.items())
            + f", {tqdm.format_interval(seen['left'])} left"
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int, _frame: object) -> None:
            self._stop_signal = number

        previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _leave_if_alone(self) -> None:
        """In the middle of an evaluation; several workers go on to the next step together."""
        if self._stop_signal is not None and self.workers.size == 1:
            raise Interrupted(self._stop_signal)


def _plain(value: object) -> object:
    """A copy of an optimizer's state in arrays and plain values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, mge.Tensor):
        return value.numpy()
    return value.item() if isinstance(value, np.generic) else value
