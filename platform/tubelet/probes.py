"""Probe frozen features: how well small heads tell videos apart by them, as a table, a picture and a run in MLflow.

Heads learn from the training videos, the best is chosen on a share of them that none has learned from, and only then
the held-out videos are asked: what is reported has chosen nothing.

Runs in the job's own process, on its GPU if it has one (``ray job submit --entrypoint-num-gpus 1``).
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import save_file

from clips import Manifest, storage
from tubelet import cluster, config, probing, terminal, tracking
from tubelet.config import UserError
from tubelet.evaluation.metrics import Accuracy, accuracy, one_class_each
from tubelet.feature_set import FeatureSet
from tubelet.probing import Candidate, Sides
from tubelet.recipes import Probe

_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#cf222e")
_INK, _QUIET = "#1f2328", "#59636e"


@dataclass(frozen=True)
class Result:
    """Of one probe on one set of features."""

    features: str
    probe: str
    chosen: Candidate
    selected: float
    """Top-1 on the videos that it was chosen by."""
    accuracy: Accuracy
    """On the held-out videos."""
    tried: list[tuple[dict[str, float], float]]
    """Every setting, with its top-1 on the videos to choose by."""

    @property
    def setting(self) -> str:
        """What was chosen, for people."""
        return ", ".join(f"{key} {value:g}" for key, value in self.chosen.setting.items())

    @property
    def error(self) -> float:
        """Standard error of top-1, from the number of videos."""
        share = self.accuracy.top1
        return float(np.sqrt(share * (1 - share) / self.accuracy.videos))

    @property
    def at_edge(self) -> str | None:
        """Which end of the grid was chosen, of more than two values, if it was one."""
        key = next(iter(self.chosen.setting))
        values = sorted({setting[key] for setting, _ in self.tried})
        if len(values) < 3 or self.chosen.setting[key] not in (values[0], values[-1]):
            return None
        end = "smallest" if self.chosen.setting[key] == values[0] else "largest"
        return f"{self.probe}.{key}: the {end} value tried was the best; another may be better"


def probe(recipe: Probe, manifest: Manifest) -> list[Result]:
    """Probe every set of features, tell the user, and keep the result.

    Raises:
        UserError: the features are not those of the manifest, it has too few labels, or MLflow cannot be used.
    """
    sets = [FeatureSet(folder, manifest) for folder in recipe.folders]
    root = storage.absolute(recipe.storage)
    uri = tracking.resolve_uri(root)
    results: list[Result] = []
    for name, features in zip(_names(recipe.folders), sets, strict=True):
        results += _probe_one(recipe, manifest, features, name)
    terminal.table(
        (
            "features",
            "probe",
            "chosen",
            "chosen by %",
            "top-1 %",
            "s.e.",
            "top-5 %",
            "mean class %",
        ),
        [
            (
                r.features,
                r.probe,
                r.setting,
                *(
                    f"{100 * share:.1f}"
                    for share in (
                        r.selected,
                        r.accuracy.top1,
                        r.error,
                        r.accuracy.top5,
                        r.accuracy.mean_class,
                    )
                ),
            )
            for r in results
        ],
    )
    for text in dict.fromkeys(r.at_edge for r in results if r.at_edge):
        terminal.say(text)
    folder = Path(recipe.output)
    _write(folder, results)
    _log(recipe, manifest, results, folder, uri=uri, root=root)
    terminal.say(f"figures, picture and heads in {folder}")
    return results


def _names(folders: Sequence[str]) -> list[str]:
    """What to call features: the last parts of their folders' names, as many as tell them apart."""
    parts = [storage.redact(folder).rstrip("/").split("/") for folder in folders]
    for last in range(1, max(map(len, parts)) + 1):
        names = ["_".join(each[-last:]) for each in parts]
        if len({*names}) == len(names):
            return names
    raise UserError(f"features names a folder twice: {', '.join(folders)}")


def sides_of(recipe: Probe, manifest: Manifest, known: probing.Rows) -> Sides:
    """Which rows heads learn from, are chosen by, and are reported on.

    Args:
        recipe: for the shares and splits.
        manifest: with labels.
        known: rows that have features.

    Raises:
        UserError: a side has no video with one label.
    """
    _, chosen = manifest.hold_out(recipe.select)
    if manifest.splits:
        test, train = manifest.in_split(recipe.test), manifest.in_split("train", None)
    else:
        train, test = manifest.hold_out(recipe.held_out)
        # One hash decides both: the share of what is left begins where the other ends.
        wider = recipe.held_out + (1 - recipe.held_out) * recipe.select
        chosen = np.setdiff1d(manifest.hold_out(wider)[1], test)
    class_of = manifest.label_indices()
    usable = known[class_of[known] >= 0]
    sides = Sides(
        train=np.intersect1d(np.setdiff1d(train, chosen), usable),
        select=np.intersect1d(np.intersect1d(train, chosen), usable),
        test=np.intersect1d(test, usable),
        class_of=class_of,
        classes=len(manifest.classes),
    )
    for side, what in (
        ("train", "to learn from"),
        ("select", "to choose heads by (select)"),
        ("test", "to report on (test, held_out)"),
    ):
        if not len(getattr(sides, side)):
            raise UserError(
                f"{manifest.uri} has no video with one label and features {what}: its splits are "
                f"{', '.join(manifest.splits) or 'unnamed'}, {len(usable)} of {len(manifest)} rows are usable"
            )
    return sides


