"""The one training loop: asserted units in, optimizer steps out, at any world size.

Pretraining and fine-tuning are *tasks*: how to build the model and what a unit's clips lose. Everything that makes a
run exact is here, once: the constant global batch by accumulating units, gradients divided by the number of valid
clips of the step, torch's generators seeded per unit, held-out evaluation, checkpoints with their audit, stopping.

A step costs one reduction of the gradient (in exact mode one a round) and one all-reduce of a few numbers (the units'
losses, counts, the norm, rank 0's wish to report, save or stop), which is where all ranks agree on what happens next.
"""

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tubelet import checkpoint, exact, ledger, pulse, sharding
from tubelet.audit import AuditTrail
from tubelet.best import Best
from tubelet.checkpoint import CheckpointConfig
from tubelet.feed import Unit
from tubelet.loops import held_out
from tubelet.loops.bad_clips import BadClips
from tubelet.optim import OptimConfig, ShardedAdamW, clip_scale
from tubelet.saving import Saver
from tubelet.schedules import cosine, effective_lr
from tubelet.session import Outcome, Session
from tubelet.timetable import Timetable

_REPORTS_IN_FLIGHT = 2
_TRIES = 3
"""Saves in a row that may fail."""
_PAUSE_S = 2.0


class Task(Protocol):
    """What a run trains."""

    def build(self, draw: int) -> nn.Module:
        """The model at the start of a draw, the same on every rank, on the CPU."""
        ...

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """Modules to gather one at a time when the model is large."""
        ...

    def learning_rate_scales(self, model: nn.Module) -> dict[str, float]:
        """Learning-rate factors of parameters by name; those not named have 1."""
        ...

    def losses(self, model: nn.Module, unit: Unit) -> Tensor:
        """Loss of each clip of a unit, float32 [B]."""
        ...

    def held_out(self, model: nn.Module, unit: Unit) -> dict[str, Tensor]:
        """Sums over the valid clips of a held-out unit, by metric; ``clips`` is their number."""
        ...

    def export(
        self, state: Mapping[str, Tensor], draw: int, place: str, notes: Mapping[str, Any]
    ) -> None:
        """Rank 0: write a model of a draw: the last one (``place`` is ""), its ``ema``, or the ``best``."""
        ...


@dataclass(frozen=True)
class Plan:
    """The recipe's numbers that the loop goes by."""

    ledger: ledger.Ledger
    timetable: Timetable
    copies: int
    optim: OptimConfig
    warmup_steps: int
    checkpoint: CheckpointConfig
    max_bad_fraction: float
    exact: bool | None = None
    """The same bits at any world size; None: on the CPU."""
    report_every_s: float = 2.0
    patience: int | None = None
    """Evaluations without a better one after which the run ends."""


