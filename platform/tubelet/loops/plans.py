"""From a training recipe and its data to the plans that feed and loop go by; the same for all tasks."""

from clips import Manifest, Mixture
from tubelet import rows
from tubelet.items import DataPlan
from tubelet.ledger import Ledger
from tubelet.loops.optimise import Plan
from tubelet.recipes import Finetune, Pretrain
from tubelet.selection import compact
from tubelet.timetable import Timetable


def data_plan(
    recipe: Pretrain | Finetune,
    data_set: Manifest | Mixture,
    *,
    draws: tuple[rows.Rows, ...],
    held_out: rows.Rows,
    classes: int = 0,
) -> DataPlan:
    """What every decoding task needs.

    Args:
        recipe: the run's.
        data_set: its data.
        draws: the training rows of each draw, equally many.
        held_out: rows that evaluations look at, one clip each.
        classes: how many, where videos may have several labels.
    """
    ledger = Ledger(
        rows=len(draws[0]),
        epochs=recipe.schedule.epochs,
        batch=recipe.batch.size,
        micro_batch=recipe.batch.micro,
        seed=recipe.run.seed,
        draws=len(draws),
        parts=rows.parts_of(data_set, draws[0]),
    )
    timetable = Timetable(
        steps=ledger.steps,
        units_per_step=ledger.units_per_step,
        held_out_units=-(-len(held_out) // (recipe.batch.micro * recipe.data.copies)),
        evaluate_every=recipe.track.evaluate_every,
    )
    return DataPlan(
        ledger=ledger,
        timetable=timetable,
        table=data_set.local_table(rows.cache_folder()),
        rows=tuple(compact(draw, total=len(data_set)) for draw in draws),
        held_out_rows=held_out,
        copies=recipe.data.copies,
        clip=recipe.data.clip,
        decode=recipe.decode,
        frames=recipe.model.frames,
        size=recipe.model.image_size,
        cache=rows.cache_of(recipe.data),
        classes=classes,
    )


def step_plan(recipe: Pretrain | Finetune, plan: DataPlan) -> Plan:
    """What the loop goes by."""
    return Plan(
        ledger=plan.ledger,
        timetable=plan.timetable,
        copies=plan.copies,
        optim=recipe.optim,
        warmup_steps=round(
            recipe.schedule.warmup_epochs * plan.ledger.visits_per_epoch / plan.ledger.batch
        ),
        checkpoint=recipe.checkpoint,
        max_bad_fraction=recipe.data.max_bad_fraction,
        exact=recipe.elastic.exact,
        patience=recipe.schedule.patience,
    )