# --- one set of features ---------------------------------------------------------------------


def _probe_one(recipe: Probe, manifest: Manifest, features: FeatureSet, name: str) -> list[Result]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known, mean_RD = features.means()
    sides = sides_of(recipe, manifest, known)
    terminal.say(
        f"{name}: {len(sides.train)} videos to learn from, {len(sides.select)} to choose by, {len(sides.test)} to "
        f"report on, {sides.classes} classes"
    )
    every_RD = torch.zeros(len(manifest), features.width)
    every_RD[torch.from_numpy(known)] = torch.from_numpy(mean_RD)
    every_RD = every_RD.to(device)
    results: list[Result] = []
    for kind in recipe.probes:
        if kind == "knn":
            found = probing.nearest(every_RD, sides, recipe.knn.k)
        elif kind == "linear":
            with terminal.progress(f"{name} linear", recipe.linear.epochs, unit="epochs") as bar:
                found = probing.linear(
                    every_RD, sides, recipe.linear, seed=recipe.seed, told=bar.update
                )
        else:
            with terminal.progress(
                f"{name} attentive", recipe.attentive.epochs, unit="epochs"
            ) as bar:
                found = probing.attentive(
                    probing.Tokens(features),
                    features.width,
                    sides,
                    recipe.attentive,
                    seed=recipe.seed,
                    device=device,
                    told=bar.update,
                )
        results.append(_result(name, kind, found, sides))
    return results


def _result(name: str, kind: str, found: Sequence[Candidate], sides: Sides) -> Result:
    chosen = probing.best(found, sides)
    truth_VK = one_class_each(sides.class_of[sides.test], classes=sides.classes)
    return Result(
        name,
        kind,
        chosen,
        chosen.top1(sides),
        accuracy(chosen.test_RK.numpy(), truth_VK),
        [(each.setting, each.top1(sides)) for each in found],
    )


# --- what is kept ----------------------------------------------------------------------------


def _write(folder: Path, results: Sequence[Result]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    told = [
        {
            "features": r.features,
            "probe": r.probe,
            "chosen": r.chosen.setting,
            "chosen_by_top1": r.selected,
            "videos": r.accuracy.videos,
            "top1": r.accuracy.top1,
            "top1_error": r.error,
            "top5": r.accuracy.top5,
            "mean_class": r.accuracy.mean_class,
            "tried": [{**setting, "top1": top1} for setting, top1 in r.tried],
        }
        for r in results
    ]
    (folder / "probes.json").write_text(json.dumps(told, indent=1) + "\n")
    (folder / "probes.png").write_bytes(picture(results))
    for r in results:
        if r.chosen.head is not None:
            state = {n: v.cpu().contiguous() for n, v in r.chosen.head.state_dict().items()}
            save_file(state, folder / f"{r.features}.{r.probe}.safetensors")


def picture(results: Sequence[Result]) -> bytes:
    """PNG: for each kind of probe, what every setting had right, and what was chosen."""
    kinds = list(dict.fromkeys(r.probe for r in results))
    sets = list(dict.fromkeys(r.features for r in results))
    figure = Figure(figsize=(4.2 * len(kinds) + 0.6, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(every, kinds, strict=True):
        key = "k" if kind == "knn" else "lr"
        for r in (r for r in results if r.probe == kind):
            colour = _COLOURS[sets.index(r.features) % len(_COLOURS)]
            line = sorted(
                (x, max(top1 for s, top1 in r.tried if s[key] == x))
                for x in {setting[key] for setting, _ in r.tried}
            )
            axes.plot(*zip(*line, strict=True), color=colour, marker=".", label=r.features)
            at = r.chosen.setting[key]
            axes.errorbar(
                [at],
                [r.accuracy.top1],
                [r.error],
                color=colour,
                marker="*",
                markersize=13,
                capsize=3,
            )
        axes.set_xscale("log")
        axes.set_title(kind, color=_INK)
        axes.set_xlabel("neighbours" if kind == "knn" else "peak learning rate", color=_QUIET)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_ylabel("top-1", color=_QUIET)
    every[0].yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    every[0].legend(fontsize=8)
    figure.suptitle(
        "dots: videos to choose by, best weight decay; star: held-out videos, one standard error",
        fontsize=9,
        color=_QUIET,
    )
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _log(
    recipe: Probe,
    manifest: Manifest,
    results: Sequence[Result],
    folder: Path,
    *,
    uri: str,
    root: str,
) -> None:
    names = list(dict.fromkeys(r.features for r in results))
    parameters: dict[str, Any] = config.flatten(recipe)
    run_id = tracking.start_run(
        uri,
        storage=root,
        job="probe",
        name=names[0],
        parameters=parameters,
        recipe=config.to_yaml(recipe),
        manifest=manifest.hash,
        revision=cluster.revision(),
    )
    client = tracking.connect(uri)
    for r in results:
        for metric in ("top1", "top5", "mean_class"):
            value = getattr(r.accuracy, metric)
            client.log_metric(run_id, f"{r.probe}/{metric}", value, step=names.index(r.features))
    tracking.log_artifacts(uri, run_id=run_id, folder=folder)
    tracking.finish_run(uri, run_id=run_id, status="FINISHED")
