"""Every setting of das3d with its meaning, its limits and the presets.

A run is described by one `Settings` value. It is kept as ``settings.toml`` in the run folder and inside the model file.
A preset is nothing but a set of values for the same settings, so anything that a preset does can be changed one by one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from das3d.arguments import list_of, path_of
from das3d.choices import Modality, Preset
from das3d.errors import SettingsError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PreparationSettings(_Section):
    """From a raw scan to the square, normalised images that the networks see."""

    size: int = Field(192, ge=32, le=1024, multiple_of=32, description="side of the prepared images in pixels")
    crop: bool = Field(
        True, description="cut out a window around the part if a background shows; false: the whole frame, as the paper"
    )
    margin: float = Field(0.08, ge=0, le=1, description="how much wider the window is than the widest part")
    squeeze: bool = Field(
        True,
        description="where the whole frame is shown, and all frames are alike, squeeze it to a square; false: with borders",
    )
    align: bool = Field(
        True,
        description="where parts are long and thin, the window lies along each and is no broader than they are, and is "
        "squeezed to a square; false: an upright square",
    )
    level: bool = Field(True, description="measure depth from the fitted plane; false: from the camera, as the paper does")
    background_distance: float = Field(
        0.0,
        ge=0,
        description="points closer than this to the plane are background, metres; 0: 5 times its noise, at least 0.3 % of "
        "its distance, but down to half of that where they are connected with the part",
    )
    stretch: bool = Field(True, description="stretch RGB to the range of the training parts; false: 0 to 255")

    @property
    def distance_is_set(self) -> bool:
        """Whether the user says how far from the plane the background ends, and not its noise."""
        return self.background_distance > 0


class SynthesisSettings(_Section):
    """The synthetic defects: equations (1) to (8) and (12) of the paper, and what was added to them."""

    perlin_octaves: int = Field(5, ge=0, le=7, description="Perlin periods per axis are 2^0 to 2^this, drawn per axis")
    threshold_low: float = Field(0.3, gt=0, lt=1, description="tp of eq. (1): smallest threshold on the Perlin noise")
    threshold_high: float = Field(0.7, gt=0, lt=1, description="tp of eq. (1): largest threshold")
    skew_filter: bool = Field(True, description="eqs. (3) to (5); false: dZ of eq. (6) is the ternary mask itself")
    sigma_low: float = Field(0.008, gt=0, lt=0.2, description="smallest sigma of eq. (3), as a share of the image side")
    sigma_high: float = Field(0.03, gt=0, lt=0.2, description="largest sigma of eq. (3), as a share of the image side")
    skew: float = Field(0.5, ge=0, le=5, description="eq. (4): the components of alpha are drawn up to this, either way")
    magnitude_low: float = Field(0.03, ge=0, le=1, description="pmin of eq. (6), on the normalised depth")
    magnitude_high: float = Field(0.2, gt=0, le=1, description="pmax of eq. (6)")
    peak: bool = Field(True, description="scale each change of depth so that pz is its largest value; false: as eq. (5)")
    own_colour: float = Field(
        0.7, ge=0, le=1, description="largest share of the part's own colour in a generated texture; 1: down to invisible"
    )
    mask_threshold: float = Field(0.008, gt=0, le=1, description="th of eq. (7), on the normalised depth")
    opacity_rest: float = Field(
        0.6, ge=0, le=1, description="largest beta of eq. (8): share of the part that shines through"
    )
    harmless: float = Field(
        0.25, ge=0, lt=1, description="share of pairs left whole in every round; others may stay whole by chance (drop)"
    )
    rounds: int = Field(3, ge=1, le=4, description="how many times a pair is harmed, one defect after the other")
    drop: float = Field(0.3, ge=0, le=1, description="pd of eq. (12): chance that a defect leaves a modality unharmed")
    texture: Literal["procedural", "folder", "parts"] = Field(
        "procedural",
        description="source of Iu in eq. (8): generated, pictures of texture_folder, or the training parts",
    )
    texture_folder: str = Field("", description="folder of pictures, such as DTD, for texture = 'folder'")
    blobs: float = Field(0.3, ge=0, description="relative frequency of the paper's Perlin blobs")
    spots: float = Field(1.0, ge=0, description="relative frequency of single compact defects of drawn size")
    scratches: float = Field(0.4, ge=0, description="relative frequency of thin, winding lines")
    shifts: float = Field(0.8, ge=0, description="relative frequency of regions showing a displaced piece of the part")
    cuts: float = Field(0.4, ge=0, description="relative frequency of missing material")
    warps: float = Field(0.8, ge=0, description="relative frequency of regions that are bent or crumpled")
    shaded: float = Field(
        0.4, ge=0, le=1, description="share of reliefs seen by their shading alone, and of cuts that end in a dark pit"
    )
    own_hue: float = Field(
        0.5, ge=0, le=1, description="share of generated textures that differ from the part in brightness and not in hue"
    )
    edge_high: float = Field(
        1.5, ge=0, le=4, description="largest blur of a defect's edge, pixels; 0: hard edges, as the paper"
    )
    visible: float = Field(
        0.06,
        ge=0,
        le=1,
        description="change of RGB or of 4 times the depth below which nothing is labelled; 0: eq. (7) alone",
    )
    spot_low: float = Field(0.012, gt=0, lt=1, description="smallest radius of all but blobs, as a share of the image side")
    spot_high: float = Field(0.12, gt=0, lt=1, description="largest radius; a scratch is four times as long")

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> SynthesisSettings:
        for low, high in (("threshold_low", "threshold_high"), ("sigma_low", "sigma_high"),
                          ("magnitude_low", "magnitude_high"), ("spot_low", "spot_high")):  # fmt: skip
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}: expected at most {high}, found {getattr(self, low)} > {getattr(self, high)}")
        if self.blobs + self.spots + self.scratches + self.shifts + self.cuts + self.warps <= 0:
            raise ValueError("expected one of blobs, spots, scratches, shifts, cuts, warps above 0, found none")
        if self.texture == "folder" and not self.texture_folder:
            raise ValueError("texture_folder: expected a folder for texture = 'folder', found none")
        return self


class NetworkSettings(_Section):
    """The three networks. Where the paper gives no number, the preset `paper` has DRAEM's."""

    stem: Literal[1, 2, 4] = Field(
        4, description="pixels folded into channels per axis before the repair nets' first layer"
    )
    discriminator_stem: Literal[1, 2, 4] = Field(2, description="the same of the discriminator")
    repair_widths: tuple[int, ...] = Field((48, 64, 96, 128), description="channels of the repair nets, one a level")
    discriminator_widths: tuple[int, ...] = Field(
        (32, 64, 96, 128, 128), description="channels of the discriminator, one a level"
    )
    direct: bool = Field(
        True, description="the discriminator sees the images beside the features of the repair nets; false: as the paper"
    )
    fuse_width: int = Field(
        32, ge=0, description="channels each feature is projected to before fusing; 0: none, as the paper"
    )
    skips: bool = Field(
        False, description="repair nets see past the bottleneck and correct their input; false: autoencoders, as DRAEM"
    )
    coarse_first: bool = Field(
        True, description="the discriminator convolves coarse features before it enlarges them; false: after, as DRAEM"
    )
    depth_relief: bool = Field(True, description="give the networks slopes and local relief beside the depth")

    @property
    def steps(self) -> dict[str, int]:
        """How many pixels the coarsest level of the repair nets and of the discriminator takes for one."""
        return {
            "network.stem": self.stem * 2 ** (len(self.repair_widths) - 1),
            "network.discriminator_stem": self.discriminator_stem * 2 ** (len(self.discriminator_widths) - 1),
        }

    @model_validator(mode="after")
    def _levels_suffice(self) -> NetworkSettings:
        for name in ("repair_widths", "discriminator_widths"):
            widths = getattr(self, name)
            if not 3 <= len(widths) <= 6 or min(widths) < 4:
                raise ValueError(f"{name}: expected 3 to 6 widths of at least 4 channels, found {list(widths)}")
        coarsest = (2 * self.stem // self.discriminator_stem).bit_length()  # level that the coarsest features join
        if self.direct and coarsest > len(self.discriminator_widths):
            raise ValueError(
                f"discriminator_widths: expected at least {coarsest} for stem = {self.stem} and discriminator_stem = "
                f"{self.discriminator_stem}, found {list(self.discriminator_widths)}"
            )
        return self


class TrainingSettings(_Section):
    """Schedule, optimiser and augmentation of good parts."""

    iterations: int = Field(8000, ge=1, description="optimiser steps; a time budget replaces it by what fits")
    batch: int = Field(8, ge=2, description="pairs a step")
    learning_rate: float = Field(4e-3, gt=0, lt=1, description="peak learning rate")
    schedule: Literal["one-cycle", "steps"] = Field(
        "one-cycle", description="one-cycle, or steps: x 0.2 at 80 % and 90 % of the iterations"
    )
    optimizer: Literal["muon", "adamw", "adam"] = Field(
        "muon", description="muon: for the filters, with adamw for the rest; adam: without weight decay, as DRAEM"
    )
    weight_decay: float = Field(0.01, ge=0, description="of muon and adamw")
    focal_gamma: float = Field(2.0, ge=0, description="gamma of the focal loss, eq. (11)")
    average: float = Field(
        0.995, ge=0, lt=1, description="decay of the moving average of the weights that is kept; 0: none"
    )
    flip: bool = Field(False, description="mirror good parts left to right at random")
    rotation: float = Field(20.0, ge=0, le=180, description="largest random rotation of good parts, degrees")
    zoom: float = Field(0.1, ge=0, le=0.5, description="largest random change of scale of good parts")
    shift: float = Field(0.03, ge=0, le=0.5, description="largest random shift of good parts, as a share of the side")
    still: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of good parts not turned, zoomed, shifted or bent, which keep all of their sharpness",
    )
    bend: float = Field(
        0.008, ge=0, le=0.05, description="largest smooth displacement of pixels of good parts, as a share of the side"
    )
    brightness: float = Field(0.15, ge=0, le=1, description="largest random change of gain of RGB")
    contrast: float = Field(0.25, ge=0, le=1, description="largest random change of the exponent of RGB, as a logarithm")
    lighting: float = Field(0.2, ge=0, le=1, description="largest random change of gain of RGB from place to place")
    glare: float = Field(
        0.0, ge=0, le=1, description="largest highlight, or shadow, on all surfaces of a part that face one way; 0: none"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 where a CPU is measured to be faster with it, or a GPU has it"
    )
    checkpoint_minutes: float = Field(2.0, gt=0, description="time between checkpoints")
    hold_out: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="share of the good parts held out for the threshold where a data set has no validation parts; 0: none, "
        "and no threshold",
    )


