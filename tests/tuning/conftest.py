"""A Stable Diffusion of random weights, in the folder layout of the large ones: some hundred kilobytes."""

import pytest
import torch


def write_stable_diffusion(folder, write_tokenizer, text, seed=0):
    """A folder with unet, vae, text_encoder, tokenizer and scheduler."""
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    words = write_tokenizer(folder / "tokenizer")
    special = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=words, **text, **special))
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2, cross_attention_dim=12, norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(4, 4, 4, 4), down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=1, latent_channels=4, norm_num_groups=2,
        )  # fmt: skip
    for part, name in ((unet, "unet"), (vae, "vae"), (text_encoder, "text_encoder")):
        part.save_pretrained(folder / name, safe_serialization=True)
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory, write_tokenizer, small_text):
    pytest.importorskip("diffusers", reason="needs the extra: pip install 'sinfusion[tune]'")
    return write_stable_diffusion(tmp_path_factory.mktemp("models") / "stable-diffusion", write_tokenizer, small_text)
