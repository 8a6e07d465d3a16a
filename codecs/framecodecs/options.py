"""Options of encoders. Each family uses those that it knows, and ignores the others."""

from __future__ import annotations

from dataclasses import dataclass

from framecodecs.errors import EncodeError


@dataclass(frozen=True)
class EncodeOptions:
    """`quality` is 1..100, for lossy JPEG, JPEG 2000, HTJ2K and JPEG XL. `near` is the largest error of
    JPEG-LS near-lossless. `chroma` of lossy JPEG is 422 (YBR_FULL_422 in PS3.3) or 444. `effort` is 1..9, for
    JPEG XL. `cores` is the number of cores that OpenJPEG may use."""

    quality: int = 90
    near: int = 2
    chroma: str = "422"
    effort: int = 1
    cores: int = 1

    def __post_init__(self) -> None:
        for holds, error in (
            (1 <= self.quality <= 100, f"quality is {self.quality}, not 1..100"),
            (1 <= self.near <= 255, f"near is {self.near}, not 1..255"),
            (self.chroma in ("422", "444"), f"chroma is {self.chroma!r}, not '422' or '444'"),
            (1 <= self.effort <= 9, f"effort is {self.effort}, not 1..9"),
        ):
            if not holds:
                raise EncodeError(error)
