"""What was published of the settings that the built-in experiments reproduce, as data beside each of them.

An experiment file has it as its constant `PUBLISHED`. The band of a figure is what a run of the same setting may
differ by and still count as the same; its reason stands with it.
"""

import dataclasses
import runpy

from diffuse_jax.config.experiment_files import resolve

__all__ = ["ANOTHER_RUN", "EDM_SPREAD", "Figure", "Published", "bits_per_dim", "fid", "inception_score", "published"]

#: Why EDM's figures have the band that they have.
EDM_SPREAD = "the least of three sets of 50,000 samples is published, and others report 2.08 for 1.97 (issue 16 of edm)"
#: Why those of DDPM, NCSN and NCSNv2 do.
ANOTHER_RUN = "a judgement: it is of another program's run, of another number of steps"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A published number.

    Args:
        value: The number.
        band: What a run may differ by to either side.
        reason: Why the band is as wide as it is.
        remembered: The number is quoted from memory of its source, to be checked there before it is relied upon.
    """

    value: float
    band: float
    reason: str
    remembered: bool = False


@dataclasses.dataclass(frozen=True)
class Published:
    """What was published of a setting. A figure that was not published is None.

    Args:
        source: The source of the figures.
        original: The file, or the options, that define the setting in its authors' program.
        parameters: The number of parameters.
        nfe: The evaluations that a sample takes in `fid` and `inception_score`.
        fid: The Fréchet distance of samples.
        inception_score: Their Inception score.
        fid_ode: The Fréchet distance of samples of the probability flow.
        bits_per_dim: Bits per dimension of the test images.
        notes: What is particular.
    """

    source: str
    original: str
    parameters: int | None = None
    nfe: int | None = None
    fid: Figure | None = None
    inception_score: Figure | None = None
    fid_ode: Figure | None = None
    bits_per_dim: Figure | None = None
    notes: str = ""

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures that were published, by name; a setting without any is unscored."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in fields if isinstance(value, Figure)}


_FID = (
    "a judgement: 50,000 samples scatter by some hundredths, and the best of 25 checkpoints of another run by a tenth"
)
_INCEPTION = "a judgement: its standard error over ten parts of 50,000 samples is about 0.1"
_BITS = "a judgement: the noise of dequantization moves the third decimal, another run's last checkpoint the second"


def fid(value: float, *, band: float = 0.15, reason: str = _FID, remembered: bool = False) -> Figure:
    """A Fréchet distance in Inception-v3's features.

    Args:
        value: The distance.
        band: What a run may differ by to either side, by default for that of the best checkpoint of a run.
        reason: Why the band is as wide as it is.
        remembered: The number is quoted from memory of its source.

    Returns:
        The figure.
    """
    return Figure(value, band, reason, remembered)


def inception_score(value: float, *, remembered: bool = False) -> Figure:
    """An Inception score of 50,000 samples."""
    return Figure(value, 0.15, _INCEPTION, remembered)


def bits_per_dim(value: float) -> Figure:
    """Bits per dimension of uniformly dequantized test images, under the probability flow of the last checkpoint."""
    return Figure(value, 0.02, _BITS)


def published(name: str) -> Published | None:
    """What was published of the experiment of that name or file; None where its file has no such constant, and for a
    variant ("name:argument"). ConfigError where there is no such experiment."""
    file, _, argument = resolve(name).partition(":")
    found = None if argument else runpy.run_path(file).get("PUBLISHED")
    return found if isinstance(found, Published) else None
