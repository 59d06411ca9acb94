"""A vision transformer that really knows its digits, trained in seconds."""

import os
from pathlib import Path

os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")  # else it complains about its CUDA libraries

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from qbench.data.pixels import Recipe
from qbench.data.vision import Images

STEPS, BATCH, PEAK = 240, 64, 3e-3
RECIPE = Recipe(channels=1, mean=(0.3,), std=(0.37,))  # what the digits' own bytes average to, and their spread


def untrained(classes: tuple[str, ...], seed: int = 0) -> ViTForImageClassification:
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    model = ViTForImageClassification(config)
    with torch.no_grad():  # places must tell each other apart from the first step
        model.vit.embeddings.position_embeddings.normal_(0, 0.5)
    return model


def trained(images: Images, seed: int = 0) -> ViTForImageClassification:
    """More than 90 % of `images`' own test split right; the global random state and thread count are as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        model = untrained(images.classes, seed)
        part = images.part("train")
        fit(model, RECIPE.apply(part.pixels), torch.from_numpy(part.labels.copy()))
    torch.set_num_threads(threads)
    return model.eval()


def fit(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, STEPS)
    model.train()
    for _ in range(STEPS):
        chosen = torch.randint(len(labels), (BATCH,))
        loss = cross_entropy(model(pixels[chosen]).logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def save(model: ViTForImageClassification, folder: Path) -> Path:
    """The model as a folder of safetensors and config, with its preprocessing beside it."""
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "do_resize": false, "do_rescale": true, '
        f'"do_normalize": true, "image_mean": [{RECIPE.mean[0]}], "image_std": [{RECIPE.std[0]}]}}\n'
    )
    return folder
