"""Names and shapes of gated checkpoints as published, written out without the libraries that load them; fillings."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def filled(shapes: Shapes, seed: int = 0, scale: float = 0.05) -> dict[str, Tensor]:
    """Normal draws under these names; norms' weights about 1."""
    g = torch.Generator().manual_seed(seed)
    state = {name: scale * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return {name: value + 1 if is_norm_weight(name) else value for name, value in state.items()}


def is_norm_weight(name: str) -> bool:
    *_, layer, last = ("", *name.split("."))
    return last == "weight" and (layer.startswith("ln_") or "norm" in layer.lower())


def conch_text_shapes(layers: int = 12, width: int = 768, out: int = 512, vocabulary: int = 32007) -> Shapes:
    """CONCH's text tower: 128 places, the last of them the class token's."""
    shapes: Shapes = {
        "text.cls_emb": (width,),
        "text.token_embedding.weight": (vocabulary, width),
        "text.positional_embedding": (128, width),
        "text.ln_final.weight": (width,),
        "text.ln_final.bias": (width,),
        "text.text_projection": (width, out),
    }
    for layer in range(layers):
        parts = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }
        shapes |= {f"text.transformer.resblocks.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes


def conch_image_shapes(layers: int = 12, width: int = 768, out: int = 512, side: int = 448) -> Shapes:
    """CONCH's image tower without its caption pooling: a plain ViT, and one query that pools its tokens."""
    vit = vit_shapes(width, layers, 4 * width, 16) | {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (side // 16) ** 2, width),
        **{f"blocks.{block}.mlp.fc2.weight": (width, 4 * width) for block in range(layers)},
    }
    pool: Shapes = {
        "attn_pool_contrast.query": (1, out),
        "attn_pool_contrast.attn.q_proj_weight": (out, out),
        "attn_pool_contrast.attn.k_proj_weight": (out, width),
        "attn_pool_contrast.attn.v_proj_weight": (out, width),
        "attn_pool_contrast.attn.in_proj_bias": (3 * out,),
        "attn_pool_contrast.attn.out_proj.weight": (out, out),
        "attn_pool_contrast.attn.out_proj.bias": (out,),
        "attn_pool_contrast.ln_q.weight": (out,),
        "attn_pool_contrast.ln_q.bias": (out,),
        "attn_pool_contrast.ln_k.weight": (width,),
        "attn_pool_contrast.ln_k.bias": (width,),
        "ln_contrast.weight": (out,),
        "ln_contrast.bias": (out,),
        "proj_contrast": (out, out),
    }
    trunk = {f"trunk.{name}": shape for name, shape in vit.items() if ".ls" not in name}
    return {f"visual.{name}": shape for name, shape in (trunk | pool).items()}


def plip_shapes() -> Shapes:
    """PLIP's model.safetensors, as transformers' CLIPModel names its entries."""
    shapes: Shapes = {
        "logit_scale": (),
        "text_projection.weight": (512, 512),
        "visual_projection.weight": (512, 768),
        "text_model.embeddings.token_embedding.weight": (49408, 512),
        "text_model.embeddings.position_embedding.weight": (77, 512),
        "vision_model.embeddings.class_embedding": (768,),
        "vision_model.embeddings.patch_embedding.weight": (768, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, 768),
        # buffers of older libraries
        "text_model.embeddings.position_ids": (1, 77),
        "vision_model.embeddings.position_ids": (1, 50),
    }
    shapes |= norm("text_model.final_layer_norm", 512)
    shapes |= norm("vision_model.pre_layrnorm", 768) | norm("vision_model.post_layernorm", 768)
    for tower, width in (("text_model", 512), ("vision_model", 768)):
        for layer in range(12):
            parts = norm("layer_norm1", width) | norm("layer_norm2", width)
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                parts |= linear(f"self_attn.{part}", width, width)
            parts |= linear("mlp.fc1", 4 * width, width) | linear("mlp.fc2", width, 4 * width)
            shapes |= {f"{tower}.encoder.layers.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes


def quiltnet_shapes() -> Shapes:
    """QuiltNet-B-32's open_clip_pytorch_model.bin: CLIP's ViT-B/32 as OpenAI and open_clip name its entries."""
    shapes: Shapes = {
        "logit_scale": (),
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "token_embedding.weight": (49408, 512),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 32, 32),
        **norm("ln_final", 512),
        **norm("visual.ln_pre", 768),
        **norm("visual.ln_post", 768),
    }
    for tower, width in (("", 512), ("visual.", 768)):
        for layer in range(12):
            parts = norm("ln_1", width) | norm("ln_2", width) | linear("attn.out_proj", width, width)
            parts |= {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)}
            parts |= linear("mlp.c_fc", 4 * width, width) | linear("mlp.c_proj", width, 4 * width)
            shapes |= {f"{tower}transformer.resblocks.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes


def pubmedbert_shapes() -> Shapes:
    """PubMedBERT, a BertModel without its pooling layer."""
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (30522, 768),
        "embeddings.position_embeddings.weight": (512, 768),
        "embeddings.token_type_embeddings.weight": (2, 768),
        "embeddings.position_ids": (1, 512),  # a buffer of older libraries
        **norm("embeddings.LayerNorm", 768),
    }
    for layer in range(12):
        parts = norm("attention.output.LayerNorm", 768) | norm("output.LayerNorm", 768)
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            parts |= linear(f"attention.{part}", 768, 768)
        parts |= linear("intermediate.dense", 3072, 768) | linear("output.dense", 768, 3072)
        shapes |= {f"encoder.layer.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes


def keep_shapes() -> Shapes:
    """KEEP's model.safetensors."""
    vit = timm_vit(1024, 24, 16, 197)  # UNI's ViT-L/16
    head = linear("visual_head.0", 768, 1024) | linear("visual_head.2", 768, 768)
    text = pubmedbert_shapes() | linear("pooler.dense", 768, 768)
    return {
        "logit_scale": (),
        **{f"visual.{name}": shape for name, shape in vit.items()},
        **head,
        **{f"text.{name}": shape for name, shape in text.items()},
    }


def biomedclip_shapes() -> Shapes:
    """BiomedCLIP's open_clip_pytorch_model.bin."""
    vit = vit_shapes(768, 12, 3072, 16) | {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 197, 768),
        **{f"blocks.{block}.mlp.fc2.weight": (768, 3072) for block in range(12)},
    }
    return {
        "logit_scale": (),
        **{f"visual.trunk.{name}": shape for name, shape in vit.items() if ".ls" not in name},
        "visual.head.proj.weight": (512, 768),
        **{f"text.transformer.{name}": shape for name, shape in pubmedbert_shapes().items()},
        "text.proj.0.weight": (640, 768),
        "text.proj.2.weight": (512, 640),
    }


# What only CONCH's captions need, by a few of its entries.
CAPTION: Shapes = {
    "visual.attn_pool_caption.query": (256, 768),
    "visual.attn_pool_caption.attn.in_proj_weight": (2304, 768),
    "visual.ln_caption.weight": (768,),
    "text_decoder.ln_final.weight": (768,),
    "logit_scale": (),
}
# What a whole CONCH checkpoint holds beside its text tower, by a few of its entries.
BESIDE_TEXT: Shapes = {
    "visual.trunk.cls_token": (1, 1, 768),
    "text_decoder.ln_final.weight": (768,),
    "logit_scale": (),
}


def vit_shapes(width: int, depth: int, hidden: int, patch: int) -> Shapes:
    """Names and shapes of a ViT with layer scale as its authors publish it, without prefix tokens and positions."""
    shapes: Shapes = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(depth):
        parts = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "ls1.gamma": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (hidden, width),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.bias": (width,),
            "ls2.gamma": (width,),
        }
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in parts.items()}
    return shapes


