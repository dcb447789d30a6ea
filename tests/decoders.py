"""Tiny language models of many architectures, and a tokenizer whose words are its tokens."""

from typing import Any

WORDS = [f"w{i}" for i in range(24)] + ["good", "bad", ":", "yes", "no", *map(str, range(20))]


def tokenizer(starts: bool = True, chat: str | None = None) -> Any:
    """Make a tokenizer of WORDS; `starts` puts <s> before a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>", "<end>"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(marks + WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if starts:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<end>"],
    )
    if chat is not None:
        made.chat_template = chat
    return made


CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)

SIZE = {"vocab_size": len(WORDS) + 7, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {"intermediate_size": 48, "max_position_embeddings": 64}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "llama": ("LlamaForCausalLM", SIZE | WIDE | {"num_key_value_heads": 1}),
    "qwen3": ("Qwen3ForCausalLM", SIZE | WIDE | {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        SIZE | WIDE | {"num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 5.0},
    ),
    "gemma3": ("Gemma3ForCausalLM", SIZE | WIDE | {"num_key_value_heads": 1, "head_dim": 16}),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZE | WIDE),
    "granite": ("GraniteForCausalLM", SIZE | WIDE | {"logits_scaling": 3.0}),
    "opt": (
        "OPTForCausalLM",
        SIZE | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    ),
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}),
    "bart": (
        "BartForConditionalGeneration",
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64},
    ),
}


def make(kind: str, folder: Any, chat: str | None = None) -> str:
    """Write a model of random weights with its tokenizer into a folder."""
    import torch
    import transformers

    name, settings = KINDS[kind]
    model_class: Any = getattr(transformers, name)
    both = {"decoder_start_token_id": 0, "forced_eos_token_id": None} if kind in ("t5", "bart") else {}
    config = model_class.config_class(**{"vocab_size": SIZE["vocab_size"], **settings, **MARKS, **both})
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)  # random weights that tell inputs apart
    model.save_pretrained(folder)
    tokenizer(chat=chat).save_pretrained(folder)
    return str(folder)
