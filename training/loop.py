"""The training loop: exact to the step, whenever it is interrupted.

Everything random (order, augmentation, dropout) is a function of the seed and of the step, and
everything else is in the checkpoint, so that a run that was killed and resumed ends with the same
bits as one that was not.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice

import models
from models import cpu

import megengine as mge
import numpy as np

from data import by_epoch, mixing
from data.evaluation import Score, evaluate
from data.loader import Batch
from utils import UserError
from weights import checkpoint
from weights.checkpoint import Checkpoint

from . import (
    accumulation,
    agreement,
    changes,
    drop_path,
    low_memory,
    mixed_precision,
    precise_bn,
    resume,
)
from .best import BestEpoch
from .distributed.process_group import synchronize_batch_norms
from .objective import Objective
from .outcomes import NotFiniteError, Outcomes, diverged
from .report import Report
from .settings import Settings
from .signals import Interrupted, StopSignal
from .swap import swapped
from .trainer_inputs import Data, Network, Run, check_any, check_sizes
from .update import Update

CALIBRATION_BATCHES = 4  # for the first ranges of activations in quantization-aware training


class Trainer:
    """Trains a network.

    Args:
        network, data: what is trained, and on what.
        settings: how; together with these two they decide the result to the last bit.
        run: where results go, and what the training takes of the machine.

    Attributes:
        step: number of steps done.
        history: a row of metrics.csv per epoch.
    """

    def __init__(self, network: Network, data: Data, settings: Settings, run: Run):
        check_sizes(network, data, settings, run)
        self.network, self.data, self.settings, self.run = network, data, settings, run
        self.workers, self.model = run.workers, network.model
        self.steps_per_epoch = len(data.train.dataset) // settings.batch_size
        self.total_steps = settings.epochs * self.steps_per_epoch
        if settings.sync_bn:
            synchronize_batch_norms(self.model, self.workers)
        self.workers.broadcast([*self.model.parameters(), *self.model.buffers()])
        self.objective = Objective(self.model, settings, network.teacher)
        self.update = Update(network, settings, self.workers)
        # a frozen trunk keeps no activations anyway
        sparing = run.low_memory and not settings.freeze
        self._backward = low_memory.backward if sparing else low_memory.backward_at_once
        # best.pkl holds the averaged weights where there are any
        self.best = BestEpoch("ema_top1" if settings.ema else "val_top1")
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.outcomes = Outcomes(self.workers)  # of the training images in the current epoch
        self.report = Report(
            run.folder, settings.batch_size, self.steps_per_epoch, self.total_steps
        )
        self.stop = StopSignal()
        self._leave_if_alone = partial(self.stop.leave_if_alone, self.workers)
        for loader in (data.train, data.val):
            loader.while_waiting = self._leave_if_alone
        data.train.epochs = settings.epochs
        self._owners = settings, data.train.dataset.augment  # of settings that change by epoch

    def fit(self) -> None:
        """Train to the end.

        Raises Interrupted after saving when a signal to stop arrives, and UserError when the loss
        is not finite, no image can be read or a checkpoint cannot be written.
        """
        self.start()
        self.workers.under_way = True
        with self.stop, self.report.opened(self.step):
            try:
                self._fit()
            except Interrupted:  # in all workers
                self.save()
                raise

    def start(self) -> None:
        """Bring the network into training mode; in int8 form it first needs ranges."""
        quantized = self.network.quantized
        if quantized is not None and not quantized.ranges:
            quantized.calibrate(self._training_images(CALIBRATION_BATCHES), self.workers)
        self.network.computed.train(not self.settings.freeze)

    def _fit(self) -> None:
        if self.step >= self.total_steps and self.history:
            # the run may have been killed between its last checkpoint and these files
            self.run.folder.write_metrics(self.history, last=True)
        while True:
            if self.step == (len(self.history) + 1) * self.steps_per_epoch:
                with self.report.progress.evaluating():
                    self._end_epoch()
            if self.step >= self.total_steps:
                return
            if self.step % self.steps_per_epoch == 0:
                self.report.announce(changes.line(self._owners, len(self.history)))
            for images, labels in self.report.progress.watch(self.batches()):
                rate = self.learning_rate(self.step)
                self.train_step(images, labels, rate)
                self.report.advance()
                if self.step % self.run.print_freq == 0:
                    if self.outcomes.score.total == 0:
                        self.settle()
                    epochs_left = self.settings.epochs - len(self.history)
                    self.report.show(self.step, epochs_left, self.outcomes.score, rate)
                is_due = self.run.save_freq and self.step % self.run.save_freq == 0
                if is_due or self.stop.all_save:
                    self.save()

    def batches(self) -> Generator[Batch, None, None]:
        """Yield the batches of the current epoch that have not been trained on: images, labels."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        return self.data.train.training(self.settings.seed, epoch, skip=done)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step 0, 1, ..."""
        return self.settings.learning_rate(step, self.steps_per_epoch)

    def train_step(self, images: np.ndarray, labels: np.ndarray, rate: float) -> None:
        """Train on this worker's share of a batch.

        Args:
            images: [N, C, H, W].
            labels: [N].
            rate: learning rate.
        """
        counts = self.stop.agree(self.workers, len(labels))
        if counts.all():  # a worker has none left when every image of its part was bad
            rank = self.workers.rank
            epoch = self.step // self.steps_per_epoch
            now = by_epoch.at(self.settings, epoch, self.settings.epochs)
            seed = (self.settings.seed, self.step) + ((rank,) if rank else ())
            mge.random.seed(hash(seed) % 2**31)  # of dropout
            classes, augment = self.data.train.dataset.classes, self.data.train.augmentation(epoch)
            targets = labels
            if augment.mixup or augment.cutmix:
                rng = np.random.default_rng((now.seed, self.step))  # the same in all workers
                images, targets = mixing.mix(images, labels, len(classes), augment, rng)
            drops = 0.0 if now.freeze else now.drop_path  # frozen blocks compute as in evaluation
            kept = drop_path.draw(self.model, drops, counts, rank, (now.seed, self.step))
            share = float(counts[rank] / counts.mean())  # each image counts the same
            for *part, part_share in self._parts(images, labels, targets, kept, counts=counts):
                self._add_gradients(part, share * part_share, now)
            self.update.apply(self.step, rate, now.weight_decay)
        self.step += 1
        self.settle(keep=self.settings.accumulate)  # late: the device need not wait for us

    def _add_gradients(self, part: Sequence[np.ndarray], share: float, now: Settings) -> None:
        """Add the gradients of a part of the batch, whose mean loss is weighted by `share`.

        Args:
            part: images, labels, targets of the loss, and the factors of drop_path.draw.
            share: weight of the mean loss.
            now: settings of this epoch.
        """
        images, labels, targets, kept = part
        scale = share * self.update.loss_scale
        objective = self.objective.for_images(images, targets, scale, now.weight_decay)
        with mixed_precision.applied(self.settings.amp), drop_path.applied(self.model, kept):
            _, loss, logits = self._backward(
                self.network.computed, self.update.grad_manager, mge.Tensor(images), objective
            )
        self.outcomes.add(self.step, loss, logits, labels)

    def _parts(self, *arrays: np.ndarray, counts: np.ndarray) -> Iterator[tuple]:
        """Split a batch into as many parts as the other workers make; see accumulation.parts."""
        if counts.all():
            yield from accumulation.parts(arrays, min(self.settings.accumulate, int(counts.min())))

    def settle(self, keep: int = 0) -> None:
        """Count the outcomes of all steps so far but the last `keep`.

        Raises UserError when a loss is not finite.
        """
        try:
            self.outcomes.count(keep)
        except NotFiniteError as error:
            raise self._diverged("loss", error.step) from None

    def _diverged(self, what: str, step: int) -> UserError:
        return diverged(what, step, step // self.steps_per_epoch + 1, self.run.folder.latest)

    def _end_epoch(self) -> None:
        """Evaluate the network and its average, and save what is best so far and the latest."""
        self.settle()
        agreement.on_weights(self.model, self.workers)
        check_any(self.outcomes.score, "training")
        self.save()  # an evaluation may outlast the time until a SIGKILL
        weights: dict[str, AbstractContextManager[None]] = {"val": nullcontext()}
        if self.update.average is not None:
            weights["ema"] = self.update.average.applied()
        scores = {}
        for name, applied in weights.items():
            with applied, swapped(self.model, self._precise_statistics()):
                scores[name] = self._evaluate()
                if self.best.column == f"{name}_top1" and self.workers.rank == 0:
                    self._save_weights(scores[name].top1)
        rate = self.learning_rate(self.step)
        changing = changes.columns(self._owners, len(self.history), self.settings.epochs)
        self.history.append(
            self.report.end_epoch(self.step, rate, self.outcomes.score, scores, changing)
        )
        self.outcomes.score = Score()
        self.save()
        if self.run.keep:  # what an earlier part of the run has kept otherwise stays
            self.run.folder.remove_epochs_but(self.best.kept(self.history, self.run.keep))
        self.run.folder.write_metrics(self.history, last=self.step >= self.total_steps)

    def _save_weights(self, top1: float) -> None:
        """Save the weights as they are where they are the best so far, or kept for a while."""
        folder, is_best = self.run.folder, self.best.improves(self.history, top1)
        files = []
        if is_best:
            files.append(folder.best)
        if self.run.keep:
            files.append(folder.of_epoch(len(self.history) + 1))
        for file in files:
            checkpoint.save(self._checkpoint(), file)

    def _evaluate(self) -> Score:
        """Score the network as it is on the validation set; raises UserError for infinite logits.

        The network is fused first, unless its int8 form is simulated: on a CPU with AVX-512 that
        makes RepVGGA0 2.7 times as fast, and MobileOneS0 28 times (32 px, one core).
        """
        int8 = self.network.quantized
        evaluated = models.to_deploy(self.model) if int8 is None else int8
        with cpu.evaluation():
            score = evaluate(evaluated, self.data.val.evaluation(), self._leave_if_alone)
        score = score.over_all(self.workers)
        check_any(score, "validation")
        if score.not_finite:
            raise UserError(
                f"the logits of {score.not_finite} validation images became infinite or not a "
                f"number after step {self.step} (epoch {len(self.history) + 1}), and "
                f"{self.run.folder.latest} holds these weights; start anew with another --tag and "
                "a lower --lr or a longer warm-up"
            )
        return score

    def _precise_statistics(self) -> dict[str, mge.Tensor]:
        """Return batch-norm statistics for the present weights; none unless asked for."""
        if not self.settings.precise_bn:
            return {}
        images = self._training_images(-(-self.settings.precise_bn // self.settings.batch_size))
        return precise_bn.statistics(self.model, images, self.workers)

    def _training_images(self, batches: int) -> Iterator[np.ndarray]:
        """Yield the images of the first batches of the epoch that `history` lacks, in parts."""
        with closing(self.data.train.training(self.settings.seed, len(self.history))) as epoch:
            for batch, labels in islice(epoch, batches):
                counts = self.stop.agree(self.workers, len(labels))
                for part, _ in self._parts(batch, counts=counts):
                    yield part

    def save(self) -> None:
        """Write latest.pkl; all workers must call it.

        Raises UserError instead of replacing the file by weights that are not finite.
        """
        asked = self.stop.all_save or self.stop.save
        self.stop.all_save = self.stop.save = False
        self.settle()
        state = (*self.model.parameters(), *self.model.buffers())
        if not all(np.isfinite(tensor.numpy()).all() for tensor in state):
            raise self._diverged("state of the network", self.step - 1)
        self.report.flush()
        contents = self._checkpoint(
            {
                "step": self.step,
                "score": asdict(self.outcomes.score),
                "history": self.history,
                **self.update.state_dict(),
                **self.best.state_dict(),
                **resume.record(self.settings, self.data),
            }
        )
        if self.workers.rank == 0:
            checkpoint.save(contents, self.run.folder.latest)
        if asked:
            self.report.announce(f"SIGUSR1: saved {self.run.folder.latest} after step {self.step}")

    def _checkpoint(self, training: dict | None = None) -> Checkpoint:
        val, quantized = self.data.val, self.network.quantized
        ranges = quantized and quantized.ranges
        return checkpoint.of_model(
            self.model, val.preprocessing, val.dataset.classes, training, ranges
        )

    def resume(self, saved: Checkpoint, has_best: bool = True) -> None:
        """Go on where `saved`, a latest.pkl whose weights the model already has, was written.

        `has_best` is whether the best.pkl of that run is there too.

        Raises UserError when it is of another run; see resume.check.
        """
        warnings = resume.check(saved, self.settings, self.data, self.run.extend)
        state = saved.training
        assert state is not None  # resume.check refuses weights alone
        self.step, self.history = state["step"], state["history"]
        self.outcomes.score = Score(**state["score"])
        self.update.load_state_dict(state)
        if self.network.quantized is not None:
            assert saved.activation_ranges is not None  # resume.check: that run had --qat too
            self.network.quantized.ranges = dict(saved.activation_ranges)
        missing = self.best.load_state_dict(state, has_best)
        for warning in (*warnings, *filter(None, [missing])):
            self.run.folder.log(warning)
