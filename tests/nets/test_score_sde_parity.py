"""Our U-Nets against the outputs of score_sde's own program, and against its published parameter counts."""

import json

import jax
import numpy as np
import pytest
from score_sde_names import convert

from diffuse_jax.nets import DDPM, LinenNet, NCSNpp, param_count

# What that program's configuration says of other things than the network, or never reads.
NOT_OURS = {"name", "image_size", "continuous", "beta_max", "beta_min", "ema_rate", "attention_type", "conv_size"}
NOT_OURS |= {"normalization"}  # always groups


@pytest.mark.parametrize("name", ["ve_ncsnpp_fir_residual", "ve_skip_pyramids", "vp_ddpmpp_positional", "vp_ddpm"])
def test_network_reproduces_the_original_output(fixtures, name):
    with np.load(fixtures / f"{name}.flax.npz") as file:
        data = dict(file)
    config = json.loads(str(data["config"]))
    constructor, unread = (DDPM, {"embedding_type"}) if config["name"] == "ddpm" else (NCSNpp, set())
    module = constructor(**{option: value for option, value in config.items() if option not in NOT_OURS | unread})
    params = convert(module, data["x"].shape[1:], {k[6:]: v for k, v in data.items() if k.startswith("param/")})
    y = jax.jit(LinenNet(module))(params, data["x"], data["t"])
    assert np.abs(data["y"]).max() > 0.1
    np.testing.assert_allclose(y, data["y"], atol=1e-4, rtol=0)


POSITIONAL = {"fir": False, "embedding_type": "positional", "progressive_input": "none", "scale_by_sigma": False}
PYRAMIDS = {"progressive": "output_skip", "progressive_input": "input_skip"}


@pytest.mark.parametrize(
    ("module", "size", "published"),
    [
        (NCSNpp(embedding_type="positional"), 32, 62_693_251),
        (NCSNpp(), 32, 62_758_915),
        (NCSNpp(num_res_blocks=8), 32, 107_587_075),
        (NCSNpp(**POSITIONAL), 32, 61_804_419),
        (NCSNpp(**POSITIONAL, num_res_blocks=8), 32, 106_632_579),
        (DDPM(), 32, 35_218_947),
        (NCSNpp(ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2, **PYRAMIDS), 256, 65_574_549),
        (NCSNpp(nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, **PYRAMIDS), 1024, 105_785_896),
    ],
    ids=["ncsnpp", "ncsnpp_continuous", "ncsnpp_deep", "ddpmpp", "ddpmpp_deep", "ddpm", "lsun_256", "ffhq_1024"],
)
def test_published_parameter_counts(module, size, published):
    """The fixed frequencies of a Fourier embedding count as parameters, as they do in the published numbers."""
    shapes = jax.eval_shape(lambda key: LinenNet(module).init(key, (size, size, 3)), jax.random.key(0))
    assert param_count(shapes) == published
