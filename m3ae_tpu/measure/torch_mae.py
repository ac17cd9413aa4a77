"""A masked autoencoder's train step in PyTorch, of the same sizes as ours: what a user would
otherwise train.

Blocks are timm's, compiled by `torch.compile`, parameters float32, products bfloat16 by autocast,
AdamW fused: the settings that PyTorch's users take for speed. Images alone.
"""

import functools
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]
from timm.models.vision_transformer import Block  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from m3ae_tpu.config import ModelConfig, PretrainConfig, TransformerConfig


class MaskedAutoencoder(nn.Module):
    """Encodes a quarter of the patches, decodes all, and compares the hidden ones."""

    def __init__(self, model: ModelConfig, num_patches: int, num_visible: int):
        super().__init__()
        width, decoder_width = model.encoder.width, model.decoder.width
        values = model.patch_size**2 * 3
        self.patch_size, self.num_visible = model.patch_size, num_visible
        self.embed = nn.Linear(values, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        # The values of the tables do not change the time.
        self.register_buffer("positions", torch.randn(num_patches, width))
        self.register_buffer("decoder_positions", torch.randn(num_patches, decoder_width))
        self.encoder = _stack(model.encoder)
        self.decoder_input = nn.Linear(width, decoder_width)
        self.decoder = _stack(model.decoder)
        self.head = nn.Linear(decoder_width, values)

    def forward(self, images: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Returns the mean squared error at the hidden patches of uint8 images [batch, height,
        width, 3].
        """
        images = torch.where(flip[:, None, None, None], images.flip(2), images).float() / 127.5 - 1
        batch, side = images.shape[0], images.shape[1] // self.patch_size
        patches = images.reshape(batch, side, self.patch_size, side, self.patch_size, 3)
        patches = patches.permute(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)
        order = torch.rand(batch, side * side, device=images.device).argsort(dim=1)
        visible, hidden = order[:, : self.num_visible], order[:, self.num_visible :]
        x = self.embed(_pick(patches, visible)) + self.positions[visible]
        x = torch.cat([self.cls_token.expand(batch, -1, -1), x], dim=1)
        x = self.decoder_input(self.encoder(x))
        masks = self.mask_token.expand(batch, hidden.shape[1], -1).to(x.dtype)
        decoded = torch.cat([x[:, 1:], masks], dim=1) + self.decoder_positions[order].to(x.dtype)
        x = self.decoder(torch.cat([x[:, :1], decoded], dim=1))
        guesses = self.head(x[:, 1 + self.num_visible :])
        return (guesses.float() - _pick(patches, hidden)).square().mean()


def _stack(config: TransformerConfig) -> nn.Sequential:
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    activation = functools.partial(nn.GELU, approximate="tanh")
    blocks = [
        Block(
            config.width,
            config.num_heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=True,
            norm_layer=norm,
            act_layer=activation,
        )
        for _ in range(config.num_layers)
    ]
    return nn.Sequential(*blocks, norm(config.width))


def _pick(tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


def make_step(config: PretrainConfig, device: str = "cuda") -> Callable[[], torch.Tensor]:
    """Returns a function that takes a train step on a fixed random batch and returns its loss.

    Args:
        config: `model`, `masking.image_mask_ratio`, `batch_size`, `data.image_size` and `optimizer`
            count.
        device: PyTorch's name of the device.
    """
    torch.manual_seed(0)
    size, rows = config.data.image_size, config.batch_size
    num_patches = (size // config.model.patch_size) ** 2
    num_visible = int(num_patches * (1 - config.masking.image_mask_ratio))
    model = MaskedAutoencoder(config.model, num_patches, num_visible).to(device)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.base_learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    images = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, device=device)
    flip = torch.rand(rows, device=device) < 0.5
    compiled = torch.compile(model)

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(images, flip)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step
