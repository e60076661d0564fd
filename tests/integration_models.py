"""Small random models of the families that the integrations promise, and batches for them."""

import torch

V, T, C = 61, 12, 3
_SIZES = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 8}
FAMILIES = {
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "smollm": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": False, **_HEAD}),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 2.0, **_HEAD}),
    "gemma3": ("Gemma3", {"final_logit_softcapping": None, **_HEAD}),
    "gemma3-capped": ("Gemma3", {"final_logit_softcapping": 1.5, **_HEAD}),
    "granite": ("Granite", {"logits_scaling": 3.0}),
    "granite-odd": ("Granite", {"logits_scaling": 7.77}),
    "cohere": ("Cohere", {"logit_scale": 0.0625}),
    "t5-tied": ("T5", {"tie_word_embeddings": True}),
    "t5-untied": ("T5", {"tie_word_embeddings": False}),
    "bart": ("Bart", {}),
}
_ENCODER_DECODERS = {
    "T5": {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    "Bart": {
        "vocab_size": V,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 64,
    },
}
SEQ2SEQ = {name for name, (kind, _) in FAMILIES.items() if kind in _ENCODER_DECODERS}


def small_model(family, seed=0, **changes):
    """A model in float32 with logits of a size that a softcap bends, without dropout."""
    import transformers

    kind, own = FAMILIES[family]
    torch.manual_seed(seed)
    sizes = _ENCODER_DECODERS.get(kind, {"vocab_size": V} if kind == "GPT2" else _SIZES)
    config_name = {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config")
    config = getattr(transformers, config_name)(**{**sizes, **own, **changes})
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop", "dropout", "dropout_rate"):
        if hasattr(config, name) and name not in changes:
            setattr(config, name, 0.0)
    if kind in _ENCODER_DECODERS:
        config.decoder_start_token_id = config.pad_token_id = 0
    suffix = {"GPT2": "LMHeadModel"}.get(kind, "ForCausalLM")
    suffix = "ForConditionalGeneration" if kind in _ENCODER_DECODERS else suffix
    model = getattr(transformers, kind + suffix)(config)
    with torch.no_grad():
        if kind != "T5":
            model.get_output_embeddings().weight.mul_(20)
        if kind == "Bart":
            model.final_logits_bias.normal_()
    return model


def batch_for(family, rows=4, seed=0):
    """A batch as ChunkCollator makes it: a prompt, three chunks, padding on the right."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (rows, T), generator=draw)
    chunk_ids = (torch.arange(T) // 3 - 1).repeat(rows, 1)
    mask = torch.arange(T) < torch.randint(7, T + 1, (rows, 1), generator=draw)
    chunk_ids[~mask] = -1
    batch = {
        "input_ids": ids.masked_fill(~mask, 0),
        "attention_mask": mask.long(),
        "labels": ids.masked_fill(~mask, -100),
        "chunk_ids": chunk_ids,
    }
    batch["labels"][0, 5] = -100  # one that its author masked
    if family in SEQ2SEQ:
        batch["input_ids"] = torch.randint(3, V, (rows, 9), generator=draw)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return batch


def rows_of(batch):
    """The rows of a dataset that collate to `batch` (causal)."""
    lengths = batch["attention_mask"].sum(1).tolist()
    names = [name for name in batch if name != "attention_mask"]
    return [
        {name: batch[name][i, :length].tolist() for name in names}
        for i, length in enumerate(lengths)
    ]


def eager_loss(model, batch, active=None, token_weight=None, reduction="token_mean"):
    """What the integrations must give, in plain torch on the model's own logits."""
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    inputs = {name: batch[name] for name in names if name in batch}
    labels, ids = batch["labels"], batch["chunk_ids"]
    if model.config.is_encoder_decoder:
        start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], 1)
        inputs["decoder_input_ids"] = shifted.masked_fill(shifted == -100, 0)
        logits = model(**inputs).logits
    else:
        logits = model(**inputs).logits[:, :-1]
        labels, ids = labels[:, 1:], ids[:, 1:]
        token_weight = None if token_weight is None else token_weight[:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).double(), labels.flatten(), ignore_index=-100, reduction="none"
    )
    weight = ((labels != -100) & (ids >= 0)).flatten().double()
    if token_weight is not None:
        weight = weight * token_weight.flatten()
    chunks = torch.ones(C) if active is None else active.double()
    ids = ids.flatten().clamp_min(0)
    if reduction == "token_mean":
        weight = weight * chunks[ids]
        return (weight * nll).sum() / weight.sum()
    total, share = 0.0, 0.0
    for chunk in range(C):
        own = weight * (ids == chunk)
        if chunks[chunk] and own.sum() > 0:
            total = total + chunks[chunk] * (own * nll).sum() / own.sum()
            share = share + chunks[chunk]
    return total / share
