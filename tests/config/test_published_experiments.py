"""The published settings: every experiment is what its authors' files say, and its network has their size.

The tables here were typed from the originals: the config files of score_sde (JAX) and the options of EDM's README and
train.py. Nothing is compiled: networks, a step of training and a step of sampling are traced abstractly.
"""

import dataclasses
import functools
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import first, proof

from diffuse_jax import losses
from diffuse_jax.conditions import Condition
from diffuse_jax.config import ConfigError, DataInfo, base, build, describe, experiments, read
from diffuse_jax.config.method_section import _denoiser_shapes
from diffuse_jax.config.published import Figure, Published, bits_per_dim, fid, published
from diffuse_jax.config.schema import DERIVED, NETWORKS, network
from diffuse_jax.nets import param_count
from diffuse_jax.sampling import denoise_once
from diffuse_jax.training import step_draws

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import reproduce

# Experiment; process; largest noise (σ, or β); N, the levels or steps of its sampler; batch, learning rate, steps;
# moving average; dropout; snr and steps of the corrector; parameters in the authors' program.
SONG = """
cifar10_vp_ddpmpp_continuous         vp    20   1000 128 2e-4 1300000 0.9999 0.1 -     - 61804419
cifar10_vp_ddpmpp_deep_continuous    vp    20   1000 128 2e-4 950000  0.9999 0.1 -     - 106632579
cifar10_vp_ddpmpp                    ddpm  20   1000 128 2e-4 1300000 0.9999 0.1 -     - 61804419
cifar10_vp_ncsnpp_continuous         vp    20   1000 128 2e-4 1300000 0.9999 0.1 -     - 62693251
cifar10_vp_ncsnpp_deep_continuous    vp    20   1000 128 2e-4 950000  0.9999 0.1 -     - 107521411
cifar10_vp_ncsnpp                    ddpm  20   1000 128 2e-4 1300000 0.9999 0.1 -     - 62693251
cifar10_vp_ddpm                      ddpm  20   1000 128 2e-4 1300000 0.9999 0.1 -     - 35218947
cifar10_vp_ddpm_continuous           vp    20   1000 128 2e-4 1300000 0.9999 0.1 -     - 35218947
cifar10_vp_ddpm_unconditional        ddpm  20   1000 128 2e-4 1300000 0.9999 0.1 -     - 32329347
bedroom_vp_ddpm                      ddpm  20   1000 64  2e-5 2400000 0.9999 0.0 -     - 111569923
church_vp_ddpm                       ddpm  20   1000 64  2e-5 2400000 0.9999 0.0 -     - 111569923
celebahq256_vp_ddpm                  ddpm  20   1000 64  2e-5 2400000 0.9999 0.0 -     - 111569923
cifar10_subvp_ddpmpp_continuous      subvp 20   1000 128 2e-4 1300000 0.9999 0.1 -     - 61804419
cifar10_subvp_ddpmpp_deep_continuous subvp 20   1000 128 2e-4 950000  0.9999 0.1 -     - 106632579
cifar10_subvp_ncsnpp_continuous      subvp 20   1000 128 2e-4 1300000 0.9999 0.1 -     - 62693251
cifar10_subvp_ncsnpp_deep_continuous subvp 20   1000 128 2e-4 950000  0.9999 0.1 -     - 107521411
cifar10_subvp_ddpm_continuous        subvp 20   1000 128 2e-4 1300000 0.9999 0.1 -     - 35218947
cifar10_ve_ncsnpp_continuous         ve    50   1000 128 2e-4 1300000 0.999  0.1 0.16  1 62758915
cifar10_ve_ncsnpp_deep_continuous    ve    50   1000 128 2e-4 950000  0.999  0.1 0.16  1 107587075
cifar10_ve_ncsnpp                    smld  50   1000 128 2e-4 1300000 0.999  0.1 0.16  1 62693251
cifar10_ve_ddpm                      smld  50   1000 128 2e-4 1300000 0.999  0.1 0.16  1 35218947
celeba_ve_ncsnpp                     smld  90   1000 128 2e-4 1300000 0.999  0.1 0.17  1 62693251
bedroom_ve_ncsnpp_continuous         ve    378  2000 64  2e-4 2400000 0.999  0.0 0.075 1 65574549
church_ve_ncsnpp_continuous          ve    380  2000 64  2e-4 2400000 0.999  0.0 0.075 1 65574549
ffhq256_ve_ncsnpp_continuous         ve    348  2000 64  2e-4 2400000 0.999  0.0 0.075 1 65574549
celebahq256_ve_ncsnpp_continuous     ve    348  2000 64  2e-4 2400000 0.999  0.0 0.075 1 65574549
ffhq1024_ve_ncsnpp_continuous        ve    1348 2000 8   2e-4 2400000 0.9999 0.0 0.15  1 105785896
celebahq1024_ve_ncsnpp_continuous    ve    1348 2000 8   2e-4 2400000 0.9999 0.0 0.15  1 105785896
"""
# Annealed Langevin dynamics: the largest σ, N; batch, learning rate, steps; moving average; snr and steps a level.
NCSN = """
cifar10_ve_ncsn      1   10   128 1e-3 1300000 0.0    0.316 100
cifar10_ve_ncsn:5    1   10   128 1e-3 1300000 0.999  0.316 100
cifar10_ve_ncsn:124  50  232  128 1e-3 1300000 0.0    0.176 5
cifar10_ve_ncsn:1245 50  232  128 1e-3 1300000 0.999  0.176 5
celeba_ve_ncsn       1   10   128 1e-3 1300000 0.0    0.316 100
celeba_ve_ncsn:5     1   10   128 1e-3 1300000 0.999  0.316 100
celeba_ve_ncsn:124   90  500  128 1e-3 1300000 0.0    0.128 5
celeba_ve_ncsn:1245  90  500  128 1e-3 1300000 0.999  0.128 5
cifar10_ve_ncsnv2    50  232  128 1e-4 1300000 0.999  0.176 5
celeba_ve_ncsnv2     90  500  128 1e-4 1300000 0.999  0.128 5
bedroom_ve_ncsnv2    190 1086 128 1e-4 2400000 0.9999 0.095 3
"""
# Classes; batch, learning rate, millions of images; half-life in millions; dropout, augmentation; evaluations, churn.
EDM = """
cifar10_edm_ddpmpp      -    512  1e-3 200  0.5 0.13 0.12 35  0
cifar10_edm_ddpmpp_cond 10   512  1e-3 200  0.5 0.13 0.12 35  0
cifar10_edm_ncsnpp      -    512  1e-3 200  0.5 0.13 0.12 35  0
cifar10_edm_ncsnpp_cond 10   512  1e-3 200  0.5 0.13 0.12 35  0
ffhq64_edm_ddpmpp       -    256  2e-4 200  0.5 0.05 0.15 79  0
ffhq64_edm_ncsnpp       -    256  2e-4 200  0.5 0.05 0.15 79  0
afhqv2_edm_ddpmpp       -    256  2e-4 200  0.5 0.25 0.15 79  0
afhqv2_edm_ncsnpp       -    256  2e-4 200  0.5 0.25 0.15 79  0
imagenet64_edm_adm      1000 4096 1e-4 2500 50  0.10 0    511 40
"""
# Parameters in the authors' program, whose Fourier features hold 128 frequencies that it does not count.
EDM_PARAMETERS = {
    "cifar10_edm_ddpmpp": 55_733_891,
    "cifar10_edm_ddpmpp_cond": 55_735_299,
    "cifar10_edm_ncsnpp": 56_397_827 + 128,
    "cifar10_edm_ncsnpp_cond": 56_400_643 + 128,
    "ffhq64_edm_ddpmpp": 61_805_571,
    "ffhq64_edm_ncsnpp": 62_761_091 + 128,
    "afhqv2_edm_ddpmpp": 61_805_571,
    "afhqv2_edm_ncsnpp": 62_761_091 + 128,
    "imagenet64_edm_adm": 295_899_267,
}


