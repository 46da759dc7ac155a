"""The command line. Heavy modules are imported inside the commands, so that help and errors come at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import typer

import das3d
from das3d.arguments import (
    parse_depth_unit,
    parse_duration,
    parse_keep,
    parse_modalities,
    parse_moment,
    parse_seeds,
    parse_share,
    read_key,
    texture_changes,
    words_in,
)
from das3d.choices import EngineChoice, Modality, Precision, Preset, Target
from das3d.errors import Das3dError, ModelError, explained
from das3d.printing import print_export, print_json, print_metrics, print_predictions, print_watched

app = typer.Typer(
    name="das3d",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Find defects in products from RGB + 3D scans, having seen good parts only.",
)


# What to do after Ctrl-C, of commands that go on where they were stopped.
GOES_ON = {"benchmark": "; the same command goes on", "train": "; the same command with --resume goes on"}


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Print errors that a user can mend as plain lines, without a traceback, and exit with 1 (130 when interrupted, 143
    when terminated, which ends a command in the same way: what was done is kept).
    """

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            serves = command.__name__ == "serve"  # which ends gracefully by itself
            ending = contextlib.nullcontext() if serves else _terminated_as_interrupted()
            with explained(f"das3d {command.__name__.replace('_', '-')}"), ending:
                command(*args, **kwargs)
        except Das3dError as error:
            for line in str(error).splitlines():
                print(f"error: {line}", file=sys.stderr)
            raise typer.Exit(1) from None
        except BrokenPipeError:  # whoever read our output has had enough
            raise
        except OSError as error:  # no space, no permission, a file where a folder should be
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # of PyTorch, which need not be there
                raise
            hint = "a smaller training.batch or preparation.size needs less, and so does --device cpu"
            print(f"error: the device has too little memory; {hint}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stop:
            onwards = GOES_ON.get(command.__name__, "")
            print(f"stopped{onwards}", file=sys.stderr)
            raise typer.Exit(143 if stop.args else 130) from None

    return run


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def ended_softly() -> Iterator[Callable[[], bool]]:
    """Tells whether somebody has asked to end, by Ctrl-C or SIGTERM: the work at hand is finished first. Whoever asks again
    interrupts it.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where no signal arrives
        yield lambda: False
        return

    def stop(number: int, *_: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


Category = Annotated[str | None, typer.Option(help="Which category, where DATA holds several.")]
Light = Annotated[
    int | None, typer.Option(min=0, max=5, help="Which image of an Eyecandies part is its RGB: 4, or as in training.")
]
DepthUnit = Annotated[
    str | None, typer.Option(help="Unit of the depth files: m, cm, mm, um, or metres per count such as 0.0001.")
]
FocalLength = Annotated[
    float | None, typer.Option(min=1, help="Of the camera in pixels, for areas in mm2 where files hold depth alone.")
]
MaxFalseAlarm = Annotated[
    str | None, typer.Option(help="Share of good parts that may be called defective, such as 1% or 0.01.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
EngineName = Annotated[
    EngineChoice, typer.Option(help="What computes; auto: the fastest installed one that can compute such a model.")
]
Model = Annotated[Path, typer.Argument(help="Run folder, or model file (safetensors, ONNX, OpenVINO).")]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object a part on standard output as soon as it is judged, and no more.")
]
Database = Annotated[
    str | None,
    typer.Option(envvar="DAS3D_DATABASE", help="URL of a PostgreSQL database instead of the service's SQLite file."),
]
KeepGood = Annotated[
    str | None, typer.Option(help="How long to keep the files of good parts, such as 30d; for ever by default.")
]
KeepDefective = Annotated[
    str | None, typer.Option(help="The same of defective parts, and of those of a model without a threshold.")
]
KeepRefused = Annotated[
    str | None, typer.Option(help="The same of parts that could not be judged; as long as defective ones by default.")
]
KeepRows = Annotated[
    str | None, typer.Option(help="How long to keep verdicts in the database, such as 5y; for ever by default.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Share the work among the machines of a Ray cluster: auto, HOST:PORT, or local for this one."
    ),
]


def show_version(asked: bool) -> None:
    if asked:
        print(das3d.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
@reported
def inspect(
    data: Annotated[Path, typer.Argument(help="Folder of scans, in any layout.")],
    category: Category = None,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for contact sheets, check.json and settings.toml.")
    ] = Path("inspection"),
    preset: Annotated[Preset | None, typer.Option(help="Preset to train with later; fast by default.")] = None,
    settings: Annotated[Path | None, typer.Option(help="Settings file (TOML) over the preset.")] = None,
    modality: Annotated[
        Modality | None, typer.Option(help="What the networks will see; all members that are there if left out.")
    ] = None,
    light: Light = None,
    depth_unit: DepthUnit = None,
) -> None:
    """Look at a data set before training: what it is like, which good parts are suspect, what to set."""
    depth_format = parse_depth_unit(depth_unit, data, category)
    from das3d.datacheck import check_data
    from das3d.datacheck.datasheet import print_check, write_check
    from das3d.datasets import expect_outside

    expect_outside(out, data, category)
    check = check_data(
        data, category, preset=preset, file=settings, modality=modality, light=light, depth_format=depth_format
    )
    written = write_check(check, out)
    print_check(check)
    kept = "" if written.name == "settings.toml" else "; settings.toml, which differs, is kept"
    odd = "oddest.png, " if (out / "oddest.png").is_file() else ""  # of data without suspects there is none
    print(f"parts.png, {odd}check.json and {written.name} in {out}{kept}")


@app.command()
@reported
def synth(
    data: Annotated[Path, typer.Argument(help="Folder of scans, in any layout.")],
    category: Category = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for pairs.png and recipes.json.")] = Path("synthesis"),
    count: Annotated[int, typer.Option(min=1, max=200, help="How many pairs.")] = 8,
    modality: Annotated[Modality | None, typer.Option(help="What is harmed; rgb+depth by default.")] = None,
    preset: Annotated[Preset | None, typer.Option(help="Where the settings start; fast by default.")] = None,
    settings: Annotated[Path | None, typer.Option(help="Settings file (TOML) over the preset.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as synthesis.magnitude_high=0.3; repeatable.")
    ] = None,
    textures: Annotated[Path | None, typer.Option(help="Folder of texture pictures, such as DTD.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the random numbers: another one gives other pairs.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="recipes.json of before: make its pairs again.")] = None,
    index: Annotated[int | None, typer.Option(min=0, help="Only this pair of --recipe.")] = None,
    light: Light = None,
    depth_unit: DepthUnit = None,
) -> None:
    """Harm good parts with synthetic defects, to judge by eye what training would learn from."""
    if index is not None and recipe is None:
        raise typer.BadParameter("--index needs --recipe FILE")
    told = [preset, modality, settings, textures, seed, *(change or [])]
    if recipe is not None and any(value is not None for value in told):
        raise typer.BadParameter("--recipe brings its own settings: expected none beside it")
    depth_format = parse_depth_unit(depth_unit, data, category)
    from das3d.datasets import expect_outside
    from das3d.preview import preview_again, preview_pairs
    from das3d.settings import make_settings

    expect_outside(out, data, category)
    if recipe is not None:
        preview_again(data, recipe, out, index=index, category=category, light=light, depth_format=depth_format)
        return
    chosen = make_settings(
        preset,
        modality=modality,
        seed=seed,
        file=settings,
        changes=[*(change or []), *texture_changes(textures)],
    )
    preview_pairs(data, out, chosen, count, category=category, light=light, depth_format=depth_format)


@app.command()
@reported
def train(
    data: Annotated[Path, typer.Argument(help="Folder of scans: MVTec 3D-AD, 3D-ADAM, Eyecandies, or your own.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    category: Category = None,
    modality: Annotated[Modality | None, typer.Option(help="What the networks see; rgb+depth by default.")] = None,
    preset: Annotated[Preset | None, typer.Option(help="Where the settings start; fast by default.")] = None,
    settings: Annotated[Path | None, typer.Option(help="Settings file (TOML) over the preset.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as synthesis.drop=0.3; repeatable.")
    ] = None,
    textures: Annotated[
        Path | None, typer.Option(help="Folder of texture pictures, such as DTD; without it textures are generated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, synthesis and augmentation.")] = None,
    max_false_alarm: MaxFalseAlarm = None,
    device: Device = "auto",
    processes: Annotated[int, typer.Option(min=1, help="Devices, or CPU processes, that share each batch.")] = 1,
    budget: Annotated[str | None, typer.Option(help="Time for training, such as 20m, 1h or 90s.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out, by its settings.")] = False,
    light: Light = None,
    depth_unit: DepthUnit = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Write to an experiment tracker as well: tensorboard or mlflow; repeatable.")
    ] = None,
) -> None:
    """Train a detector on good parts."""
    seconds = None if budget is None else parse_duration(budget)
    depth_format = parse_depth_unit(depth_unit, data, category)
    from das3d.settings import make_settings

    changes = [*(change or []), *texture_changes(textures)]
    if max_false_alarm is not None:
        changes.append(f"score.max_false_alarm={parse_share(max_false_alarm)}")
    told = preset is not None or modality is not None or seed is not None or settings is not None or bool(changes)
    chosen = make_settings(
        preset,
        modality=modality,
        seed=seed,
        file=settings,
        changes=changes,
    )
    from das3d.run import holds_run  # loads PyTorch, which takes seconds: a wrong setting is told before
    from das3d.run import train as run

    quieten_lightning()
    if resume and not holds_run(out):
        print(f"{out}: no checkpoint there, so a new training begins")
    run(
        data, out, category=category, settings=chosen if told else None, device=device, processes=processes,
        budget=seconds, resume=resume, light=light, depth_format=depth_format, track=track or (),
    )  # fmt: skip


@app.command()
@reported
def evaluate(
    run: Model,
    data: Annotated[Path, typer.Option(help="Folder of scans with test parts.")],
    category: Category = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Where to write; evaluation in the run folder by default.")
    ] = None,
    device: Device = "auto",
    engine: EngineName = "auto",
    light: Light = None,
    depth_unit: DepthUnit = None,
) -> None:
    """Compare a model with the ground truth of test parts."""
    depth_format = parse_depth_unit(depth_unit, data, category)
    from das3d.detector import MODEL_FILE, load
    from das3d.evaluation import evaluate as score

    detector = load(run, device, engine)
    # What another model file than the run's own finds lies beside what that one found, not in its place.
    name = "evaluation" if run.is_dir() or run.name == MODEL_FILE else f"evaluation_{run.name.replace('.', '_')}"
    folder = out or (run if run.is_dir() else run.parent) / name
    metrics = score(detector, data, folder, category=category, light=light, depth_format=depth_format)
    if out is None and run.is_dir():
        record_metrics(run, detector, metrics)
    print_metrics(metrics, folder)


@app.command()
@reported
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[Path | None, typer.Option(help="Where the evaluated scans are now, if they have moved.")] = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="HTML file to write; RUN/report.html by default.")
    ] = None,
    parts: Annotated[int, typer.Option(min=1, help="Show no more parts than this, the worst mistakes first.")] = 200,
    device: Device = "auto",
) -> None:
    """Show a run in one HTML file: figures, curves and every part, also in 3D. It opens from disk, without a network."""
    if not run.is_dir():
        raise ModelError(f"{run}: expected a run folder, found {'a file' if run.exists() else 'nothing'}")
    from das3d.detector import load
    from das3d.report import make_report

    file = out or run / "report.html"
    shown = make_report(load(run, device), run, file, data=data, most=parts)
    print(f"{file}: {shown} parts, {file.stat().st_size / 1e6:.1f} MB")
    if not shown:
        print(f"nothing has been evaluated yet; das3d evaluate {run} --data DATA gives the figures")


@app.command()
@reported
def predict(
    run: Model,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for scores.csv, regions.json, maps and overlays.")],
    rgb: Annotated[Path | None, typer.Option(help="RGB image of one part.")] = None,
    depth: Annotated[Path | None, typer.Option(help="Depth or points of one part.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of many parts, in any layout.")] = None,
    device: Device = "auto",
    engine: EngineName = "auto",
    light: Light = None,
    depth_unit: DepthUnit = None,
    ray: RayAddress = None,
    focal_length: FocalLength = None,
    as_json: AsJson = False,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit with 0 where all parts are good, 3 where some are defective, 1 on errors."),
    ] = False,
) -> None:
    """Score new parts: one by --rgb and --depth, or many by --data."""
    if (data is None) == (rgb is None and depth is None):
        raise typer.BadParameter("expected either --rgb and/or --depth of one part, or --data FOLDER of many")
    depth_format = parse_depth_unit(depth_unit, data)
    from das3d.detector import load
    from das3d.prediction import predict_folder, predict_part
    from das3d.streaming import inspect_on

    if ray is not None and data is None:
        raise typer.BadParameter("--ray shares many parts; expected --data FOLDER with it")
    if light is not None and data is None:
        raise typer.BadParameter("--light chooses among the images of parts in a data set; expected --data FOLDER with it")
    detector = load(run, device, engine)
    if exit_code and detector.threshold is None:
        raise ModelError(f"{run}: expected a model with a threshold for --exit-code, found one that gives no verdict")
    tell = partial(print_json, to=sys.stdout) if as_json else None
    how: dict[str, Any] = {"depth_format": depth_format, "focal_length": focal_length, "tell": tell}
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        if data is not None and ray is not None:
            with cluster_at(ray) as cluster:
                inspect = partial(inspect_on, cluster, (run, device, engine))
                results = predict_folder(detector, data, out, **how, light=light, inspect=inspect)
        elif data is not None:
            results = predict_folder(detector, data, out, **how, light=light)
        else:
            results = [predict_part(detector, rgb, depth, out, **how)]
        print_predictions(results, out, detector)
    if exit_code and any(result.verdict == "defective" for result in results):
        raise typer.Exit(3)


@app.command()
@reported
def watch(
    run: Model,
    data: Annotated[Path, typer.Option(help="Folder that files come into, such as 0005_rgb.png and 0005_depth.png.")],
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for scores.csv, regions.jsonl, and maps and overlays by day.")
    ],
    settle: Annotated[str, typer.Option(help="How long the files of a part must stand still, such as 2s.")] = "2s",
    once: Annotated[bool, typer.Option("--once", help="Judge what is there now and end.")] = False,
    device: Device = "auto",
    engine: EngineName = "auto",
    depth_unit: DepthUnit = None,
    focal_length: FocalLength = None,
    as_json: AsJson = False,
) -> None:
    """Judge parts as a camera drops them into a folder, each once; Ctrl-C ends it after the part at hand."""
    seconds = parse_duration(settle, "--settle")
    depth_format = parse_depth_unit(depth_unit, data)
    from das3d.detector import load, model_hash
    from das3d.watching import watch as watched

    detector = load(run, device, engine)
    tell = partial(print_json, to=sys.stdout) if as_json else None
    with ended_softly() as stopping, contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        results = watched(
            detector, data, out, model=model_hash(run), settle=seconds, once=once, depth_format=depth_format,
            focal_length=focal_length, stopping=stopping,
        )  # fmt: skip
        print_watched(results, out, detector, tell)


@app.command()
@reported
def drift(
    run: Model,
    scores: Annotated[Path | None, typer.Option(help="scores.csv that predict or watch wrote.")] = None,
    inspections: Annotated[Path | None, typer.Option(help="Or the folder of a service, its --out.")] = None,
    database: Database = None,
    since: Annotated[
        str | None, typer.Option(help="With --inspections: only parts from this moment on, such as 2026-11-20 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same before this moment.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Look at so many of the last parts alone.")] = None,
) -> None:
    """Say whether parts still look like the held-out good ones that the threshold rests on; exit with 3 where not."""
    if (scores is None) == (inspections is None):
        raise typer.BadParameter("expected either --scores FILE or --inspections FOLDER")
    if inspections is None and (since or until):
        raise typer.BadParameter("--since and --until tell of inspections; expected --inspections FOLDER with them")
    begin, end = parse_moment(since, "--since"), parse_moment(until, "--until")
    from das3d.detector import load, model_hash
    from das3d.drift import drift_in

    threshold = load(run, "cpu").threshold
    if scores is not None:
        found = drift_in(run, threshold, scores, last=last)
    elif inspections is not None:
        from das3d.service.drift import drift_in_inspections

        found = drift_in_inspections(
            run, model_hash(run), threshold, inspections, database, since=begin, until=end, last=last
        )
    for line in found.explain():
        print(line)
    if found.seen:
        raise typer.Exit(3)


@app.command()
@reported
def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder or model file.")],
    data: Annotated[
        Path | None, typer.Option(help="Good parts; without them the rate is changed by the scores in the model.")
    ] = None,
    inspections: Annotated[
        Path | None, typer.Option(help="Or the folder of a service, its --out: the parts there that are marked good.")
    ] = None,
    database: Database = None,
    max_false_alarm: MaxFalseAlarm = None,
    merge: Annotated[bool, typer.Option("--merge", help="Keep the scores in the model and add the new ones.")] = False,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the score, such as score.turn=0; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Model file to write; by default the model itself is changed, and the one before kept beside it.",
        ),
    ] = None,
    category: Category = None,
    device: Device = "auto",
    light: Light = None,
    depth_unit: DepthUnit = None,
) -> None:
    """Set a model's threshold anew, by good parts that it was not trained on or for another rate of false alarms.

    The model is changed in place unless --out names another file; the one before is kept beside it.
    """
    if inspections is not None and (data, light, depth_unit) != (None, None, None):
        raise typer.BadParameter("--inspections brings its own scans; expected no --data, --light and --depth-unit with it")
    source = data or inspections
    if source is None and (max_false_alarm is None or merge or change):
        raise typer.BadParameter("expected --data GOODPARTS, --max-false-alarm RATE or both; --merge and --set need --data")
    if source is None and (category, light, depth_unit) != (None, None, None):
        raise typer.BadParameter("--category, --light and --depth-unit tell how parts are read; expected --data with them")
    rate = None if max_false_alarm is None else parse_share(max_false_alarm)
    depth_format = parse_depth_unit(depth_unit, data, category)
    from das3d.calibration import calibrate as calibrated
    from das3d.calibration import expect_no_weaker, keep_before
    from das3d.console import warn
    from das3d.detector import load, model_file
    from das3d.engines import EXPORTED

    if run.suffix in EXPORTED:
        raise ModelError(
            f"{run}: expected a model as it was trained, found an exported one; calibrate that and export again"
        )
    detector, target = load(run, device), out or model_file(run)
    if target.suffix in EXPORTED:
        raise ModelError(f"--out {target}: expected a name for a model as it was trained, found one of an exported model")
    parts = None
    if inspections is not None:
        from das3d.service.marked import marked_good

        parts = marked_good(detector, inspections, database, model=category)
    after = calibrated(
        detector, source, max_false_alarm=rate, merge=merge, changes=change or (), category=category, light=light,
        depth_format=depth_format, parts=parts,
    )  # fmt: skip
    if out is None:
        expect_no_weaker(target, detector.threshold, after.threshold)
    before = keep_before(target) if target.is_file() else None
    after.save(target)
    if detector.threshold is not None:
        print(f"before: {detector.threshold.describe()}")
    print(*(after.threshold.explain() if after.threshold else ()), sep="\n")
    print(f"written to {target}; the weights are the same")
    if before is not None:
        print(f"the model of before is kept as {before}; to go back, rename it to {target.name}")
    beside = (file for file in target.parent.iterdir() if file.name.startswith(target.stem))  # names may hold [ or *
    for exported in sorted(file for file in beside if file.suffix in EXPORTED):
        warn(f"{exported}: exported before, so with the threshold of before; das3d export writes it anew")


@app.command()
@reported
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Run folders or model files, each as PATH or NAME=PATH.")
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for maps, scans and the database.")] = Path(
        "inspections"
    ),
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for all of this machine's addresses.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    database: Database = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with a key that every request must show; or set DAS3D_API_KEY.")
    ] = None,
    keep_scans: Annotated[bool, typer.Option(help="Keep uploaded files, to look at past parts again.")] = True,
    keep_good: KeepGood = None,
    keep_defective: KeepDefective = None,
    keep_refused: KeepRefused = None,
    keep_rows: KeepRows = None,
    queue: Annotated[int, typer.Option(min=1, help="Inspections under way at once; further ones get 429.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Parts computed together.")] = 8,
    max_upload: Annotated[float, typer.Option(min=0.001, help="MiB of one request.")] = 64,
    max_pixels: Annotated[float, typer.Option(min=0.001, max=80, help="Million pixels of one scan.")] = 16,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, help="Most seconds that an upload may take, and then again the inspection.")
    ] = 30,
    device: Device = "auto",
    engine: EngineName = "auto",
    depth_unit: DepthUnit = None,
    focal_length: FocalLength = None,
) -> None:
    """Inspect parts over HTTP, with a page for people at /."""
    depth_format = parse_depth_unit(depth_unit)
    key = read_key(api_key_file)
    keep = parse_keep(keep_good, keep_defective, keep_refused, keep_rows)
    from das3d.service import Limits
    from das3d.service import serve as run

    limits = Limits(queue, batch, round(max_upload * (1 << 20)), round(max_pixels * 1e6), max_seconds)
    run(
        models, out, host=host, port=port, database=database, key=key, keep_scans=keep_scans, keep=keep, limits=limits,
        device=device, engine=engine, depth_format=depth_format, focal_length=focal_length,
    )  # fmt: skip


@app.command()
@reported
def prune(
    out: Annotated[Path, typer.Argument(help="Folder of a service, its --out.")],
    database: Database = None,
    keep_good: KeepGood = None,
    keep_defective: KeepDefective = None,
    keep_refused: KeepRefused = None,
    keep_rows: KeepRows = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove past inspections of a service that are older than they shall be kept; the service may run meanwhile."""
    keep = parse_keep(keep_good, keep_defective, keep_refused, keep_rows)
    from das3d.service.retention import prune_folder

    removed = prune_folder(out, database, keep, dry_run=dry_run)
    print(f"{'would remove' if dry_run else 'removed'} {removed.describe()}")
    if removed.stuck is not None:
        raise Das3dError(f"{removed.stuck}: expected a folder that can be removed; it is tried again next time")


@app.command()
@reported
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or safetensors file.")],
    to: Annotated[Target, typer.Option(help="One ONNX file, or an OpenVINO IR (.xml and .bin).")] = "onnx",
    precision: Annotated[
        Precision, typer.Option(help="fp16: half the size; int8: 40 % of the size and faster, calibrated on good parts.")
    ] = "fp32",
    out: Annotated[Path | None, typer.Option(help="File to write; beside the trained model by default.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Parts to check and calibrate with; the training data by default.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, kept in the file.")] = "",
    max_changed: Annotated[
        str, typer.Option(help="Share of verdicts that fp16 or int8 may change, or nothing is written.")
    ] = "5%",
) -> None:
    """Export a model to run without PyTorch, and check it against the trained one."""
    changed = parse_share(max_changed, "--max-changed", ends=True)
    from das3d.exporting import export as write

    print_export(write(run, to, precision=precision, out=out, data=data, licence=licence, max_changed=changed))