class ScoreSettings(_Section):
    """From the anomaly map to the score of a part."""

    window: int = Field(
        5, ge=1, le=101, description="side of the mean filter before the maximum, pixels of the prepared image"
    )
    max_false_alarm: float = Field(
        0.05, gt=0, lt=1, description="share of good parts that the threshold may call defective"
    )
    turn: float = Field(
        8.0,
        ge=0,
        le=45,
        description="average the map over the part as it lies and turned both ways by this, degrees; 0: not",
    )
    flips: bool = Field(False, description="average the map over the part mirrored left to right, up to down, and both")

    @field_validator("window")
    @classmethod
    def _window_has_a_middle(cls, window: int) -> int:
        if window % 2 == 0:
            raise ValueError("expected an odd number, so that the window has a middle pixel")
        return window


class Settings(_Section):
    """All settings of one run."""

    preset: Preset = Field("fast", description="the preset these settings started from")
    modality: Modality = Field("rgb+depth", description="what the networks see")
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, synthesis and augmentation")
    preparation: PreparationSettings = PreparationSettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    score: ScoreSettings = ScoreSettings()

    @model_validator(mode="after")
    def _sides_halve(self) -> Settings:
        for name, step in self.network.steps.items():
            if self.preparation.size % step:
                raise ValueError(
                    f"preparation.size: expected a multiple of {step}, to which {name} and the number of its widths halve "
                    f"an image, found {self.preparation.size}"
                )
        return self

    def changed(self) -> list[tuple[str, Any, Any]]:
        """Settings that differ from those of the preset: name, value, the preset's value; modality and seed aside."""
        standard, chosen = (flatten(one.model_dump(mode="json")) for one in (make_settings(self.preset), self))
        return [
            (name, chosen.get(name, "-"), standard.get(name, "-"))
            for name in dict.fromkeys([*chosen, *standard])
            if chosen.get(name) != standard.get(name) and name not in ("preset", "modality", "seed")
        ]

    def with_changes(self, changes: Iterable[str]) -> Settings:
        """The settings with single changes such as ``"synthesis.drop=0.5"``.

        Raises:
            SettingsError: one cannot work, or is of the preset, which would change its name and none of its values.
        """
        values = self.model_dump(mode="json")
        for change in list_of(str, changes, "changes"):
            parsed = _parse_change(change)
            if "preset" in parsed:
                raise SettingsError(
                    f"--set {change}: expected a change of a single setting, found one of the preset; begin with that: "
                    "make_settings(preset), or --preset"
                )
            _merge(values, parsed)
        return settings_from_dict(values)

    @property
    def uses_rgb(self) -> bool:
        return self.modality != "depth"

    @property
    def uses_depth(self) -> bool:
        return self.modality != "rgb"