def table(text):
    return {line.split()[0]: line.split()[1:] for line in text.strip().splitlines()}


SONGS, NCSNS, EDMS = table(SONG), table(NCSN), table(EDM)
SIZES = {"cifar10": 32, "celeba": 64, "bedroom": 256, "church": 256, "ffhq64": 64, "ffhq256": 256, "ffhq1024": 1024}
SIZES |= {"celebahq256": 256, "celebahq1024": 1024, "afhqv2": 64, "imagenet64": 64}
PUBLISHED = [name for name in experiments() if not name.startswith(("digits", "toy2d"))]
# One of each network and process; the others are proofs.
FEW = ("cifar10_vp_ddpm", "cifar10_ve_ncsnpp_continuous", "cifar10_ve_ncsn", "cifar10_ve_ncsnv2")
FEW += ("cifar10_edm_ddpmpp", "imagenet64_edm_adm")


def few(names):
    return first(names, keep=[name for name in names if name.partition(":")[0] in FEW])


def size_of(name):
    return 128 if name == "bedroom_ve_ncsnv2" else SIZES[name.split("_")[0]]


@pytest.fixture(autouse=True, scope="module")
def a_network_is_traced_once():
    """Settings of the same network share its abstract parameters."""
    with pytest.MonkeyPatch.context() as patch:
        known = {}

        def shapes(name, net, parameterization, data):
            key = name, net, parameterization, data.shape, tuple(data.conditions.items())
            if key not in known:
                known[key] = _denoiser_shapes(name, net, parameterization, data)
            return known[key]

        patch.setattr(sys.modules["diffuse_jax.config.method_section"], "_denoiser_shapes", shapes)
        yield