@app.command()
@reported
def benchmark(
    data: Annotated[Path, typer.Argument(help="Folder of scans with test parts: a data set, or one category of it.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for all runs and tables; give it again to go on.")],
    categories: Annotated[str | None, typer.Option(help="Which, such as bagel,tire; all by default.")] = None,
    modalities: Annotated[str, typer.Option(help="What the networks see, such as rgb+depth,rgb,depth.")] = "rgb+depth",
    seeds: Annotated[str, typer.Option(help="One training for each.")] = "0,1,2",
    preset: Annotated[Preset | None, typer.Option(help="Where the settings start; fast by default.")] = None,
    settings: Annotated[Path | None, typer.Option(help="Settings file (TOML) over the preset.")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, such as synthesis.drop=0.3; repeatable.")
    ] = None,
    variants: Annotated[
        Path | None, typer.Option(help="TOML file of named variants of the settings, such as benchmarks/ablation.toml.")
    ] = None,
    textures: Annotated[Path | None, typer.Option(help="Folder of texture pictures, such as DTD.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for each training, such as 60m; or by iterations.")] = None,
    device: Device = "auto",
    light: Light = None,
    depth_unit: DepthUnit = None,
    ray: RayAddress = None,
) -> None:
    """Train and evaluate many combinations and set the figures beside published ones."""
    seconds = None if budget is None else parse_duration(budget)
    depth_format = parse_depth_unit(depth_unit, data)
    from das3d.benchmark import Variant, make_plan, read_variants
    from das3d.benchmark import benchmark as run
    from das3d.settings import make_settings

    changes = [*(change or []), *texture_changes(textures)]
    sets, published = ({"": []}, {}) if variants is None else read_variants(variants)
    recipes = tuple(
        Variant(name, make_settings(preset, file=settings, changes=[*changes, *more]), published.get(name, {}))
        for name, more in sets.items()
    )
    plan = make_plan(
        data, out, variants=recipes, categories=None if categories is None else words_in(categories, "--categories"),
        modalities=parse_modalities(modalities), seeds=parse_seeds(seeds), budget=seconds, device=device,
        light=light, depth_format=depth_format,
    )  # fmt: skip
    quieten_lightning()
    with contextlib.nullcontext() if ray is None else cluster_at(ray) as cluster:
        outcomes = run(plan, cluster=cluster)
    print(f"tables in {out / 'benchmark.md'}, figures in {out / 'runs.csv'}")
    asked = {run.folder for run in plan.runs()}
    failed = [outcome for outcome in outcomes if outcome.metrics is None and outcome.run.folder in asked]
    if failed:
        names: dict[str, list[str]] = {}
        for outcome in failed:
            names.setdefault(outcome.error, []).append(outcome.run.name)
        lines = [f"{', '.join(runs)}: {error}" for error, runs in names.items()]
        raise Das3dError(
            "\n".join([*lines, f"{len(failed)} of {len(asked)} runs failed; the same command tries them again"])
        )


