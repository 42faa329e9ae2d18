"""The networks: parameter names and shapes of the released files, positions, and the student's start."""

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import close
from diffusers.models.autoencoders.autoencoder_rae import RAEDecoder
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from mfkit.autoencoders.rae import RAE, RAEConfig
from mfkit.autoencoders.timm_encoder import TIMM
from mfkit.models.dit import AverageVelocityDiT, DiTConfig, VelocityDiT
from mfkit.models.generator import Generator
from mfkit.models.layers import Linear, RotaryPositions, sincos_positions

pytestmark = pytest.mark.fast

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
SMALL = DiTConfig(
    channels=8, side=4, num_classes=5, width=24, depth=2, heads=2, head_width=32, head_depth=2, head_heads=2
)
ENCODER = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, reg_tokens=2)


def perturbed(network: Generator) -> Generator:
    torch.manual_seed(1)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def inputs(config: DiTConfig, batch: int = 3) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(2)
    z = torch.randn(batch, config.channels, config.side, config.side)
    r, t = torch.rand(2, batch).sort(0).values
    return z, r, t, torch.arange(batch)


def released_names(config: DiTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a DiT-DH checkpoint, written down by hand from the published description."""
    width, head, side = config.width, config.head_width, config.side
    names = {
        "pos_embed": (1, side**2, width),
        "s_embedder.proj.weight": (width, config.channels, 1, 1),
        "s_embedder.proj.bias": (width,),
        "x_embedder.proj.weight": (head, config.channels, 1, 1),
        "x_embedder.proj.bias": (head,),
        "y_embedder.embedding_table.weight": (config.num_classes + 1, width),
        "s_projector.weight": (head, width),
        "s_projector.bias": (head,),
        "final_layer.norm_final.weight": (head,),
        "final_layer.linear.weight": (config.channels, head),
        "final_layer.linear.bias": (config.channels,),
        "final_layer.adaLN_modulation.1.weight": (2 * head, head),
        "final_layer.adaLN_modulation.1.bias": (2 * head,),
    }
    for embedder in ("t_embedder", "r_embedder"):
        names |= {
            f"{embedder}.W": (256,),
            f"{embedder}.mlp.0.weight": (width, 512),
            f"{embedder}.mlp.0.bias": (width,),
            f"{embedder}.mlp.2.weight": (width, width),
            f"{embedder}.mlp.2.bias": (width,),
        }
    for part, size, heads in (("enc", width, config.heads), ("dec", head, config.head_heads)):
        names |= {f"{part}_feat_rope.freqs_{f}": (side**2, size // heads) for f in ("cos", "sin")}
    for i in range(config.depth + config.head_depth):
        size = width if i < config.depth else head
        hidden = int(2 / 3 * 4 * size)
        for name, shape in {
            "norm1.weight": (size,),
            "norm2.weight": (size,),
            "attn.qkv.weight": (3 * size, size),
            "attn.qkv.bias": (3 * size,),
            "attn.proj.weight": (size, size),
            "attn.proj.bias": (size,),
            "mlp.w12.weight": (2 * hidden, size),
            "mlp.w12.bias": (2 * hidden,),
            "mlp.w3.weight": (size, hidden),
            "mlp.w3.bias": (size,),
            "adaLN_modulation.1.weight": (6 * size, size),
            "adaLN_modulation.1.bias": (6 * size,),
        }.items():
            names[f"blocks.{i}.{name}"] = shape
    return names


def test_names_and_shapes_are_those_of_released_checkpoints() -> None:
    expected = released_names(SMALL)
    student = {name: tuple(value.shape) for name, value in AverageVelocityDiT(SMALL).state_dict().items()}
    assert student == expected
    teacher = {name: tuple(value.shape) for name, value in VelocityDiT(SMALL).state_dict().items()}
    assert teacher == {name: shape for name, shape in expected.items() if not name.startswith("r_embedder.")}


def test_student_starts_exactly_as_its_teacher() -> None:
    teacher = perturbed(VelocityDiT(SMALL))
    student = AverageVelocityDiT.from_teacher(teacher)
    z, r, t, y = inputs(SMALL)
    assert torch.equal(student(z, t, t, y), teacher(z, t, y))
    assert torch.equal(student(z, r, t, y), teacher(z, t, y))


def test_student_learns_the_interval() -> None:
    student = AverageVelocityDiT.from_teacher(perturbed(VelocityDiT(SMALL)))
    z, r, t, y = inputs(SMALL)
    student(z, r, t, y).square().mean().backward()
    gradient = student.r_embedder.mlp[2].weight.grad
    assert gradient is not None and gradient.abs().max() > 0
    before = student(z, r, t, y)
    perturbed(student)
    assert not torch.allclose(student(z, r, t, y), student(z, t, t, y))
    assert not torch.allclose(before, student(z, r, t, y))


def test_every_trained_parameter_matters() -> None:
    network = perturbed(AverageVelocityDiT(SMALL))
    network(*inputs(SMALL, 5)).square().sum().backward()
    silent = [
        name for name, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().any())
    ]
    assert silent == []


def test_fresh_network_predicts_zero() -> None:
    z, _, t, y = inputs(SMALL)
    assert VelocityDiT(SMALL)(z, t, y).abs().max() == 0


def test_positions_are_those_of_mae() -> None:
    ours = sincos_positions(32, 4)[0]
    theirs = get_2d_sincos_pos_embed(32, 4, base_size=4, output_type="pt")
    assert torch.allclose(ours, theirs.float(), atol=1e-6)


def test_rotary_products_depend_on_relative_places_only() -> None:
    rope = RotaryPositions(16, 5)
    query, key = torch.randn(2, 16)
    turned_q = rope(query.expand(1, 1, 25, 16))[0, 0].view(5, 5, 16)
    turned_k = rope(key.expand(1, 1, 25, 16))[0, 0].view(5, 5, 16)
    one = turned_q[0, 1] @ turned_k[2, 4]
    assert torch.allclose(one, turned_q[1, 0] @ turned_k[3, 3], atol=1e-5)
    assert not torch.allclose(one, turned_q[0, 1] @ turned_k[4, 2], atol=1e-3)
    assert torch.allclose(turned_q.norm(dim=-1), query.norm().expand(5, 5), atol=1e-5)


def test_rotary_turns_neighbouring_dimensions_by_row_then_column() -> None:
    rope = RotaryPositions(8, 3)
    x = torch.zeros(1, 1, 9, 8)
    x[..., 0] = 1  # first pair: the row, frequency 1
    turned = rope(x)[0, 0].view(3, 3, 8)
    angle = torch.tensor(2.0)
    assert torch.allclose(turned[2, 1, :2], torch.stack([angle.cos(), angle.sin()]), atol=1e-6)
    assert torch.equal(turned[:, 0], turned[:, 2])


def tiny_rae(image_size: int = 32) -> RAE:
    torch.manual_seed(0)
    config = RAEConfig(
        encoder_name="vit_tiny_patch16_224",
        encoder=ENCODER,
        encoder_size=32,
        image_size=image_size,
        channels=32,
        side=4,
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=2,
        decoder_hidden=64,
    )
    rae = RAE(config).eval()
    rae.latent_mean.normal_()
    rae.latent_var.uniform_(0.5, 2)
    return rae


def test_latents_are_patch_tokens_without_affine_norm_standardised() -> None:
    rae = tiny_rae()
    torch.nn.init.normal_(rae.encoder.norm.weight)
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - MEAN) / STD
    encoder = rae.encoder
    saved = encoder.norm
    encoder.norm = torch.nn.Identity()
    tokens = encoder.forward_features(normalised)[:, 3:]  # a class token and two registers come first
    encoder.norm = saved
    tokens = F.layer_norm(tokens, (32,), eps=saved.eps).transpose(1, 2).reshape(2, 32, 4, 4)
    expected = (tokens - rae.latent_mean) / (rae.latent_var + 1e-5).sqrt()
    assert torch.allclose(rae.encode(images), expected, atol=1e-5)


def test_decoder_is_diffusers_own_on_the_plain_features() -> None:
    rae = tiny_rae()
    latents = torch.randn(2, 32, 4, 4)
    reference = RAEDecoder(
        hidden_size=32, decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, num_patches=16, patch_size=8, image_size=32,
    ).eval()  # fmt: skip
    reference.load_state_dict(rae.decoder.state_dict())
    features = latents * (rae.latent_var + 1e-5).sqrt() + rae.latent_mean
    patches = reference(features.flatten(2).transpose(1, 2)).logits
    pixels = torch.einsum("bhwpqc->bchpwq", patches.reshape(2, 4, 4, 8, 8, 3)).reshape(2, 3, 32, 32)
    assert torch.allclose(rae.decode(latents), (pixels * STD + MEAN).clamp(0, 1), atol=1e-5)


def test_encoder_names_are_timms() -> None:
    rae = tiny_rae()
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, **ENCODER)
    model.load_state_dict(rae.encoder.state_dict())


def test_encoder_is_frozen_and_stays_in_evaluation_mode() -> None:
    rae = tiny_rae().train()
    assert not rae.encoder.training and rae.decoder.training
    assert not any(parameter.requires_grad for parameter in rae.encoder.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_reg4_dinov2",
        "vit_small_patch14_dinov2",
        "vit_base_patch16_siglip_224",
        "vit_small_patch16_dinov3",
        "vit_base_patch16_224.mae",
        "vit_wee_patch16_reg1_gap_256",  # its last norm comes after the pooling
    ],
)
def test_published_encoders_give_patch_grids(name: str) -> None:
    patch = 14 if "patch14" in name else 16
    model = timm.create_model(name, num_classes=0, img_size=4 * patch, depth=2, pretrained=False).eval()
    tokens = TIMM.patch_tokens(model, torch.randn(1, 3, 4 * patch, 4 * patch))
    assert tokens.shape[2:] == (4, 4)
    assert torch.allclose(tokens.mean(1), torch.zeros(1, 4, 4), atol=1e-5)


@pytest.mark.parametrize("rows", [100, 300])
def test_large_products_without_gradients_are_those_of_a_linear_layer(rows: int) -> None:
    layer, x = Linear(600, 512), torch.randn(2, rows, 600)
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    with torch.no_grad():
        close(layer(x), exact, 1e-6)
        slope = torch.func.jvp(layer, (x,), (2 * x,))[1]
    close(slope, 2 * (exact - layer.bias.double()), 1e-6)
    close(layer(x).detach(), exact, 1e-6)


def test_an_evaluation_compiles_to_one_graph() -> None:
    """The layers' own derivatives do not break it."""
    network, at = perturbed(AverageVelocityDiT(SMALL)), inputs(SMALL)
    with torch.no_grad():
        assert torch.equal(torch.compile(network, fullgraph=True, backend="eager")(*at), network(*at))