# What each preset changes. `fast` is the default of every field above.
PRESETS: dict[Preset, dict[str, dict[str, Any]]] = {
    "fast": {},
    # The paper's method; docs/howto/paper.md lists what it prints and what is chosen.
    "paper": {
        "preparation": {
            "size": 256, "crop": False, "squeeze": False, "align": False, "level": False, "background_distance": 0.005,
            "stretch": False,
        },
        "synthesis": {
            "threshold_low": 0.5, "threshold_high": 0.5, "magnitude_low": 0.0, "magnitude_high": 0.1,
            "mask_threshold": 0.004, "opacity_rest": 0.8, "own_colour": 1.0,
            "blobs": 1.0, "spots": 0.0, "scratches": 0.0, "shifts": 0.0, "cuts": 0.0, "warps": 0.0, "peak": False,
            "shaded": 0.0, "own_hue": 0.0, "edge_high": 0.0, "visible": 0.0, "harmless": 0.0, "rounds": 1, "drop": 0.5,
        },
        "network": {
            "stem": 1, "discriminator_stem": 1, "direct": False,
            "repair_widths": (128, 256, 512, 1024, 1024), "discriminator_widths": (64, 128, 256, 512, 512),
            "fuse_width": 0, "coarse_first": False, "depth_relief": False,
        },
        "training": {
            "iterations": 20_000, "batch": 8, "learning_rate": 1e-4, "schedule": "steps", "optimizer": "adam",
            "weight_decay": 0.0, "average": 0.0, "rotation": 0.0, "zoom": 0.0, "shift": 0.0, "bend": 0.0, "still": 0.0,
            "brightness": 0.0, "contrast": 0.0, "lighting": 0.0,
        },
        "score": {"window": 21, "turn": 0.0, "flips": False},
    },
    "demo": {
        "preparation": {"size": 128},
        "network": {
            "stem": 2, "repair_widths": (24, 48, 64, 96), "discriminator_widths": (32, 48, 64), "fuse_width": 16,
        },
        "training": {"iterations": 1000},
    },
}  # fmt: skip