def of_classes(number):
    """The conditions of data with so many classes, by a number or as the tables have it."""
    return {} if number in (None, "-") else {"label": Condition((), int(number))}


@functools.cache
def built(name, *overrides):
    classes = EDMS[name][0] if name in EDMS else "-"
    return build(read(name, overrides), DataInfo((size_of(name),) * 2 + (3,), 256, of_classes(classes)))


def test_the_tables_name_every_experiment():
    names = {name.partition(":")[0] for name in [*SONGS, *NCSNS, *EDMS]}
    assert names == set(PUBLISHED)


@pytest.mark.parametrize("name", few(PUBLISHED))
def test_a_published_experiment_builds_with_the_published_number_of_parameters(name):
    count, stated = param_count(built(name).params), published(name)
    assert isinstance(stated, Published)
    if name in NCSNS:
        assert stated.parameters is None
    else:
        assert count == stated.parameters == (EDM_PARAMETERS.get(name) or int(SONGS[name][-1]))
    plan = built(name).plan
    calls = plan.solver.evaluations * (len(plan.times) - 1) + (plan.finish is denoise_once)
    assert stated.nfe in (None, calls)
    # No data are needed to know what the network must.
    assert describe(built(name).config) == built(name).data


# The first and last times of the samplers; label (N − 1)·t is entry N·t' − 1 of a table.
ENDS = {"vp": (1, 1e-3), "subvp": (1, 1e-3), "ve": (1, 1e-5), "ddpm": (1, (999e-3 + 1) / 1000)}
ENDS["smld"] = (1, (999e-5 + 1) / 1000)


def shared_of_song(config, name):
    """What score_sde's default configs say of all its settings."""
    assert (config.optimizer.b1, config.optimizer.b2, config.optimizer.eps) == (0.9, 0.999, 1e-8)
    assert config.optimizer.weight_decay == 0 and not config.loss.stratified and config.loss.weight == "sigma2"
    assert config.data.flip and not config.data.dequantize and not config.data.labels and not config.data.augment
    assert config.loss.t_min == 1e-5 and not config.ema.warmup and config.ema.halflife_images is None
    of_vp = config.sde.name in ("vp", "subvp", "ddpm")
    assert config.data.centered == of_vp
    by_mean = of_vp or name == "ffhq1024_ve_ncsnpp_continuous"
    assert config.loss.reduction == ("mean" if by_mean else "half_sum")
    discrete = config.sde.name in ("ddpm", "smld")
    assert config.loss.times == ("table" if discrete else "uniform")
    label = {"vp": "999t", "subvp": "999t", "ve": "sigma", "ddpm": "index", "smld": "reversed_index"}
    assert (config.parameterization.name, config.parameterization.c_noise) == (
        "noise" if of_vp else "score",
        label[config.sde.name],
    )