@app.command(name="demo-data")
@reported
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to write; new, empty, or holding demo data of before.")],
    seed: Annotated[int, typer.Option(min=0, help="Another one gives other parts.")] = 0,
    parts: Annotated[int, typer.Option(min=4, help="Good parts to train on.")] = 80,
) -> None:
    """Make a small data set of rendered parts, good and defective, to try das3d on."""
    from das3d.console import progress
    from das3d.demo import make_demo

    with progress("rendering") as step:
        root = make_demo(folder, train=parts, seed=seed, progress=step)
    print(f"demo data in {root}")


@app.command()
def version() -> None:
    """Print the version."""
    print(das3d.__version__)


@contextlib.contextmanager
def cluster_at(address: str) -> Iterator[Any]:
    from das3d.cluster import connect

    with connect(address) as cluster:
        print(f"shared among {cluster.describe()}", flush=True)
        yield cluster


def quieten_lightning() -> None:
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what they have to say, das3d says


def record_metrics(run: Path, detector: Any, metrics: dict[str, Any]) -> None:
    """Add figures to the experiment trackers of the run."""
    from das3d.metrics import FIGURES
    from das3d.tracking import record

    names = [*FIGURES, "per_defect", "false_alarms", "detected", "n_good", "n_defective"]
    record(run, detector.settings, {name: metrics[name] for name in names}, detector.training.get("iterations", 0))


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # pipes on Windows know few letters, and a part may be called by any
            stream.reconfigure(errors="backslashreplace")
    app()


if __name__ == "__main__":
    main()