def make_settings(
    preset: Preset | None = None,
    *,
    modality: Modality | None = None,
    seed: int | None = None,
    file: Path | str | None = None,
    changes: Iterable[str] = (),
) -> Settings:
    """Settings from a preset, then a settings file, then single changes, each over the one before.

    Args:
        preset: where the values start; where None, the one that the file names, or `fast`.
        modality: what the networks see.
        seed: of the whole run.
        file: a TOML file with any of the settings, such as the ``settings.toml`` of an earlier run.
        changes: ``"section.name=value"``, for example ``"synthesis.magnitude_high=0.3"``.

    Raises:
        SettingsError: a name is unknown or a value cannot work (every such value is named), or the file is of another
            preset than the one that is asked for.
    """
    given: dict[str, Any] = {} if file is None else read_toml(path_of(file, "file", SettingsError))
    if preset is not None and (named := given.get("preset", preset)) != preset:
        raise SettingsError(f"{file}: expected settings of the preset {preset!r}, which is asked for, found {named!r}")
    if modality is not None:
        given["modality"] = modality
    if seed is not None:
        given["seed"] = seed
    for change in list_of(str, changes, "changes"):
        _merge(given, _parse_change(change))
    preset = given.get("preset", preset or "fast")
    if preset not in list(PRESETS):
        raise SettingsError(f"preset: expected one of {', '.join(PRESETS)}, found {preset!r}")
    values: dict[str, Any] = {"preset": preset, **{section: dict(v) for section, v in PRESETS[preset].items()}}
    _merge(values, given)
    return settings_from_dict(values, source=str(file) if file else "settings")


