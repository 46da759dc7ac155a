"""What the service answers, as documented in its OpenAPI description."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from das3d.service.inspections import Inspection
from das3d.threshold import SAME, Threshold

# What a demo part got (its missing rib), so that the description shows what the service says.
REGION = {
    "centroid": [155.9494, 152.9304],
    "box": [150, 146, 16, 15],
    "outline": [
        [157, 146], [155, 148], [150, 148], [150, 157], [151, 158], [150, 159], [150, 160], [150, 159],
        [151, 158], [153, 160], [157, 160], [157, 159], [159, 157], [161, 157], [162, 156], [162, 147],
        [161, 147], [160, 148], [158, 146]
    ],
    "area_px": 158,
    "area_mm2": 55.2749,
    "height_mm": -0.9568,
    "height_noise_mm": 4.0734,
    "evidence": "colour",
    "colour": 1.0,
    "shape": 0.0,
    "score": 0.3477,
    "peak": 0.4218,
    "mean": 0.3795,
}  # fmt: skip
INSPECTION: dict[str, Any] = {
    "id": 9,
    "at": "2026-11-24T21:08:49.907941Z",
    "part": "missing_rib-001",
    "model": "cover",
    "model_hash": "069df84c8c55e64e54d9a3c235db2473db0a69e171747fa906bffda30f39e5f0",
    "engine": "PyTorch, fp32, CPU",
    "score": 0.3477,
    "threshold": 0.3471,
    "verdict": "defective",
    "false_alarm_probability": 0.0909,
    "compared": "higher than all 10 held-out good parts",
    "regions": [REGION],
    "width": 256,
    "height": 256,
    "seconds": 0.6104,
    "map": "/inspections/9/map.tiff",
    "overlay": "/inspections/9/overlay.png",
    "truth": "defective",
}


class TakenInAnswer(BaseModel):
    """What is told of every part that came in, whatever came of it; kept by `TakenIn`."""

    id: int = Field(description="Grows with every part of its list and is never given twice.")
    at: datetime = Field(description="When the part was taken in, UTC.")
    part: str = Field(description="What the client calls the part, or its files.")
    model: str = Field(description="Its name in the service.")
    model_hash: str = Field(description="SHA-256 of the model file.")


class InspectionAnswer(TakenInAnswer):
    """One verdict."""

    model_config = ConfigDict(json_schema_extra={"examples": [INSPECTION]})

    engine: str = Field(description="What computed the verdict.")
    score: float = Field(description="0 to 1; higher is more likely defective.")
    threshold: float | None = Field(
        description=f"Parts that score above it by more than {SAME:g} are defective; null where the model has none."
    )
    verdict: Literal["good", "defective"] | None = Field(description="Null where the model has no threshold.")
    false_alarm_probability: float | None = Field(
        description=f"The probability that a good part scores as high, within {SAME:g}; null where the model cannot tell."
    )
    compared: str | None = Field(
        description="Where the score stands among those of held-out good parts, in words; null where the model cannot tell "
        "or is no longer served."
    )
    regions: list[dict[str, Any]] = Field(
        description="The places that the verdict rests on, the largest first; in pixels of the scan."
    )
    width: int = Field(description="Of the scan and its map, pixels.")
    height: int
    seconds: float = Field(description="From taking the part in to the verdict.")
    map: str | None = Field(
        description="Where to get the anomaly map: (height, width) float32, 0 to 1, as TIFF; null once it was removed."
    )
    overlay: str | None = Field(
        description="Where to get the map as heat over the scan, PNG; null once the files were removed."
    )
    truth: Literal["good", "defective"] | None = Field(
        description="What a person found the part to be; null where nobody has said."
    )


def answer(inspection: Inspection, threshold: Threshold | None) -> InspectionAnswer:
    """The row of a database as an answer.

    Args:
        inspection: the row.
        threshold: of the model that judged it; None where it has none or is no longer served.
    """
    derived = ("compared", "map", "overlay")
    shown = {name: getattr(inspection, name) for name in InspectionAnswer.model_fields if name not in derived}
    shown["compared"] = None if threshold is None else threshold.compared(inspection.score)
    if not inspection.map:
        return InspectionAnswer(**shown, map=None, overlay=None)
    where = f"/inspections/{inspection.id}"
    return InspectionAnswer(**shown, map=f"{where}/map.tiff", overlay=f"{where}/overlay.png")


class InspectionPage(BaseModel):
    """Some inspections, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [INSPECTION], "total": 312, "next": 9}]})

    items: list[InspectionAnswer]
    total: int | None = Field(description="How many fit the filters, on all pages; null unless `count` asks for it.")
    next: int | None = Field(description="Send it as `before` to get the next page; null on the last.")


REFUSAL: dict[str, Any] = {
    "id": 2,
    "at": "2026-11-24T21:09:12.402117Z",
    "part": "serial-18",
    "model": "cover",
    "model_hash": INSPECTION["model_hash"],
    "reason": "000.tiff: expected depth, found a damaged or unknown file (no TIFF)",
    "rgb": "2026-11-24/0d5f1c2b7a9e4f6c8b1d3e5f7a9c0b2d/rgb.png",
    "depth": "2026-11-24/0d5f1c2b7a9e4f6c8b1d3e5f7a9c0b2d/depth.tiff",
}


class RefusalAnswer(TakenInAnswer):
    """One part that could not be judged."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [REFUSAL]})

    reason: str = Field(description="What the client was told.")
    rgb: str | None = Field(description="Its file below the folder of the service; null where it had none or is not kept.")
    depth: str | None


class RefusalPage(BaseModel):
    """Some refusals, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [REFUSAL], "total": 2, "next": None}]})

    items: list[RefusalAnswer]
    total: int | None = Field(description="How many there are, on all pages; null unless `count` asks for it.")
    next: int | None = Field(description="Send it as `before` to get the next page; null on the last.")


class ModelAnswer(BaseModel):
    """One model that the service holds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "cover",
                    "hash": INSPECTION["model_hash"],
                    "engine": "PyTorch, fp32, CPU",
                    "members": ["rgb", "depth"],
                    "depth_unit": "1",
                    "frame": [256, 256],
                    "threshold": 0.3471,
                    "tolerance": SAME,
                    "scale": 0.6942,
                    "about": "threshold 0.3471 from 10 held-out good parts: 9.1% false alarms expected, at most 25.9% with "
                    "95% confidence (5% was asked for, which takes 19 parts)",
                }
            ]
        }
    )

    name: str
    hash: str = Field(description="SHA-256 of the model file.")
    engine: str
    members: list[Literal["rgb", "depth"]] = Field(description="What a part must have.")
    depth_unit: str | None = Field(description="How depth is read where a request does not say: metres per count.")
    frame: tuple[int, int] | None = Field(description="Height and width that parts must have; null: any.")
    threshold: float | None
    tolerance: float = Field(description="Parts are defective that score above a threshold by more than this.")
    scale: float = Field(description="The value of a map that is painted in full red.")
    about: str = Field(description="What is known of the threshold.")


class Problem(BaseModel):
    """Why a request was not answered."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"detail": "part.tiff: expected depth, found a damaged or unknown file (no TIFF)"}]}
    )

    detail: str