def timm_vit(
    width: int,
    depth: int,
    patch: int,
    positions: int,
    *,
    registers: int = 0,
    hidden: int = 0,
    swiglu: bool = False,
    scaled: bool = True,
) -> Shapes:
    """The whole of it under timm's names; `hidden` of fc1, 4 · width unless given, of which SwiGLU's fc2 takes half."""
    hidden = hidden or 4 * width
    shapes = vit_shapes(width, depth, hidden, patch) | {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        **({"reg_token": (1, registers, width)} if registers else {}),
        **{f"blocks.{block}.mlp.fc2.weight": (width, hidden // 2 if swiglu else hidden) for block in range(depth)},
    }
    return {name: shape for name, shape in shapes.items() if scaled or ".ls" not in name}


def dinov2_vit(width: int, depth: int, patch: int, positions: int, registers: int, hidden: int = 0) -> Shapes:
    """The same under DINOv2's own names, as training leaves it; `hidden`: of SwiGLU, between w12 and w3."""
    shapes = timm_vit(width, depth, patch, positions)
    del shapes["cls_token"]
    if hidden:
        shapes = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
        for block in range(depth):
            shapes |= linear(f"blocks.{block}.mlp.w12", 2 * hidden, width)
            shapes |= linear(f"blocks.{block}.mlp.w3", width, hidden)
    return {
        "cls_token": (1, 1, width),
        "register_tokens": (1, registers, width),
        "mask_token": (1, width),
        **shapes,
    }


def transformers_vit(width: int, depth: int, patch: int, positions: int) -> Shapes:
    """The same under the names of transformers' ViTModel without its pooling; no layer scale."""
    shapes = transformers_start(width, patch, positions)
    for layer in range(depth):
        parts = norm("layernorm_before", width) | norm("layernorm_after", width)
        parts |= transformers_attention(width)
        parts |= linear("intermediate.dense", 4 * width, width) | linear("output.dense", width, 4 * width)
        shapes |= {f"encoder.layer.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes


def transformers_dinov2(
    width: int, depth: int, patch: int, positions: int, *, registers: int = 0, hidden: int = 0
) -> Shapes:
    """The same under the names of transformers' Dinov2Model; `hidden`: of SwiGLU, instead of an MLP."""
    shapes = transformers_start(width, patch, positions) | {"embeddings.mask_token": (1, width)}
    if registers:
        shapes["embeddings.register_tokens"] = (1, registers, width)
    for layer in range(depth):
        parts = norm("norm1", width) | norm("norm2", width) | transformers_attention(width)
        parts |= {"layer_scale1.lambda1": (width,), "layer_scale2.lambda1": (width,)}
        if hidden:
            parts |= linear("mlp.weights_in", 2 * hidden, width) | linear("mlp.weights_out", width, hidden)
        else:
            parts |= linear("mlp.fc1", 4 * width, width) | linear("mlp.fc2", width, 4 * width)
        shapes |= {f"encoder.layer.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes


def transformers_start(width: int, patch: int, positions: int) -> Shapes:
    return {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, positions, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        **norm("layernorm", width),
    }


def transformers_attention(width: int) -> Shapes:
    parts = ("attention.query", "attention.key", "attention.value", "output.dense")
    return {name: shape for part in parts for name, shape in linear(f"attention.{part}", width, width).items()}


def mit_shapes(widths: tuple[int, ...], depths: tuple[int, ...]) -> Shapes:
    """SegFormer's encoder of four stages, whose attention reduces keys and values 8, 4, 2 and 1 times."""
    shapes: Shapes = {}
    for stage, (width, depth, reduced) in enumerate(zip(widths, depths, (8, 4, 2, 1), strict=True), start=1):
        kernel, inputs = (7, 3) if stage == 1 else (3, widths[stage - 2])
        shapes |= {
            f"patch_embed{stage}.proj.weight": (width, inputs, kernel, kernel),
            f"patch_embed{stage}.proj.bias": (width,),
            **norm(f"patch_embed{stage}.norm", width),
            **norm(f"norm{stage}", width),
        }
        for block in range(depth):
            parts = {
                **norm("norm1", width),
                **norm("norm2", width),
                "attn.q.weight": (width, width),
                "attn.q.bias": (width,),
                "attn.kv.weight": (2 * width, width),
                "attn.kv.bias": (2 * width,),
                "attn.proj.weight": (width, width),
                "attn.proj.bias": (width,),
                "mlp.fc1.weight": (4 * width, width),
                "mlp.fc1.bias": (4 * width,),
                "mlp.dwconv.dwconv.weight": (4 * width, 1, 3, 3),
                "mlp.dwconv.dwconv.bias": (4 * width,),
                "mlp.fc2.weight": (width, 4 * width),
                "mlp.fc2.bias": (width,),
            }
            if reduced > 1:
                parts |= {
                    "attn.sr.weight": (width, width, reduced, reduced),
                    "attn.sr.bias": (width,),
                    **norm("attn.norm", width),
                }
            shapes |= {f"block{stage}.{block}.{name}": shape for name, shape in parts.items()}
    return shapes


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


WIDE = (64, 128, 320, 512)
# Of ViTs: 14², 28², 37² or 16² places of 224 or 518, and one for the class token where it has a position.
# The state dict that a preset's checkpoint file holds.
PUBLISHED: dict[str, Shapes] = {
    "kaiko-s16": timm_vit(384, 12, 16, 197, scaled=False),
    "kaiko-s8": timm_vit(384, 12, 8, 785, scaled=False),
    "kaiko-b16": timm_vit(768, 12, 16, 197, scaled=False),
    "kaiko-b8": timm_vit(768, 12, 8, 785, scaled=False),
    "kaiko-l14": timm_vit(1024, 24, 14, 1369, registers=4),
    "lunit-s16": timm_vit(384, 12, 16, 197, scaled=False),
    "lunit-s8": timm_vit(384, 12, 8, 785, scaled=False),
    "uni": timm_vit(1024, 24, 16, 197),
    "uni2-h": timm_vit(1536, 24, 14, 256, registers=8, hidden=8192, swiglu=True),
    "virchow2": timm_vit(1280, 32, 14, 261, registers=4, hidden=6832, swiglu=True),
    "gigapath": timm_vit(1536, 40, 16, 197, hidden=8192, swiglu=True),
    "h-optimus-0": timm_vit(1536, 40, 14, 256, registers=4, hidden=8192, swiglu=True),
    "h0-mini": timm_vit(768, 12, 14, 256, registers=4, hidden=4096, swiglu=True),
    "mit_b0": mit_shapes((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": mit_shapes(WIDE, (2, 2, 2, 2)),
    "mit_b2": mit_shapes(WIDE, (3, 4, 6, 3)),
    "mit_b3": mit_shapes(WIDE, (3, 4, 18, 3)),
    "mit_b4": mit_shapes(WIDE, (3, 8, 27, 3)),
    "mit_b5": mit_shapes(WIDE, (3, 6, 40, 3)),
}
# Those whose file has the names of another library than the one that builds them: preset → of each such file.
RENAMED: dict[str, list[Shapes]] = {
    "phikon": [transformers_vit(768, 12, 16, 197)],
    "phikon-v2": [transformers_dinov2(1024, 24, 16, 197)],
    "hibou-b": [
        transformers_dinov2(768, 12, 14, 257, registers=4, hidden=2048),
        dinov2_vit(768, 12, 14, 257, 4, hidden=2048),
    ],
    "hibou-l": [transformers_dinov2(1024, 24, 14, 257, registers=4, hidden=2736)],
    "kaiko-l14": [dinov2_vit(1024, 24, 14, 1370, 4)],
}


def write_conch_tokenizer(file: Path, texts: list[str], special: tuple[str, ...] | None = None) -> Path:
    """A tokenizer of the published kind (lower-case byte-level BPE, the same special ids) that knows these words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = special or ("<pad>", "<start_of_text>", "<end_of_text>")
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(word, tokenizer.token_to_id(word)) for word in ("<start_of_text>", "<end_of_text>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start_of_text> $A <end_of_text>", special_tokens=ends
    )
    tokenizer.save(str(file))
    return file


def write_vocabulary(file: Path, words: list[str], special: tuple[str, ...] = (), size: int = 30522) -> Path:
    """A vocabulary of PubMedBERT's size that knows these words and single letters."""
    special = special or ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = [*"abcdefghijklmnopqrstuvwxyz.,-()&"]
    known = [*special, *dict.fromkeys([*letters, *(f"##{letter}" for letter in letters), *words])]
    file.write_text("\n".join([*known, *(f"[none{number}]" for number in range(size - len(known)))]) + "\n")
    return file