def with_score(settings: Settings, changes: Iterable[str]) -> Settings:
    """The settings with other ones of the score, which a trained model can take; all others take a training.

    Args:
        settings: of the model.
        changes: ``"score.name=value"``.

    Raises:
        SettingsError: a change is of something else, or its value cannot work.
    """
    changes = list(changes)
    for change in changes:
        if set(_parse_change(change)) != {"score"}:
            raise SettingsError(f"--set {change}: expected one of the score, such as score.turn=0; others take training")
    return settings.with_changes(changes)


def settings_from_dict(values: dict[str, Any], *, source: str = "settings") -> Settings:
    """Checked settings from plain values. Raises SettingsError with one line for each value that cannot work."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(source, problem) for problem in error.errors())) from None


def missing_settings(values: Mapping[str, Any]) -> list[str]:
    """Names of the settings that these plain values lack: of files that hold all, and were written when there were fewer.

    What the presets have today need not be what held then.
    """
    return sorted(flatten(Settings().model_dump()).keys() - flatten(values).keys())


def settings_to_toml(settings: Settings) -> str:
    """The settings as a TOML text with the meaning of each beside it; `make_settings(file=...)` reads it back."""
    import tomlkit

    document = tomlkit.document()
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if not isinstance(value, _Section):
            document.add(name, tomlkit.item(value).comment(field.description or ""))
            continue
        table = tomlkit.table()
        table.comment((type(value).__doc__ or "").strip())
        for key, inner in type(value).model_fields.items():
            plain = getattr(value, key)
            plain = list(plain) if isinstance(plain, tuple) else plain
            table.add(key, tomlkit.item(plain).comment(inner.description or ""))
        document.add(tomlkit.nl())
        document.add(name, table)
    return tomlkit.dumps(document)


def read_toml(file: Path) -> dict[str, Any]:
    """The values in a settings file, which need not be all. Raises SettingsError."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{file}: expected a settings file, found no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{file}: expected settings as TOML, found {error}") from None


def _parse_change(change: str) -> dict[str, Any]:
    name, equals, text = change.partition("=")
    if not equals or not name.strip():
        raise SettingsError(f"--set {change}: expected section.name=value, such as synthesis.drop=0.3")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word, such as texture=folder
    for part in reversed(name.strip().split(".")):
        value = {part: value}
    return dict(value)


def _merge(values: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _explain(source: str, problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown setting {name!r}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = problem["input"]
    where = f"{source}: {name}" if name else source
    return f"{where}: {message}" + ("" if isinstance(found, dict | BaseModel) else f", found {found!r}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as "group.name", in their order."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
