"""What the service answers, as documented in its OpenAPI description."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from das3d.inspections import Inspection

REGION = {
    "centroid": [417.2, 380.4], "box": [402, 371, 31, 18], "outline": [[402, 371], [402, 388], [432, 388], [432, 371]],
    "area_px": 388, "area_mm2": 24.1, "height_mm": -0.83, "height_noise_mm": 0.41, "evidence": "shape", "colour": 0.07,
    "shape": 0.93, "score": 0.8712, "peak": 0.9431, "mean": 0.71,
}  # fmt: skip
INSPECTION: dict[str, Any] = {
    "id": 17,
    "at": "2026-11-24T19:31:44.512034Z",
    "part": "000123",
    "model": "cable_gland",
    "model_hash": "9f2b6d0c6a5b0f4f7f3e7f5a9c0b0f1d2e3c4b5a69788796a5b4c3d2e1f00112",
    "engine": "PyTorch, fp32, CPU",
    "score": 0.8712,
    "threshold": 0.3127,
    "verdict": "defective",
    "false_alarm_probability": 0.0189,
    "regions": [REGION],
    "width": 800,
    "height": 800,
    "seconds": 0.412,
    "map": "/inspections/17/map.tiff",
    "overlay": "/inspections/17/overlay.png",
}


class InspectionAnswer(BaseModel):
    """One verdict."""

    model_config = ConfigDict(json_schema_extra={"examples": [INSPECTION]})

    id: int = Field(description="Grows with every inspection.")
    at: datetime = Field(description="When the part was taken in, UTC.")
    part: str = Field(description="What the part is called.")
    model: str
    model_hash: str = Field(description="SHA-256 of the model file.")
    engine: str = Field(description="What computed the verdict.")
    score: float = Field(description="0 to 1; higher is more likely defective.")
    threshold: float | None = Field(description="Parts that score above it are defective; null where the model has none.")
    verdict: Literal["good", "defective"] | None = Field(description="Null where the model has no threshold.")
    false_alarm_probability: float | None = Field(
        description="The probability that a good part scores as high; null where the model cannot tell."
    )
    regions: list[dict[str, Any]] = Field(
        description="The places that the verdict rests on, the largest first; in pixels of the scan."
    )
    width: int = Field(description="Of the scan and its map, pixels.")
    height: int
    seconds: float = Field(description="From taking the part in to the verdict.")
    map: str = Field(description="Where to get the anomaly map: (height, width) float32, 0 to 1, as TIFF.")
    overlay: str = Field(description="Where to get the map as heat over the scan, PNG.")


def answer(inspection: Inspection) -> InspectionAnswer:
    """The row of a database as an answer."""
    shown = {name: getattr(inspection, name) for name in InspectionAnswer.model_fields if name not in ("map", "overlay")}
    where = f"/inspections/{inspection.id}"
    return InspectionAnswer(**shown, map=f"{where}/map.tiff", overlay=f"{where}/overlay.png")


class InspectionPage(BaseModel):
    """Some inspections, newest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"items": [INSPECTION], "total": 312, "next": 17}]})

    items: list[InspectionAnswer]
    total: int = Field(description="How many fit the filters, on all pages.")
    next: int | None = Field(description="Send it as `before` to get the next page; null on the last.")


class ModelAnswer(BaseModel):
    """One model that the service holds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "cable_gland",
                    "hash": INSPECTION["model_hash"],
                    "engine": "PyTorch, fp32, CPU",
                    "members": ["rgb", "depth"],
                    "depth_unit": "1.0",
                    "frame": [800, 800],
                    "threshold": 0.3127,
                    "scale": 0.6254,
                    "about": "threshold 0.3127 from 52 held-out good parts: at most 1.9% false alarms expected",
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
    scale: float = Field(description="The value of a map that is painted in full red.")
    about: str = Field(description="What is known of the threshold.")


class Problem(BaseModel):
    """Why a request was not answered."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"detail": "part.tiff: expected depth, found a damaged or unknown file (no TIFF)"}]}
    )

    detail: str
