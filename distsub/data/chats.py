"""Chats as prompts and completions: the last message is the completion, the tokenizer's template makes the rest."""

import json
from typing import Any

from distsub.errors import DataError, UnavailableError, first_line


def messages(text: str, where: str) -> list[dict[str, Any]]:
    """Read the messages of a chat: JSON, a list of {"role": ..., "content": ...}, the last of the assistant.

    Raises:
        DataError: It is something else.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if isinstance(found, list) and len(found) > 1 and all(is_message(each) for each in found):
        last = found[-1]
        if last["role"] == "assistant" and last["content"].strip():
            return found
    raise DataError(
        f'{where}: {text[:60]!r} is no chat; give a list of {{"role": "user", "content": "..."}}, of which the last '
        'has the role "assistant" and a content'
    )


def is_message(value: Any) -> bool:
    """Tell whether a value is a message of a chat."""
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def render(tokenizer: Any, text: str, where: str) -> tuple[str, str, bool]:
    """Turn a chat into a prompt and its completion by the tokenizer's chat template.

    Returns:
        The prompt, up to where the assistant's last message begins; that message; and whether it ends with the special
        token by which the template ends a turn, which some have not.

    Raises:
        UnavailableError: The tokenizer has no chat template.
        DataError: The template refuses the chat, writes the earlier messages differently when the last is there, or
            does not write the last as it is.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UnavailableError(
            f"messages need a chat template, which the tokenizer of {tokenizer.name_or_path} does not have: give "
            "prompt and completion columns, or put chat_template.jinja there"
        )
    chat = messages(text, where)
    try:
        prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception as error:  # a template is a program of the model's own and raises what it likes
        raise DataError(f"{where}: the chat template refuses it: {first_line(error)}") from None
    if not whole.startswith(prompt):
        raise DataError(
            f"{where}: the chat template does not begin the whole chat as it begins the prompt; give prompt and "
            "completion columns"
        )
    tail, content = whole[len(prompt) :], chat[-1]["content"].strip()
    if content not in tail:
        raise DataError(
            f"{where}: the chat template does not write the last message as it is; give prompt and completion columns"
        )
    end = tail.index(content) + len(content)
    marks = [(at, mark) for mark in tokenizer.all_special_tokens if (at := tail.find(mark, end)) >= 0]
    if not marks:
        return prompt, tail[:end], False
    at, mark = min(marks, key=lambda each: (each[0], -len(each[1])))
    return prompt, tail[: at + len(mark)], True
