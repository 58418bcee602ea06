"""`config.codec` and `config.data` as what stands between stored data and the model's space."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffuse_jax.codecs import Codec, Pixels
from diffuse_jax.config.choices import choose, section
from diffuse_jax.config.errors import ConfigError
from diffuse_jax.config.experiment import DataInfo

__all__ = ["CODECS", "make_codec"]


def make_codec(config: ConfigDict, data: DataInfo) -> Codec:
    """The codec of such data; one's own ("module:name") is called as (config, data). ConfigError where it cannot be
    made, or codes such data as another shape than it says."""
    name = config.codec.name
    codec: Codec = section(choose(CODECS, name, "codec.name"), "codec", config, data)
    if ":" in name:
        _check(codec, name, data)
    return codec


def _pixels(config: ConfigDict, data: DataInfo) -> Pixels:
    c = config.data
    if len(data.shape) == 1 and (given := [name for name in ("flip", "dequantize", "augment") if c[name]]):
        raise ConfigError(f"config.data.{given[0]}={c[given[0]]} is for images, and the data are vectors")
    return Pixels(data.shape, data.levels, centered=c.centered, flip=c.flip, dequantize=c.dequantize)


def _check(codec: Codec, name: str, data: DataInfo) -> None:
    """ConfigError unless a batch of such data becomes x of the codec's shape, and x data again."""
    kinds = {"label": jnp.int32, "tokens": jnp.int32, "image": jnp.uint8}
    x = jax.ShapeDtypeStruct((2, *data.shape), jnp.float32 if data.levels is None else jnp.uint8)
    batch = {"x": x} | {
        name: jax.ShapeDtypeStruct((2, *known.shape), kinds[name]) for name, known in data.conditions.items()
    }

    def there_and_back(batch: Any) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(2, dtype=jnp.uint32))
        x, cond = codec.encode(batch, keys, train=False)
        return x, codec.decode(x, cond)

    coded, decoded = section(lambda: jax.eval_shape(there_and_back, batch), "codec")
    for what, found, wanted in (("encodes", coded, codec.shape), ("decodes", decoded, data.shape)):
        if found.shape != (2, *wanted):
            raise ConfigError(
                f"config.codec.name={name!r} {what} rows of data of shape {data.shape} to {found.shape[1:]}, and must "
                f"to {tuple(wanted)}"
            )


#: Each takes the config and what is known of the data.
CODECS: dict[str, Callable[[ConfigDict, DataInfo], Codec]] = {"pixels": _pixels}
