"""Other programs' options and the fields of experiments say the same, in both directions."""

import pytest
from tiers import proof

from diffuse_jax.config import build, override, read
from diffuse_jax.config.foreign_options import diffusers_fields, edm_fields, score_sde_fields, score_sde_options
from diffuse_jax.convert import ConversionError, network_of

SMALL = ["--config.model.nf=32", "--config.model.num_res_blocks=1", "--config.model.ch_mult=(1,1)"]


@pytest.mark.parametrize(
    "name",
    [
        "cifar10_ve_ncsnpp_continuous",
        proof("cifar10_ve_ncsnpp"),
        "cifar10_vp_ddpm",
        proof("cifar10_vp_ddpmpp_continuous"),
        proof("cifar10_subvp_ddpm_continuous"),
    ],
)
def test_an_experiment_of_score_sde_comes_back_from_its_options(name):
    experiment = build(override(read(name), SMALL))
    options = score_sde_options(experiment)
    fields = score_sde_fields(options)
    for path in fields.keys() - {"data.source"}:
        section, field = path.split(".")
        stated = experiment.config[section][field]
        # Noise levels that an experiment leaves to its process are stated of the network.
        wanted = getattr(experiment.net.module, field) if stated is None and section == "sde" else stated
        assert fields[path] == wanted, path
    # What the sampler needs is among them.
    for field in ("solver", "steps", "snr", "corrector_steps", "finish", "kappa"):
        assert f"sampling.{field}" in fields or experiment.config.sampling[field] is None
    assert network_of(options) == experiment.net.module


def test_options_at_one_level_say_what_sections_say():
    options = score_sde_options(build(override(read("cifar10_vp_ddpm"), SMALL)))
    flat = {name: value for section in options.values() for name, value in section.items()}
    assert score_sde_fields(flat) == score_sde_fields(options)


def test_a_sampler_that_score_sde_states_is_taken_and_one_that_it_does_not_is_its_own():
    ve = {"sde": "vesde", "continuous": True}
    assert score_sde_fields(ve)["sampling.solver"] == "score_sde:reverse_diffusion+langevin"
    assert score_sde_fields({**ve, "sde": "subvpsde"})["sampling.solver"] == "score_sde:euler_maruyama"
    said = score_sde_fields({**ve, "predictor": "none", "corrector": "ald", "probability_flow": True, "num_scales": 7})
    assert said["sampling.solver"] == "score_sde:none+ald"
    assert said["sampling.kappa"] == 0 and said["sampling.steps"] == 7
    assert score_sde_fields({**ve, "method": "ode"})["sampling.solver"] == "adaptive"
    with pytest.raises(ConversionError, match="vesde, vpsde or subvpsde"):
        score_sde_fields({"sde": "edm"})


@pytest.mark.parametrize("name", ["precond", "class_name"])
def test_the_class_of_edms_preconditioner_decides_the_process(name):
    options = {"img_resolution": 32, "sigma_data": 0.25}
    edm = edm_fields({**options, name: "training.networks.EDMPrecond"})
    assert (edm["sde.name"], edm["parameterization.sigma_data"]) == ("edm", 0.25)
    vp = edm_fields({**options, name: "training.networks.VPPrecond"})
    assert (vp["sde.name"], vp["parameterization.name"], vp["parameterization.c_noise"]) == ("vp", "noise", "999t")
    assert (vp["sde.beta_min"], vp["sde.beta_max"]) == (0.1, 20.0)
    with pytest.raises(ConversionError, match=r"VEPrecond.* is not carried over"):
        edm_fields({**options, name: "VEPrecond"})
    assert edm_fields(options)["sde.name"] == "edm"


def test_the_sampler_of_diffusers_ve_pipeline_is_that_of_its_scheduler():
    unet = {"sample_size": 8, "time_embedding_type": "fourier"}
    scheduler = {
        "_class_name": "ScoreSdeVeScheduler",
        "num_train_timesteps": 30,
        "snr": 0.1,
        "correct_steps": 2,
        "sampling_eps": 1e-4,
        "sigma_max": 60.0,
    }
    fields = diffusers_fields(unet, scheduler)
    assert {path: fields[path] for path in fields if path.startswith(("sampling.", "sde."))} == {
        "sde.name": "ve",
        "sde.sigma_min": 0.01,
        "sde.sigma_max": 60.0,
        "sampling.solver": "score_sde:reverse_diffusion+langevin",
        "sampling.steps": 30,
        "sampling.snr": 0.1,
        "sampling.corrector_steps": 2,
        "sampling.t_min": 1e-4,
        "sampling.finish": "mean",
    }
    with pytest.raises(ConversionError, match="square"):
        diffusers_fields({"sample_size": [8, 16]}, None)
