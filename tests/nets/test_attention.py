"""`attend` is softmax(q·k/√c)·v in each head, and every network of images asks it for the kernel that it was told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from diffuse_jax.nets import ADM, DDPM, NCSNpp, SongUNet, UNet2D
from diffuse_jax.nets.attention import attend

NETS = {
    "ncsnpp": (NCSNpp, {"nf": 8, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (4,)}),
    "ddpm": (DDPM, {"nf": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (4,)}),
    "song": (SongUNet, {"model_channels": 8, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (4,)}),
    "adm": (ADM, {"model_channels": 64, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (4,)}),
    "unet2d": (
        UNet2D,
        {"block_out_channels": (32,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)},
    ),
}


def drawn(dtype, channels=5, pixels=6):
    return [jnp.asarray(np.random.default_rng(i).normal(size=(2, pixels, 3, channels)), dtype) for i in range(3)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_each_head_averages_its_values_by_the_softmax_of_its_products(dtype, tolerance):
    q, k, v = drawn(dtype)
    result = attend(q, k, v)
    assert result.dtype == dtype
    for image in range(2):
        for head in range(3):
            one = [np.asarray(a[image, :, head], np.float64) for a in (q, k, v)]
            weights = scipy.special.softmax(one[0] @ one[1].T / np.sqrt(5), axis=-1)
            np.testing.assert_allclose(
                np.asarray(result[image, :, head], np.float64), weights @ one[2], rtol=tolerance, atol=tolerance
            )


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="the fused kernel is NVIDIA's")
def test_the_fused_kernel_and_its_gradient_equal_the_ordinary_operations():
    q, k, v = drawn(jnp.bfloat16, channels=64, pixels=64)

    def loss(q, k, v, implementation):
        return jnp.sum(attend(q, k, v, implementation).astype(jnp.float32) ** 2)

    for fused, plain in zip(
        *(jax.grad(loss, argnums=(0, 1, 2))(q, k, v, name) for name in ("cudnn", "xla")), strict=True
    ):
        scale = float(jnp.max(jnp.abs(plain)))
        np.testing.assert_allclose(fused.astype(jnp.float32), plain.astype(jnp.float32), atol=0.03 * scale)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there it may be had")
@pytest.mark.parametrize("name", NETS)
def test_every_network_passes_on_what_it_is_told_and_the_fused_kernel_is_refused_without_its_gpu(name):
    net, options = NETS[name]
    module = net(**options, dtype=jnp.bfloat16, attention="cudnn")
    arguments = jnp.zeros((1, 4, 4, 3)), jnp.ones(1)
    with pytest.raises(ValueError, match=r"attention='cudnn' needs an NVIDIA GPU.*got cpu and bfloat16"):
        jax.eval_shape(module.init, jax.random.key(0), *arguments)


@pytest.mark.parametrize("name", NETS)
def test_an_unknown_kernel_is_refused_when_the_network_is_made(name):
    net, options = NETS[name]
    with pytest.raises(ValueError, match="attention must be one of"):
        net(**options, attention="flash")
