"""Commands that train and evaluate models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import ScenarioError
from .common import (
    INTERRUPTED,
    JsonFlag,
    OverwriteFlag,
    app,
    err,
    new_folder,
    out,
    say,
)
from .progress import share_progress, training_progress
from .training import (
    ConfigOption,
    DeviceOption,
    ListFlag,
    MinutesOption,
    ResumeFlag,
    end_if_interrupted,
    list_configs,
    needed,
    settings_text,
    tell_trained,
)

if TYPE_CHECKING:
    from ..models.cards import Card

train_app = typer.Typer(help="Train a model.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Evaluate models beside their peers.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")


@train_app.command(
    "uad",
    epilog="Examples: semair train uad --config vpl | semair train uad --config mine.toml --folder runs/mine "
    "--minutes 30 | semair train uad --config vpl --folder runs/vpl --resume | semair train uad --config vpl-full "
    "--device cuda | semair train uad --from runs/monday --from runs/tuesday --keep-out runs/friday",
)
def train_uad(
    config: ConfigOption = None,
    folder: Annotated[Path | None, typer.Option(help="Where model, card and curve go; default runs/uad-NAME.")] = None,
    device: DeviceOption = "cpu",
    minutes: MinutesOption = None,
    recordings: Annotated[
        list[Path] | None, typer.Option("--from", help="Fine-tune with the recording of this run; repeat for more.")
    ] = None,
    keep_out: Annotated[
        list[Path] | None,
        typer.Option("--keep-out", help="Judge by this run, never trained with; default: the last of several --from."),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Fine-tuning: weights to begin with, a name such as uad-lab or a folder.")
    ] = "uad-lab",
    steps: Annotated[int, typer.Option(min=1, help="Fine-tuning: steps.")] = 600,
    share: Annotated[float, typer.Option(help="Fine-tuning: share of steps that take recorded slots.")] = 0.75,
    resume: ResumeFlag = False,
    overwrite: OverwriteFlag = False,
    show_configs: ListFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an activity detector on slots that are drawn afresh in every step.

    With --from, trained weights are fine-tuned with the slots of recorded runs, and compared with what they were on
    runs that were kept out. Ctrl-C leaves a checkpoint, from which --resume goes on exactly as if nothing had been.
    """
    if recordings:
        if config is not None or minutes is not None:
            raise ScenarioError("--from fine-tunes given --weights for some --steps; leave out --config and --minutes")
        place = folder or Path("runs") / f"{Path(weights).name}-tuned"
        _fine_tune(recordings, keep_out, weights, place, steps, share, device, resume, overwrite, as_json)
        return
    if keep_out:
        raise ScenarioError("--keep-out goes with --from, the runs to train with")
    from ..models.uad.train import load_config, shipped_configs, train

    if show_configs:
        list_configs({name: load_config(name).description for name in shipped_configs()}, as_json)
        return
    chosen = load_config(needed(config, shipped_configs()))
    place = folder or Path("runs") / f"uad-{chosen.name}"
    command = f"semair train uad --config {config}{settings_text(minutes, device)}"
    with training_progress(quiet=as_json) as on_progress:
        done = train(
            chosen,
            place,
            device=device,
            minutes=minutes,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            command=command,
        )
    tell_trained(done, place, as_json, _show_uad)


def _show_uad(card: Card) -> None:
    table = Table("preamble length", "slots", "error probability", "95 %", "missed", "false alarms")
    for metric in card.metrics:
        at = metric.conditions
        table.add_row(
            str(at["length"]),
            str(at["slots"]),
            f"{metric.value:.2e}",
            f"{metric.low:.1e} to {metric.high:.1e}",
            f"{at['missed']:.2e}",
            f"{at['false_alarms']:.2e}",
        )
    out.print(table)