@pytest.mark.parametrize("name", few(SONGS))
def test_a_setting_of_score_sde_has_the_numbers_of_its_file(name):
    sde, most, n, batch, rate, steps, ema, dropout, snr, corrector, _ = SONGS[name]
    config = built(name).config
    shared_of_song(config, name)
    assert config.sde.name == sde
    assert (config.training.batch_size, config.training.steps) == (int(batch), int(steps))
    assert (config.optimizer.learning_rate, config.optimizer.warmup, config.optimizer.clip) == (float(rate), 5000, 1.0)
    assert (config.ema.rate, config.model.dropout) == (float(ema), float(dropout))
    if sde in ("ve", "smld"):
        levels = [built(name).sde.sigma(t) for t in (0.0 if sde == "ve" else 1 / int(n), 1.0)]
        np.testing.assert_allclose(levels, [0.01, float(most)], rtol=1e-5)
        assert (config.sampling.snr, config.sampling.corrector_steps) == (float(snr), int(corrector))
    else:
        assert (config.sde.beta_min, config.sde.beta_max) == (0.1, float(most))
    if sde in ("ddpm", "smld"):
        assert config.sde.num_scales == int(n)
    predictor = "ancestral" if sde == "ddpm" else "euler_maruyama" if sde in ("vp", "subvp") else "reverse_diffusion"
    if name == "cifar10_vp_ncsnpp":
        predictor = "reverse_diffusion"
    wanted = f"score_sde:{predictor}{'' if corrector == '-' else '+langevin'}"
    assert (config.sampling.solver, config.sampling.steps, config.sampling.finish) == (wanted, int(n), "mean")
    np.testing.assert_allclose(np.asarray(built(name).plan.times)[[0, -1]], ENDS[sde], rtol=1e-5)


SKIPS = {"progressive": "output_skip", "progressive_input": "input_skip"}


@pytest.mark.parametrize("name", few(SONGS))
def test_a_network_of_score_sde_has_the_options_of_its_file(name):
    module = built(name).net.module
    vp, deep, plus = "_ve_" not in name, "_deep" in name, "pp" in name
    wanted = {
        "nf": 128,
        "ch_mult": (1, 2, 2, 2),
        "num_res_blocks": (8 if deep else 4) if plus else 2,
        "attn_resolutions": (16,),
        "resamp_with_conv": True,
        "conditional": "unconditional" not in name,
        "nonlinearity": "swish",
        "scale_by_sigma": not vp,
    }
    if plus:
        wanted |= {"skip_rescale": True, "resblock_type": "biggan", "progressive_combine": "sum", "init_scale": 0.0}
        wanted |= {"fir_kernel": (1, 3, 3, 1), "fourier_scale": 16, "fir": "ddpmpp" not in name, "progressive": "none"}
        wanted["progressive_input"] = "none" if "ddpmpp" in name else "residual"
        wanted["embedding_type"] = "fourier" if not vp and "continuous" in name else "positional"
    if size_of(name) == 256:
        mult = (1, 1, 2, 2, 2, 2, 2) if plus else (1, 1, 2, 2, 4, 4)
        wanted |= {"ch_mult": mult, "num_res_blocks": 2} | (SKIPS if plus else {})
    if size_of(name) == 1024:
        wanted |= {"nf": 16, "ch_mult": (1, 2, 4, 8, 16, 32, 32, 32), "num_res_blocks": 1} | SKIPS
    assert type(module).__name__ == ("NCSNpp" if plus else "DDPM")
    assert {field: getattr(module, field) for field in wanted} == wanted
    assert module.centered == vp
    if not vp:
        most, n = SONGS[name][1:3]
        assert (module.sigma_min, module.sigma_max) == (0.01, float(most))
        assert module.num_scales == int(n) or module.embedding_type == "fourier"


@pytest.mark.parametrize("name", few(NCSNS))
def test_a_setting_of_ncsn_has_the_numbers_of_its_file(name):
    most, n, batch, rate, steps, ema, snr, each = NCSNS[name]
    config = read(name)
    shared_of_song(config, name)
    assert (config.sde.name, config.sde.sigma_max, config.sde.num_scales) == ("smld", float(most), int(n))
    assert (config.training.batch_size, config.training.steps) == (int(batch), int(steps))
    assert (config.optimizer.learning_rate, config.optimizer.warmup, config.optimizer.clip) == (float(rate), 0, 0.0)
    assert (config.ema.rate, config.sampling.corrector_steps) == (float(ema), int(each))
    assert (config.sampling.solver, config.sampling.snr) == ("score_sde:none+ald", float(snr))
    assert config.sampling.finish == ("denoise" if "v2" in name else "mean") and config.sampling.steps == int(n)
    assert (config.model.name, config.model.nf, config.model.nonlinearity) == (
        "ncsnv2" if "v2" in name else "ncsn",
        128,
        "elu",
    )


