"""Commands that train and evaluate semantic precoding."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ..errors import ScenarioError
from .common import INTERRUPTED, JsonFlag, OverwriteFlag, err, new_folder, out, say
from .models import evaluate_app, train_app
from .progress import share_progress, training_progress
from .training import (
    ConfigOption,
    DeviceOption,
    ListFlag,
    MinutesOption,
    ResumeFlag,
    list_configs,
    needed,
    settings_text,
    tell_trained,
)

if TYPE_CHECKING:
    from ..models.cards import Card, Metric
    from ..models.semantic.images import Collection

PicturesOption = Annotated[
    Path | None,
    typer.Option(
        "--pictures",
        help="Folder, .zip or .tar of photographs; default: pictures that are drawn, good for a try alone.",
    ),
]


@train_app.command(
    "semantic",
    epilog="Examples: semair train semantic --config lab-coder --pictures photos | semair train semantic --config "
    "lab --pictures photos.zip --minutes 90 | semair train semantic --config lab --pictures photos --resume | "
    "semair train semantic --config lab-e2e",
)
def train_semantic(
    config: ConfigOption = None,
    pictures: PicturesOption = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where model, card and curve go; default runs/semantic-NAME.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Weights to begin with instead of the configuration's: a name or a folder.")
    ] = None,
    device: DeviceOption = "cpu",
    minutes: MinutesOption = None,
    resume: ResumeFlag = False,
    overwrite: OverwriteFlag = False,
    show_configs: ListFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a network that sends pictures to several users, end to end over channels drawn afresh in every step.

    lab-e2e is the one for digital pictures: an autoencoder for bits, which needs no pictures.

    Ctrl-C leaves a checkpoint, from which --resume goes on exactly as if nothing had been.
    """
    from ..models.semantic import autoencoder_train
    from ..models.semantic.train import load_config, shipped_configs, train

    bits = autoencoder_train.shipped_configs()
    if show_configs:
        found = {name: load_config(name).description for name in shipped_configs()}
        list_configs(found | {name: autoencoder_train.load_config(name).description for name in bits}, as_json)
        return
    config = needed(config, [*shipped_configs(), *bits])
    command = f"semair train semantic --config {config}"
    if config in bits or _task(config) == autoencoder_train.TASK:
        if start is not None or pictures is not None:
            raise ScenarioError(f"{config} trains on bits alone: leave out --start and --pictures")
        settings = autoencoder_train.load_config(config)
        place = folder or Path("runs") / f"semantic-{settings.name}"
        with training_progress(quiet=as_json) as on_progress:
            done = autoencoder_train.train(
                settings,
                place,
                device=device,
                minutes=minutes,
                resume=resume,
                overwrite=overwrite,
                on_progress=on_progress,
                command=command + settings_text(minutes, device),
            )
        tell_trained(done, place, as_json, _show_bits)
        return
    chosen = load_config(config)
    if start is not None:
        chosen = chosen.model_copy(update={"start": start})
        command += f" --start {start}"
    if pictures is not None:
        command += f" --pictures {pictures}"
    place = folder or Path("runs") / f"semantic-{chosen.name}"
    photographs = _collection(pictures, as_json)
    with training_progress(quiet=as_json) as on_progress:
        done = train(
            chosen,
            place,
            photographs,
            device=device,
            minutes=minutes,
            resume=resume,
            overwrite=overwrite,
            on_progress=on_progress,
            command=command + settings_text(minutes, device),
        )
    tell_trained(done, place, as_json, _show_pictures)


def _task(config: str) -> str:
    """Task that a file names; nothing where it cannot be read, which whoever loads it will say."""
    try:
        return str(tomllib.loads(Path(config).read_text(encoding="utf-8")).get("task", ""))
    except (OSError, ValueError):
        return ""


def _show_pictures(card: Card) -> None:
    titles = {"psnr_db": ("PSNR in dB", 2), "ms_ssim": ("MS-SSIM", 4)}
    _show(card, "pictures never seen, over SNR", lambda metric: (*titles[metric.name], metric.conditions["csi"]))


def _show_bits(card: Card) -> None:
    titles = {"information": "autoencoder", "information_of_qam": "QAM and zero forcing"}

    def of(metric: Metric) -> tuple[str, int, str]:
        return f"{titles[metric.name]}, {metric.conditions['bits_per_symbol']} bits", 3, metric.conditions["csi"]

    _show(card, "information in bits per symbol, over SNR", of)


