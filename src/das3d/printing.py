"""What the commands print of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from das3d.console import counted, figure, percent, say, sizes_text, warn
from das3d.errors import Das3dError

if TYPE_CHECKING:
    from das3d.detector import Detector
    from das3d.exporting import Export
    from das3d.streaming import Inspected


MOST_SHOWN = 20  # parts on the screen


def print_metrics(metrics: dict[str, Any], folder: Path) -> None:
    from das3d.metrics import FIGURES

    parts = f"{metrics['n_good']} good and {metrics['n_defective']} defective parts"
    print(f"{metrics['category']}, {metrics['modality']}: {parts}, maps at {sizes_text(metrics['map_size'])}")
    rows = {name: figure(metrics[key], 4) for key, name in FIGURES.items()}
    rows |= {f"I-AUROC {kind}": figure(value, 4) for kind, value in metrics["per_defect"].items()}
    rows["false alarms at threshold"] = percent(metrics["false_alarms"])
    rows["defective found at threshold"] = percent(metrics["detected"])
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value:>7}")
    if metrics["threshold"]:
        known = metrics["threshold"]
        print(
            f"  (expected false alarms {known['false_alarm_rate']:.1%}, at most {known['false_alarm_bound']:.1%} with "
            f"{known['confidence']:.0%} confidence; {known['parts']} held-out parts)"
        )
    for note in metrics["notes"]:
        print(f"note: {note}")
    print(f"written to {folder}; computed by {metrics['engine']}")


def print_predictions(results: Sequence[Inspected], out: Path, detector: Detector) -> None:
    from das3d.streaming import errors_of

    shown = [result for result in results if not result.error]
    # Of many parts those that somebody waits for come first; all are in their order in scores.csv.
    first = sorted(shown, key=lambda result: result.verdict != "defective") if len(shown) > MOST_SHOWN else shown
    for result in first[:MOST_SHOWN]:
        print_prediction(result, detector)
    if left := first[MOST_SHOWN:]:
        worse = sum(result.verdict == "defective" for result in left)
        print(f"... and {len(left)} more" + (f", {worse} of them defective" if worse else ""))
    if detector.threshold is not None and shown:
        defective = sum(result.verdict == "defective" for result in shown)
        print(f"{defective} of {len(shown)} defective; {detector.threshold.describe()}")
    if known := sum(result.trained_on for result in shown):
        warn_of_known(known, len(shown))
    written = "scores.csv, regions.json, maps and overlays" if shown else "scores.csv and regions.json"
    print(f"{written} in {out}; computed by {detector.engine.describe()}")
    if errors := errors_of(results):
        lines = errors[:10]
        more = len(errors) - len(lines)
        raise Das3dError("\n".join([*lines, f"... and {more} more, see {out / 'scores.csv'}"] if more else lines))


def warn_of_known(known: int, parts: int) -> None:
    warn(f"the model saw {known} of {counted(parts, 'part')} in training: such scores are too low to say anything")


def print_watched(
    results: Iterator[Inspected], out: Path, detector: Detector, tell: Callable[[Inspected], None] | None = None
) -> None:
    parts = defective = failed = known = 0
    for result in results:
        parts += 1
        defective += result.verdict == "defective"
        failed += bool(result.error)
        known += result.trained_on
        if tell:
            tell(result)
        if result.error:
            warn(f"not judged: {result.error}")
        else:
            print_prediction(result, detector)
    if known:
        warn_of_known(known, parts)
    told = counted(parts, "part") + (f", {defective} defective" if detector.threshold else "")
    told += f", {failed} not judged" if failed else ""
    say(f"{told}; scores.csv, regions.jsonl, maps and overlays in {out}; computed by {detector.engine.describe()}")


def print_json(result: Inspected, to: TextIO) -> None:
    from das3d.streaming import json_line

    print(json_line(result), file=to, flush=True)


def print_prediction(result: Inspected, detector: Detector) -> None:
    assert result.prediction is not None
    score = result.prediction.score
    compared = "" if detector.threshold is None else detector.threshold.compared(score)
    words = [result.part.id, f"score {score:.4f}", compared, result.verdict]
    print("  ".join(word for word in words if word), flush=True)
    if regions := result.prediction.regions:
        smaller = f"; {len(regions) - 1} smaller" if len(regions) > 1 else ""
        print(f"  {regions[0].describe()}{smaller}", flush=True)


def print_export(export: Export) -> None:
    print(f"checked on {export.parts} parts ({export.source})")
    width = max(len(one.engine) for one in export.engines)
    print(f"  {'':{width}}  scores differ by  maps by  verdicts changed  ms a part")
    print(f"  {'PyTorch, fp32, CPU':{width}}  {'':44}  {export.trained_ms:9.0f}")
    for one in export.engines:
        changed = "-" if one.verdicts_changed is None else f"{one.verdicts_changed} of {export.parts}"
        print(f"  {one.engine:{width}}  {one.score:16.1e}  {one.map:7.1e}  {changed:>16}  {one.ms:9.0f}")
    if any(one.verdicts_changed for one in export.engines):
        warn("its threshold is that of the trained model, whose scores it moves: parts near it may get the other verdict")
    print(f"written to {export.file} ({export.size / 1e6:.1f} MB)")