def _fine_tune(
    recordings: list[Path],
    keep_out: list[Path] | None,
    weights: str,
    place: Path,
    steps: int,
    share: float,
    device: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    from ..flowgraphs.uad_slots import recorded_sets
    from ..models.uad.fine_tune import fine_tune, weights_folder

    if not keep_out and len(recordings) < 2:
        raise ScenarioError(
            "one run alone cannot be trained with and judged by: give another with --keep-out, or several with --from"
        )
    chosen = (recordings, keep_out) if keep_out else (recordings[:-1], recordings[-1:])
    source = weights_folder(weights)
    with share_progress("receiving", quiet=as_json) as on_share:
        training, judging = recorded_sets(*chosen, on_share)
    parts = ["semair train uad", *(f"--from {path}" for path in chosen[0]), *(f"--keep-out {p}" for p in chosen[1])]
    command = " ".join([*parts, f"--weights {weights} --steps {steps} --share {share:g}"])
    with training_progress(quiet=as_json) as on_progress:
        done, rows = fine_tune(
            source,
            training,
            judging,
            place,
            steps=steps,
            share=share,
            device=device,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            command=command,
        )
    if as_json:
        content = {"folder": str(place), "steps": done.steps, "finished": done.card is not None}
        print(json.dumps({**content, "comparison": [row.as_dict() for row in rows]}))
    elif done.card is not None:
        table = Table("preamble length", "slots", "before", "after", "change", "95 %", title="runs kept out")
        for row in rows:
            table.add_row(
                "all" if row.length is None else str(row.length),
                str(row.slots),
                f"{row.before.value:.2e}",
                f"{row.after.value:.2e}",
                f"{row.change.value:+.1e}",
                f"{row.change.low:+.1e} to {row.change.high:+.1e}",
            )
        out.print(table)
        overall = rows[0].change
        verdict = "better" if overall.high < 0 else "worse" if overall.low > 0 else "no different within the interval"
        say(f"after fine-tuning: {verdict}")
        say(f"model       {place}; use it with --detector {place}")
    end_if_interrupted(done, place)


@train_app.command(
    "csi",
    epilog="Examples: semair train csi --config lab | semair train csi --config mine.toml --folder runs/mine "
    "--minutes 30 | semair train csi --config lab --folder runs/lab --resume | semair train csi --config paper "
    "--traced paths.safetensors --scene munich --scene simple_street_canyon --traced-share 0.5",
)
def train_csi(
    config: ConfigOption = None,
    folder: Annotated[Path | None, typer.Option(help="Where model, card and curve go; default runs/csi-NAME.")] = None,
    traced: Annotated[
        Path | None, typer.Option(help="Take drops from this file of semair trace, too, from its training split.")
    ] = None,
    scene: Annotated[
        list[str] | None, typer.Option(help="Scene of that file; repeat for more; default: as configured, or all.")
    ] = None,
    traced_share: Annotated[
        float | None, typer.Option(help="Share of drops that are traced; default: as configured, or half.")
    ] = None,
    device: DeviceOption = "cpu",
    minutes: MinutesOption = None,
    resume: ResumeFlag = False,
    overwrite: OverwriteFlag = False,
    show_configs: ListFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a network that feeds CSI back, on drops that are drawn afresh in every step.

    Ctrl-C leaves a checkpoint, from which --resume goes on exactly as if nothing had been.
    """
    from ..models.csi.raytraced import read_paths
    from ..models.csi.train import load_config, shipped_configs, train, with_traced

    if show_configs:
        list_configs({name: load_config(name).description for name in shipped_configs()}, as_json)
        return
    chosen = load_config(needed(config, shipped_configs()))
    place = folder or Path("runs") / f"csi-{chosen.name}"
    command = f"semair train csi --config {config}"
    if traced is None and (scene or traced_share is not None):
        raise ScenarioError("--scene and --traced-share go with --traced, a file of semair trace")
    if traced is not None:
        chosen = with_traced(chosen, scene, traced_share)
        command += "".join([f" --traced {traced.name}", *(f" --scene {name}" for name in scene or ())])
        command += f" --traced-share {traced_share:g}" if traced_share is not None else ""
    command += settings_text(minutes, device)
    with training_progress(quiet=as_json) as on_progress:
        done = train(
            chosen,
            place,
            traced=None if traced is None else read_paths(traced),
            device=device,
            minutes=minutes,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            command=command,
        )
    tell_trained(done, place, as_json, _show_csi)


def _show_csi(card: Card) -> None:
    snrs = list(dict.fromkeys(metric.conditions["snr_db"] for metric in card.metrics))
    table = Table("drops", "symbols", *(f"{snr:g} dB" for snr in snrs), title="NMSE in dB over SNR, both users heard")
    for channel, length in dict.fromkeys((m.conditions["channel"], m.conditions["length"]) for m in card.metrics):
        near = {
            metric.conditions["snr_db"]: f"{metric.value:.2f}"
            for metric in card.metrics
            if (metric.conditions["channel"], metric.conditions["length"]) == (channel, length)
            and metric.conditions["neighbour"] == "near"
        }
        table.add_row(channel, str(length), *(near[snr] for snr in snrs))
    out.print(table)


@evaluate_app.command(
    "uad",
    epilog="Examples: semair evaluate uad --quick | semair evaluate uad --sweep length --sweep pool | "
    "semair evaluate uad -d cd -d runs/models/mine --slots 5000 --folder runs/mine-against-cd",
)
def evaluate_uad(
    detector: Annotated[
        list[str] | None, typer.Option("--detector", "-d", help="Names, or paths of trained weights; default all.")
    ] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(help="length, snapshots, activity, snr, channel, pool; default all.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Slots of a condition; more where errors are rare, fewer for slow detectors.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="For the results; default runs/evaluate-uad-TIME.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer conditions and slots.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare activity detectors on the same draws: over preamble length, snapshots, activity, SNR, channel and pool.

    Leaves evaluation.json, evaluation.html with all figures, and error-over-length.png. Ctrl-C keeps what is done.
    """
    from ..flowgraphs.uad_figures import PAGE_NAME, table, write_evaluation
    from ..models.uad import sweeps

    known = sweeps.sweeps(quick)
    for name in sweep or ():
        if name not in known:
            raise ScenarioError(f"--sweep {name!r} is unknown; choose among: {', '.join(known)}")
    chosen = [known[name] for name in sweep or known]
    contenders = sweeps.contenders(detector)
    evaluation = sweeps.Evaluation(contenders, slots or (100 if quick else 2000), seed)
    place = folder or new_folder("evaluate-uad")
    settings = {
        "detectors": ", ".join(one.setup.title for one in contenders),
        "slots": evaluation.n_slots,
        "seed": seed,
        "users": sweeps.Condition().n_users,
    }
    results: dict[str, list[Any]] = {one.name: [] for one in chosen}
    total, done, interrupted = sum(sum(one.slots) for one in chosen), 0.0, False
    try:
        with share_progress("evaluating", quiet=as_json) as on_progress:
            for one in chosen:
                for condition, multiple in zip(one.conditions, one.slots, strict=True):
                    text = f"{one.name}, {one.axis} {getattr(condition, one.axis)}"

                    def tell(share: float, text: str = text, done: float = done, multiple: float = multiple) -> None:
                        on_progress(text, (done + share * multiple) / total)

                    tell(0.0)
                    results[one.name] += evaluation.rows(condition, multiple, one.curves, tell)
                    done += multiple
                    write_evaluation(sweeps.as_json(results, settings), place, figures=False)
    except KeyboardInterrupt:
        interrupted = True
    content = sweeps.as_json(results, settings)
    write_evaluation(content, place)
    if as_json:
        print(json.dumps({"folder": str(place), **content}))
    else:
        for name, rows in content["sweeps"].items():
            if rows:
                header, *lines = table(name, rows)
                shown = Table(*header, title=escape(name))
                for line in lines:
                    shown.add_row(*line)
                out.print(shown)
        say(f"figures     {place / PAGE_NAME}")
    if interrupted:
        err.print("everything up to here is in the folder")
        raise typer.Exit(INTERRUPTED)


@evaluate_app.command(
    "csi",
    epilog="Examples: semair evaluate csi --quick | semair evaluate csi --numerology paper --sweep snr | "
    "semair evaluate csi -m lab -m klt -m separate -m runs/csi-mine --drops 5000 | semair evaluate csi "
    "--numerology paper --traced paths.safetensors --scene etoile",
)
def evaluate_csi(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Names of shipped weights, folders, klt (linear), separate, separate-fixed; default all that fit.",
        ),
    ] = None,
    numerology: Annotated[str, typer.Option(help="lab or paper.")] = "lab",
    sweep: Annotated[list[str] | None, typer.Option(help="ratio, snr, spacing, neighbour; default all.")] = None,
    drops: Annotated[int | None, typer.Option(help="Drops of a condition.")] = None,
    traced: Annotated[
        Path | None, typer.Option(help="Take drops from the test split of this file of semair trace.")
    ] = None,
    scene: Annotated[
        list[str] | None, typer.Option(help="Scene of that file; repeat for more; default: all of them together.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="For the results; default runs/evaluate-csi-TIME.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer conditions and drops.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare networks that feed CSI back with a linear code, and with bits behind LDPC and QAM, on the same drops.

    With --traced they get drops of places that no training has seen, and intervals are over places of 20 m. Leaves
    evaluation.json, nmse.png and sum-rate.png. Ctrl-C keeps what is done.
    """
    from ..flowgraphs import csi_separate
    from ..flowgraphs.csi_figures import FIGURE_NAME, table, write_evaluation
    from ..models.csi import coded, evaluate

    if scene and traced is None:
        raise ScenarioError("--scene goes with --traced, a file of semair trace")
    source = None if traced is None else evaluate.traced_test(traced, scene or (), numerology)
    known = evaluate.sweeps(quick, source)
    for name in sweep or ():
        if name not in known:
            raise ScenarioError(f"--sweep {name!r} is unknown; choose among: {', '.join(known)}")
    chosen = [known[name] for name in sweep or known]
    place = folder or new_folder("evaluate-csi")
    results: dict[str, list[Any]] = {one.name: [] for one in chosen}
    settings: dict[str, Any] = {"numerology": numerology, "drops": drops or (250 if quick else 1000), "seed": seed}
    if traced is not None and source is not None:
        settings["traced"] = {
            "file": traced.name,
            "sha256": source.file.sha256,
            "scenes": list(source.scenes or source.file.scenes),
        }
    total, done, interrupted = sum(len(one.conditions) for one in chosen), 0, False
    try:
        with share_progress("preparing", quiet=as_json) as on_progress:
            on_progress("preparing", 0.0)
            contenders = csi_separate.contenders(numerology, model)
            settings["contenders"] = ", ".join(one.name for one in contenders)
            config = evaluate.PRESETS[numerology]
            evaluation = evaluate.Evaluation(contenders, config, settings["drops"], seed, source=source)
            conditions = [condition for one in chosen for condition in one.conditions]
            settings["schemes"] = coded.choose_schemes(contenders, config, conditions, on_progress)
        with share_progress("evaluating", quiet=as_json) as on_progress:
            for one in chosen:
                for condition in one.conditions:
                    text = f"{one.name}, {one.axis} {getattr(condition, one.axis)}"

                    def tell(share: float, text: str = text, done: int = done) -> None:
                        on_progress(text, (done + share) / total)

                    tell(0.0)
                    results[one.name] += evaluation.rows(condition, tell)
                    done += 1
    except KeyboardInterrupt:
        interrupted = True
    content = evaluate.as_json(results, settings)
    write_evaluation(content, place)
    if as_json:
        print(json.dumps({"folder": str(place), **content}))
    else:
        for name, rows in content["sweeps"].items():
            if rows:
                header, *lines = table(name, rows)
                shown = Table(*header, title=f"NMSE in dB over {escape(name)}")
                for line in lines:
                    shown.add_row(*line)
                out.print(shown)
        say(f"results     {place / FIGURE_NAME}" if any(results.values()) else f"results     {place}")
    if interrupted:
        err.print("everything up to here is in the folder")
        raise typer.Exit(INTERRUPTED)