def _show(card: Card, title: str, line: Callable[[Metric], tuple[str, int, str]]) -> None:
    """Metrics as a table over SNR; `line` tells in which line a metric belongs: name, digits, CSI."""
    snrs = list(dict.fromkeys(metric.conditions["snr_db"] for metric in card.metrics))
    table = Table("", "CSI", *(f"{snr:g} dB" for snr in snrs), title=title)
    for name, digits, csi in dict.fromkeys(map(line, card.metrics)):
        mine = [metric for metric in card.metrics if line(metric) == (name, digits, csi)]
        values = {metric.conditions["snr_db"]: metric.value for metric in mine}
        table.add_row(name, csi, *(f"{values[snr]:.{digits}f}" for snr in snrs))
    out.print(table)


@evaluate_app.command(
    "semantic",
    epilog="Examples: semair evaluate semantic --quick | semair evaluate semantic --pictures photos --lpips weights "
    "--sweep snr | semair evaluate semantic -m lab -m lab-swin-rzf -m lab-swin-rzf+wmmse --no-digital",
)
def evaluate_semantic(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Shipped weights or folders; +wmmse or +rzf behind a name changes the precoding "
            "matrix; default all that fit.",
        ),
    ] = None,
    pictures: PicturesOption = None,
    lpips: Annotated[
        str | None,
        typer.Option(
            metavar="<path>|torchmetrics",
            help="Folder with the weights of LPIPS (SqueezeNet 1.1, v0.1), or torchmetrics: its own, where it and "
            "torchvision are installed; default: no LPIPS.",
        ),
    ] = None,
    sweep: Annotated[list[str] | None, typer.Option(help="snr, snr-fed-back, csi, users; default all.")] = None,
    drops: Annotated[int | None, typer.Option(help="Drops of a condition.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 1,
    digital: Annotated[
        bool, typer.Option("--digital/--no-digital", help="HEVC pictures with LDPC and QAM beside the networks.")
    ] = True,
    folder: Annotated[Path | None, typer.Option(help="For the results; default runs/evaluate-semantic-TIME.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer conditions and drops.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare picture downlinks on the same pictures, channels and noise: over SNR, quality of CSI, number of users.

    Leaves evaluation.json, quality.png and contact-sheet.png. Ctrl-C keeps what is done.
    """
    from ..flowgraphs import semantic_figures as figures
    from ..models.semantic import evaluate
    from ..models.semantic.downlink import DownlinkConfig
    from ..models.semantic.metrics import lpips_metric

    known = evaluate.sweeps(quick)
    for name in sweep or ():
        if name not in known:
            raise ScenarioError(f"--sweep {name!r} is unknown; choose among: {', '.join(known)}")
    chosen = [known[name] for name in sweep or known]
    config = DownlinkConfig()
    contenders = evaluate.contenders(model, config)
    n_drops = drops or (16 if quick else 200)
    if digital:
        from ..flowgraphs.semantic_digital import digital_contenders

        contenders += digital_contenders()
    metric = lpips_metric(lpips) if lpips is not None else None
    place = folder or new_folder("evaluate-semantic")
    photographs = _collection(pictures, as_json)
    settings: dict[str, Any] = {
        "drops": n_drops,
        "seed": seed,
        "pictures": photographs.name,
        "contenders": ", ".join(one.name for one in contenders),
    }
    results: dict[str, list[Any]] = {one.name: [] for one in chosen}
    sheet: dict[str, Any] | None = None
    total, done, interrupted = sum(len(one.conditions) for one in chosen) + 1, 0, False
    try:
        with share_progress("evaluating", quiet=as_json) as on_progress:
            evaluation = evaluate.Evaluation(contenders, config, photographs, n_drops, seed, metric)
            on_progress("contact sheet", 0.0)
            sheet = evaluation.sheet(figures.SHEET_SNR_DB)
            done = 1
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
    figures.write_evaluation(content, sheet, place)
    if as_json:
        print(json.dumps({"folder": str(place), **content}))
    else:
        for name, rows in content["sweeps"].items():
            for quality in figures.shown(rows):
                header, *lines = figures.table(name, rows, quality)
                table = Table(*header, title=f"{escape(figures.TITLES[quality])} over {escape(name)}")
                for line in lines:
                    table.add_row(*line)
                out.print(table)
        say(f"results     {place}")
    if interrupted:
        err.print("everything up to here is in the folder")
        raise typer.Exit(INTERRUPTED)


def _collection(place: Path | None, quiet: bool) -> Collection:
    from ..models.semantic.images import Collection

    with share_progress("reading", quiet=quiet) as on_progress:
        on_progress("pictures", 0.0)
        found = Collection.drawn() if place is None else Collection.read(place)
    if found.skipped:
        name, why = next(iter(found.skipped.items()))
        err.print(
            f"{len(found.skipped)} pictures are left out, the first is {name}: {why}", markup=False, soft_wrap=True
        )
    return found
