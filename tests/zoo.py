"""Tiny models of many architectures on disk, with a tokenizer as each kind of model has one."""

from pathlib import Path
from typing import Any

import torch

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [f"w{i}" for i in range(40)] + ["good", "bad"]
VOCABULARY = {word: number for number, word in enumerate(SPECIALS + WORDS)}
PAD, BOS, EOS = 0, 1, 2

IDS: dict[str, Any] = {"vocab_size": len(VOCABULARY), "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_BERT = IDS | {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
_BART = IDS | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
}
_BART |= {"d_model": 16, "max_position_embeddings": 64, "decoder_start_token_id": EOS}
_T5 = IDS | {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": PAD}
_GPT2 = IDS | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
_GROUPED = _BERT | {"num_key_value_heads": 1}
_FUNNEL = {"d_model": 16, "block_sizes": [1, 1], "n_head": 2, "d_head": 8, "d_inner": 24}

ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": _BERT,
    "Roberta": _BERT | {"type_vocab_size": 1},
    "Camembert": _BERT | {"type_vocab_size": 1},
    "XLMRoberta": _BERT | {"type_vocab_size": 1},
    "DistilBert": IDS | {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
    "Albert": _BERT | {"embedding_size": 8},
    "Electra": _BERT | {"embedding_size": 8},
    "Deberta": _BERT | _RELATIVE,
    "DebertaV2": _BERT | _RELATIVE | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "MPNet": _BERT,
    "XLNet": IDS | {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    "Funnel": IDS | _FUNNEL,
    "Longformer": _BERT | {"attention_window": 8, "type_vocab_size": 1},
    "BigBird": _BERT | {"block_size": 4, "num_random_blocks": 1},
    "ModernBert": _BERT | {"cls_token_id": BOS, "sep_token_id": EOS, "local_attention": 8},
    "ConvBert": _BERT | {"embedding_size": 16},
    "FNet": _BERT,
    "Nystromformer": _BERT | {"num_landmarks": 4, "segment_means_seq_len": 4},
}
DECODERS: dict[str, dict[str, Any]] = {
    "GPT2": _GPT2,
    "GPTNeo": IDS
    | {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
    | {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "GPTNeoX": _BERT,
    "OPT": _BERT | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "Bloom": IDS | {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "Llama": _GROUPED,
    "Mistral": _GROUPED | {"sliding_window": 8},
    "Olmo2": _GROUPED,
    "Gemma": _GROUPED | {"head_dim": 8},
    "Phi": _BERT,
    "Falcon": IDS | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "CTRL": IDS | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "dff": 24},
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "Bart": _BART,
    "MBart": _BART,
    "T5": _T5,
    "UMT5": _T5,
}
ALL = ENCODERS | DECODERS | ENCODER_DECODERS


def save_tokenizer(folder: Path, kind: str, **settings: Any) -> None:
    """Write a tokenizer that marks texts as one of "encoder", "decoder" or "encoder-decoder" does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw: Any = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    templates = {
        "encoder": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
        "encoder-decoder": ("$A </s>", "$A </s> $B </s>"),
    }
    if kind in templates:
        single, pair = templates[kind]
        marks: Any = [("<s>", BOS), ("</s>", EOS)]
        raw.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=marks)
    given = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"} | settings
    PreTrainedTokenizerFast(tokenizer_object=raw, **given).save_pretrained(folder)


def save_model(folder: Path, name: str, classifier: bool = False, **changes: Any) -> str:
    """Write a tiny model with every weight random, and its tokenizer; give the folder as an address."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = getattr(transformers, f"{name}Config")(**ALL[name] | changes)
    for key in ("initializer_range", "init_std"):  # of the head, so that logits differ from text to text
        if hasattr(config, key):
            setattr(config, key, 0.5)
    made = getattr(transformers, f"{name}{'ForSequenceClassification' if classifier else 'Model'}")(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3 + (parameter.dim() == 1))
    made.save_pretrained(folder)
    save_tokenizer(folder, "encoder" if name in ENCODERS else "decoder" if name in DECODERS else "encoder-decoder")
    return str(folder)