class Worker:
    """One rank's end of a run.

    Args:
        task: what is trained.
        plan: how long, how fast.
        session: where this rank stands and what feeds it.
    """

    def __init__(self, *, task: Task, plan: Plan, session: Session) -> None:
        self._task, self._plan, self._session = task, plan, session
        self._run, self._attempt, self._feed = session.run, session.attempt, session.feed
        self._device = session.device
        self._rank = dist.get_rank()
        self._audit = AuditTrail(attempt=session.attempt.number, rank=self._rank)
        self._bfloat16 = plan.optim.precision == "bfloat16" or (
            plan.optim.precision == "auto" and self._device.type == "cuda"
        )
        self._exact = self._device.type == "cpu" if plan.exact is None else plan.exact
        if self._exact:
            exact.ask_for_determinism(self._device)
        self._points: list[dict[str, Any]] = []  # what may still be lost: see _report
        self._bad = BadClips(
            self._feed.quarantine, plan.ledger, copies=plan.copies, most=plan.max_bad_fraction
        )
        self._saver = Saver(
            session.run,
            attempt=session.attempt.number,
            config=plan.checkpoint,
            committed=session.attempt.step,
        )
        self._best = Best()
        self._reported = deque([session.attempt.step], maxlen=1 + _REPORTS_IN_FLIGHT)

    def train(self) -> Outcome:
        """Run from the attempt's step to the end of the run, or until asked to stop."""
        plan, per_draw = self._plan, self._plan.ledger.steps_per_draw
        step = self._attempt.step
        model, optimizer = self._start_draw(step // per_draw)
        if step % per_draw and self._attempt.parent:
            pulse.beat(step, "load")
            copies, parent = plan.checkpoint.node_dir, self._attempt.parent
            commit = checkpoint.load(
                self._run, parent, model=model, optimizer=optimizer, node_dir=copies
            )
            self._best = Best(**commit.best)
            optimizer.set_step(step % per_draw)
        started = saved_at = reported_at = time.monotonic()
        clips = 0
        early = self._best.exhausted(plan.patience)
        if early:  # there may be less patience than there was
            self._export_last(model, optimizer, (step - 1) // per_draw)
        while step < plan.ledger.steps and not early:
            wishes = self._wishes(step + 1, saved_at=saved_at, reported_at=reported_at)
            result = self._step(model, optimizer, step, wishes)
            if not result.finite:
                self._saver.finish()
                self._report(step)
                return Outcome(
                    "diverged", step, f"the loss or its gradient is not finite at step {step + 1}"
                )
            if plan.ledger.epoch_after(step) == step + 1:
                self._share_failures()
            step += 1
            clips += int(result.clips)
            self._note(step, result.metrics)
            if plan.timetable.evaluates_after(step):
                self._note(step, self._evaluate(model, optimizer, step))
            early = self._best.exhausted(plan.patience)
            if step % per_draw == 0 or early:
                self._export_last(model, optimizer, (step - 1) // per_draw)
            last = step == plan.ledger.steps or early
            bad = self._bad.too_many(step, result.clips)
            leaving = result.stop or last or bad
            if result.save or leaving:
                unsaved = self._save(model, optimizer, step, wait=leaving)
                saved_at = time.monotonic()
                if unsaved:
                    return Outcome("unsaved", step, unsaved)
            if result.report or leaving:
                elapsed = time.monotonic() - started
                received = self._feed.take_received().metrics(elapsed)
                self._note(step, {"data/clips_per_s": clips / elapsed, **received})
                self._report(step)
                clips = 0
                started = reported_at = time.monotonic()
            if bad:
                return Outcome("bad_data", step, self._bad.diagnosis(step))
            if result.stop and not last:
                return Outcome("stopped", step)
            if step % per_draw == 0 and not last:
                model, optimizer = self._start_draw(step // per_draw)
        best = self._best
        return Outcome(
            "finished",
            step,
            f"{best.since} evaluations were no better than that of step {best.step}"
            if early
            else "",
        )

    def _start_draw(self, draw: int) -> tuple[nn.Module, ShardedAdamW]:
        self._best = Best()
        model = self._task.build(min(draw, self._plan.ledger.draws - 1)).to(self._device)
        scales = self._task.learning_rate_scales(model)
        sharding.shard(
            model, blocks=self._task.blocks(model), mesh=self._session.mesh, bfloat16=self._bfloat16
        )
        reduce = exact.OrderedReduction if self._exact else sharding.DeferredReduction
        self._reduction: sharding.DeferredReduction | exact.OrderedReduction = reduce(model)
        return model, ShardedAdamW(model, config=self._plan.optim, scales=scales)

    def _wishes(
        self, done: int, *, saved_at: float, reported_at: float
    ) -> tuple[float, float, float]:
        """Rank 0's wish to stop, save and report once ``done`` steps are done (0 on other ranks)."""
        if self._rank:
            return 0.0, 0.0, 0.0
        every, now = self._plan.checkpoint, time.monotonic()
        save = now - saved_at > every.every_minutes * 60 or any(
            steps is not None and done % steps == 0
            for steps in (every.every_steps, every.keep_every)
        )
        save |= every.keep_best > 0 and self._plan.timetable.evaluates_after(done)
        return (
            float(self._session.stop_requested()),
            float(save),
            float(now - reported_at > self._plan.report_every_s),
        )

    def _step(
        self,
        model: nn.Module,
        optimizer: ShardedAdamW,
        step: int,
        wishes: tuple[float, float, float],
    ) -> "_StepResult":
        plan = self._plan
        expected = plan.ledger.batch * plan.copies
        clips = torch.zeros((), dtype=torch.float64, device=self._device)
        losses: dict[int, Tensor] = {}
        units, first_rank = iter(self._feed.training_units(step)), self._feed.first_rank(step)
        for number in range(1, self._feed.training_rounds + 1):
            pulse.beat(step, "data")
            unit = next(units)
            pulse.beat(step, "forward")
            last = number == self._feed.training_rounds
            self._reduction.begin_round(first_rank=first_rank, last=last)
            torch.manual_seed(ledger.unit_seed(plan.ledger.seed, unit.number))
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
                losses_B = self._task.losses(model, unit)
            total = (losses_B.float() * unit.valid_B).sum()
            (total / expected).backward()
            if unit.source:
                losses[unit.number - step * plan.ledger.units_per_step] = total
            clips += unit.valid_B.sum()
            self._audit.add(step, unit)
        pulse.beat(step, "reduce")
        squares = 0.0 if self._exact else optimizer.square_sum()
        others = torch.tensor([clips, squares, *wishes], dtype=torch.float64, device=self._device)
        filled = exact.slots(losses, count=plan.ledger.units_per_step, device=self._device)
        sums = torch.cat([others, filled])
        dist.all_reduce(sums)
        count, squares, stop, save, report, *each = sums.tolist()
        total_loss = exact.sum_slots(each)
        if self._exact:
            squares = optimizer.exact_square_sum()
        correction = (
            expected / count if count else 0.0
        )  # exactly 1 unless clips were bad or padding
        norm = squares**0.5 * correction
        local, per_draw = step % plan.ledger.steps_per_draw, plan.ledger.steps_per_draw
        config = plan.optim
        lr = effective_lr(
            cosine(
                local,
                peak=config.lr,
                floor=config.min_lr,
                steps=per_draw,
                warmup_steps=plan.warmup_steps,
            ),
            plan.ledger.batch,
        )
        decay = config.weight_decay
        if config.weight_decay_end is not None:
            decay = cosine(local, peak=decay, floor=config.weight_decay_end, steps=per_draw)
        pulse.beat(step, "update")
        finite = bool(norm < float("inf")) and total_loss == total_loss
        if finite:
            scale = correction * clip_scale(norm, config.clip_grad)
            optimizer.step(lr=lr, weight_decay=decay, scale=scale)
        metrics = {
            "train/loss": total_loss / count if count else 0.0,
            "train/grad_norm": norm,
            "train/lr": lr,
            "train/weight_decay": decay,
            "data/valid_clips": count,
        }
        return _StepResult(metrics, count, finite, stop > 0, save > 0, report > 0)

    def _evaluate(self, model: nn.Module, optimizer: ShardedAdamW, done: int) -> dict[str, float]:
        """Measure held-out clips after ``done`` steps, and keep the model if it is the best so far."""

        def measure(model: nn.Module, unit: Unit) -> dict[str, Tensor]:
            pulse.beat(done, "evaluate")
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
                return self._task.held_out(model, unit)

        count = self._plan.timetable.held_out_units
        means = held_out.evaluate(measure, model, optimizer, self._feed, done=done, count=count)
        loss = means["ema_loss" if optimizer.averages else "loss"]
        self._best = self._best.after(done, loss)
        if self._plan.checkpoint.export_best and self._best.step == done:
            draw = (done - 1) // self._plan.ledger.steps_per_draw
            with optimizer.averaged() if optimizer.averages else contextlib.nullcontext():
                self._export(model, draw, "best", step=done, held_out_loss=loss)
        return {f"eval/{name}": value for name, value in means.items()}

    def _share_failures(self) -> None:
        """Tell all ranks what each has met that could not be decoded."""
        known = self._feed.quarantine
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, known.take_unshared())
        known.add(failure for each in gathered for failure in each)

    def _export_last(self, model: nn.Module, optimizer: ShardedAdamW, draw: int) -> None:
        self._export(model, draw)
        if optimizer.averages:
            with optimizer.averaged():
                self._export(model, draw, "ema")

    def _export(self, model: nn.Module, draw: int, place: str = "", **notes: Any) -> None:
        pulse.beat((draw + 1) * self._plan.ledger.steps_per_draw, "export")
        state = sharding.full_state_dict(model, keep=self._rank == 0)
        if self._rank == 0:
            self._task.export(state, draw, place, notes)
        dist.barrier()

    def _save(
        self, model: nn.Module, optimizer: ShardedAdamW, step: int, *, wait: bool
    ) -> str | None:
        """Have a checkpoint saved; why that is hopeless, or None.

        Args:
            model: sharded.
            optimizer: over its parameters.
            step: steps done.
            wait: until it is committed, trying again if it fails.
        """
        self._share_failures()
        at_once = wait or not self._plan.checkpoint.background
        for attempt in range(_TRIES):
            verdicts = [
                self._saver.begin(
                    step,
                    model=model,
                    optimizer=optimizer,
                    audit=self._audit.take(),
                    points=self._points,
                    bad=list(self._feed.quarantine.entries.values()),
                    best=asdict(self._best),
                ),
                self._saver.finish() if at_once else None,
            ]
            for verdict in verdicts:
                if verdict is not None and verdict.error is None:
                    self._note(step, {"sys/save_s": verdict.seconds})
                elif verdict is not None and self._saver.failed >= _TRIES:
                    return (
                        f"the last {_TRIES} checkpoints could not be saved in {self._run.path('checkpoints')}: "
                        f"{verdict.error}"
                    )
            if not wait or self._saver.committed == step:
                break
            time.sleep(_PAUSE_S * 2**attempt)
        self._forget()
        return None

    def _note(self, step: int, metrics: dict[str, float]) -> None:
        """Keep a point for the next report and the next commit (rank 0)."""
        if self._rank or not metrics:
            return
        if self._points and self._points[-1]["step"] == step:
            metrics = self._points.pop()["metrics"] | metrics
        self._points.append({"step": step, "metrics": metrics})

    def _report(self, step: int) -> None:
        """Hand over what was noted since the last report.

        A report is read some time after the call has returned, and lost with the workers until then: it is certain
        once two later ones went through. So commits carry the points of the last two as well.
        """
        pulse.beat(step, "report")
        self._session.report([p for p in self._points if p["step"] > self._reported[-1]])
        self._reported.append(step)
        self._forget()

    def _forget(self) -> None:
        certain = min(self._saver.committed, self._reported[0])
        self._points = [p for p in self._points if p["step"] > certain]


@dataclass(frozen=True)
class _StepResult:
    metrics: dict[str, float]
    clips: float
    finite: bool
    stop: bool
    save: bool
    report: bool