@pytest.mark.parametrize("name", ["cifar10_ve_ncsn:12", "celeba_ve_ncsn:v2"])
def test_an_ablation_that_is_not_there_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=r"must be one of :5, :124, :1245"):
        read(name)


@pytest.mark.parametrize("name", few(EDMS))
def test_a_setting_of_edm_has_the_options_of_its_readme(name):
    classes, batch, rate, images, halflife, dropout, augment, evaluations, churn = EDMS[name]
    experiment = built(name)
    config, plan = experiment.config, experiment.plan
    assert config.data.labels == (classes != "-") and config.data.num_classes == (
        int(classes) if classes != "-" else None
    )
    assert (config.data.centered, config.data.flip, config.data.augment) == (True, False, float(augment))
    assert (config.loss.times, config.loss.weight, config.loss.p_mean, config.loss.p_std) == (
        "log_normal",
        "edm",
        -1.2,
        1.2,
    )
    assert (config.parameterization.name, config.parameterization.c_noise) == ("edm", "edm")
    assert config.parameterization.sigma_data == 0.5 and (experiment.sde.t_min, experiment.sde.T) == (0.002, 80)
    # Enough steps for the images, and no whole step more.
    assert 0 <= config.training.steps * int(batch) - float(images) * 1e6 < int(batch)
    assert (config.training.batch_size, config.optimizer.learning_rate) == (int(batch), float(rate))
    assert config.optimizer.warmup * int(batch) == 10e6 and config.optimizer.clip == 0
    assert config.ema.rate is None and config.ema.halflife_images == float(halflife) * 1e6
    assert config.ema.rampup_ratio == 0.05 and not config.ema.warmup
    assert plan.solver.evaluations * (len(plan.times) - 1) + (config.sampling.finish == "denoise") == int(evaluations)
    n = (int(evaluations) + 1) // 2
    levels = (80 ** (1 / 7) + np.arange(n) / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(experiment.sde.sigma(plan.times), levels, rtol=1e-4)
    assert (config.sampling.churn or 0) == float(churn)
    if float(churn):
        assert (config.sampling.churn_min, config.sampling.churn_max, config.sampling.churn_noise) == (0.05, 50, 1.003)
    module = experiment.net.module
    of_adm = "adm" in name
    wanted = {"dropout": float(dropout), "model_channels": 192 if of_adm else 128, "num_blocks": 3 if of_adm else 4}
    wanted["channel_mult"] = (1, 2, 3, 4) if of_adm else (2, 2, 2) if "cifar10" in name else (1, 2, 2, 2)
    wanted |= {"augment_dim": 0 if of_adm else 9, "label_dim": int(classes) if classes != "-" else 0}
    wanted["attn_resolutions"] = (32, 16, 8) if of_adm else (16,)
    assert {field: getattr(module, field) for field in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "shallow"),
    [
        *((name, True) for name in ("cifar10_ve_ncsnv2", "cifar10_edm_ncsnpp_cond")),
        *(proof(name, True) for name in ("cifar10_vp_ddpm", "cifar10_ve_ncsn", "cifar10_ve_ncsnpp_continuous")),
        proof("imagenet64_edm_adm", True),
        # At their own depths, which takes minutes.
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in PUBLISHED),
    ],
)
def test_a_step_of_training_and_one_of_sampling_are_of_the_shapes_of_the_data(name, shallow):
    blocks = [field for field in ("num_res_blocks", "num_blocks") if shallow and field in read(name).model]
    experiment = built(name, *(f"--config.model.{field}=1" for field in blocks))
    shape = (2, *experiment.data.shape)
    batch = {"x": jax.ShapeDtypeStruct(shape, jnp.uint8)}
    if experiment.data.num_classes:
        batch["label"] = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    state = experiment.state_shapes
    after, metrics = jax.eval_shape(experiment.update(), state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
    plan = experiment.plan

    def sampling_step(params, x):
        denoise = experiment.denoiser(params)
        memory = plan.solver.init(x, plan.times, denoise)
        moved, mean, _ = plan.solver.step(lambda i: jnp.ones_like(x), x, memory, *plan.times[:2], denoise)
        return moved, mean

    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert [leaf.shape for leaf in jax.eval_shape(sampling_step, experiment.params, x)] == [shape, shape]


# --- what is derived, and what cannot be met --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_its_derived_fields_from_data_and_process(name):
    names = {field for field in DERIVED if field in NETWORKS[name].__dataclass_fields__}
    assert not names & set(network(name))
    # The two that denoise nothing are built with their methods, in test_cli_autoencoder.py and test_classifier.py.
    if name in ("mlp", "autoencoder", "encoder"):
        return
    config = base()
    config.data.centered, config.ema.rate = False, 0.5
    config.sde.name, config.sde.sigma_max, config.sde.num_scales = "smld", 7.0, 12
    config.parameterization.name, config.parameterization.c_noise = "score", "reversed_index"
    tiny = {"nf": 32, "ch_mult": (1,), "dilations": (1,), "refine_mult": (1,), "model_channels": 32, "num_blocks": 1}
    tiny |= {"channel_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "embedding_type": "positional"}
    tiny |= {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    config.model = network(name)
    config.model.update({field: value for field, value in tiny.items() if field in config.model})
    classes = 5 if names & {"num_classes", "label_dim"} else None
    module = build(config, DataInfo((8, 8, 3), 256, of_classes(classes))).net.module
    wanted = {"num_classes": classes, "label_dim": classes, "centered": False, "img_resolution": 8, "out_channels": 3}
    wanted |= {"augment_dim": 0, "sigma_min": 0.01, "sigma_max": 7.0, "num_scales": 12}
    wanted |= {"image_channels": 0, "vocabulary": 0, "context_length": 64}
    assert {field: getattr(module, field) for field in names} == {field: wanted[field] for field in names}


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("cifar10_ve_ncsnpp_continuous", ["parameterization.c_noise=t"], r"c_noise='t' must be 'sigma'"),
        ("cifar10_ve_ncsnpp", ["parameterization.c_noise=index"], r"scale_by_sigma .* config.sde.name='smld'"),
        (
            "cifar10_ve_ddpm",
            ["sde.name=ddpm", "parameterization.c_noise=index"],
            r"scale_by_sigma .* table of noise levels",
        ),
        ("cifar10_ve_ncsn", ["sde.name=ve", "parameterization.c_noise=sigma", "loss.times=uniform"], r"one of index,"),
        ("cifar10_vp_ddpmpp_continuous", ["loss.times=table"], r"config.loss.times='table' needs .* a table"),
        (
            "cifar10_ve_ncsn",
            ["data.labels=True", "data.num_classes=3"],
            r"condition 'label', which config\.model\.name='ncsn' does not read",
        ),
        ("cifar10_vp_ddpm", ["data.augment=0.1"], r"augment=0\.1: .*'ddpm' is not told"),
        ("cifar10_edm_ddpmpp", ["data.augment=1.5"], r"config\.data\.augment=1\.5 must be at least 0 and at most 1"),
        ("cifar10_edm_ddpmpp", ["loss.p_std=0.0"], r"config\.loss\.p_std=0\.0 must be above 0"),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_field(name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build(read(name, [f"--config.{override}" for override in overrides]))


def test_times_of_a_table_are_its_own_and_all_as_probable():
    experiment = built("cifar10_vp_ddpm")
    u = (np.arange(4000, dtype=np.float32) + 0.5) / 4000
    t, density = losses.table_times(jnp.asarray(u), experiment.sde, 1e-5)
    entries = np.asarray(experiment.parameterization.c_noise(experiment.sde, t))
    np.testing.assert_allclose(entries, np.arange(4000) // 4, atol=1e-3)
    np.testing.assert_array_equal(density, np.ones(4000))


def test_the_loss_of_edm_has_its_weight_at_its_noise_levels():
    """At x0 = 0, a network that gives 0 leaves ‖target‖² = σ_data²·eps²/(σ² + σ_data²)."""
    options = ["sde.name=edm", "parameterization.name=edm", "parameterization.c_noise=sigma", "loss.weight=edm"]
    options += ["loss.times=log_normal", "model.width=4", "model.depth=1", "loss.reduction=mean"]
    levels = [(0.0, 1e-3), (np.log(0.5), 1e-3), (-1.2, 1.2)]
    experiments = [
        build(
            read("toy2d", [f"--config.{o}" for o in (*options, f"loss.p_mean={mean}", f"loss.p_std={std}")]),
            DataInfo((2,), None),
        )
        for mean, std in levels
    ]
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), experiments[0].params)
    draws = dataclasses.replace(step_draws(jax.random.key(0), jnp.int32(0), 4096), rng=None)
    batch = {"x": jnp.zeros((4096, 2))}
    losses = [experiment.method.updates[0].loss for experiment in experiments]
    found = jax.jit(lambda: jnp.stack([jnp.mean(loss(zero, {}, batch, draws).each) for loss in losses]))()
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    wanted = [np.sum(weights * 0.25 / (np.exp(2 * (m + s * nodes)) + 0.25)) / np.sum(weights) for m, s in levels]
    np.testing.assert_allclose(found, wanted, rtol=0.06)


def test_the_network_is_told_of_the_augmentation_and_heldout_images_have_none():
    tiny = {"model_channels": 8, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": ()}
    config = read("cifar10_edm_ddpmpp")
    config.data.augment, config.model.dropout = 0.5, 0.0
    config.model.update(tiny)
    experiment = build(config, DataInfo((8, 8, 3), 256))
    leaves, tree = jax.tree.flatten(experiment.params)
    draws = [jax.random.normal(jax.random.key(i), leaf.shape) * 0.3 for i, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, draws)
    deaf = {**params, "augment": jax.tree.map(jnp.zeros_like, params["augment"])}
    batch = {"x": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)}
    draws = dataclasses.replace(step_draws(jax.random.key(0), jnp.int32(0), 4), rng=None)
    losses = experiment.method.updates[0].loss, experiment.method.heldout["loss"]

    @jax.jit
    def both(params):
        return tuple(loss(params, {}, batch, draws).each for loss in losses)

    (told, heldout), (untold, same) = both(params), both(deaf)
    assert not np.allclose(told, untold, rtol=1e-3) and not np.allclose(untold, same, rtol=1e-3)
    np.testing.assert_array_equal(heldout, same)


def test_the_moving_average_of_edm_forgets_faster_at_the_start():
    ema = built("cifar10_edm_ddpmpp").method.ema
    steps = np.asarray([0, 1000, 100_000])
    wanted = 0.5 ** (512 / np.minimum(500_000, np.maximum(0.05 * 512 * steps, 1e-8)))
    np.testing.assert_allclose([float(ema(jnp.asarray(step))) for step in steps], wanted, rtol=1e-5)


def test_classes_are_known_without_data_and_checked_against_them():
    assert describe(read("imagenet64_edm_adm")).num_classes == 1000
    config = read("digits", ["--config.data.labels=True", "--config.data.num_classes=9"])
    with pytest.raises(ConfigError, match=r"config\.data\.num_classes=9, but digits has 10 classes"):
        describe(config)


# --- the figures ------------------------------------------------------------------------------------------------------


def test_figures_are_read_from_the_file_and_a_variant_has_none():
    stated = published("cifar10_ve_ncsnpp_deep_continuous")
    assert (stated.fid.value, stated.inception_score.value, stated.nfe) == (2.20, 9.89, 2000)
    assert set(stated.figures) == {"fid", "inception_score"}
    assert published("digits") is None and published("cifar10_ve_ncsn:5") is None
    assert fid(2.0) != fid(2.0, remembered=True) and isinstance(bits_per_dim(3.0), Figure)


def test_the_page_is_what_its_generator_gives():
    page = reproduce.PAGE.read_text(encoding="utf-8")
    assert page == reproduce.page(page), "run python benchmarks/reproduce.py"


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_that_was_published_of_a_setting_is_on_the_page(name):
    stated = published(name)
    text = reproduce.PAGE.read_text(encoding="utf-8")
    row, remarks = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
    for figure in stated.figures.values():
        assert f"| {figure.value:.2f} ± {figure.band:.2f}{'†' if figure.remembered else ''} |" in row
        assert f": {figure.reason}." in text
    assert ("unscored" in row) == (not stated.figures)
    assert all(fact in remarks for fact in (stated.source, stated.original, stated.notes))
    if stated.parameters:
        assert f"{stated.parameters:,}" in row
    if stated.nfe:
        assert f"| {stated.nfe:,} |" in row
