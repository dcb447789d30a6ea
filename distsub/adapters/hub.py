"""Adapters on the hub: fetched by their id, and pushed with a card."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from distsub.adapters import peft_files
from distsub.addresses import is_hub_id
from distsub.errors import AdapterError, first_line
from distsub.models.explain import reason
from distsub.subspace import adapter

FILES = (adapter.CONFIG, adapter.WEIGHTS, peft_files.FACTS)
"""What an adapter is made of; nothing else of its folder travels."""


def fetch(address: str) -> Path:
    """Fetch an adapter, "owner/name" or "owner/name@revision", from the hub or from its cache on this machine.

    Raises:
        AdapterError: It is not there, the hub cannot be reached, or the repository holds no adapter.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = address.partition("@")
    try:
        found = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean the same to a user
        raise AdapterError(
            f"{address} is no directory here, and the hub gives no such adapter ({first_line(error)}); give a "
            "directory, an address such as s3://, or a hub id"
        ) from None
    if not (found / adapter.CONFIG).is_file():
        raise AdapterError(f"{address} on the hub holds no adapter: it has no {adapter.CONFIG}")
    return found


def check_repository(name: str) -> None:
    """Refuse what is no repository's name, by an AdapterError."""
    if not is_hub_id(name) or "@" in name:
        raise AdapterError(f"{name!r} is no repository of the hub; give owner/name")


def push(directory: Path, repository: str, card: str, private: bool = False) -> str:
    """Push an adapter with a card to the hub, as one commit; gives the repository's address.

    Where the base model was a folder of this machine, its last name travels in the place of its path: who loads the
    adapter gives `base`, which is checked by its hash. A repository that is not there is made.

    Raises:
        AdapterError: There is no adapter, or the hub refuses it.
    """
    check_repository(repository)
    if not (directory / adapter.CONFIG).is_file():
        raise AdapterError(f"{directory} holds no adapter: it has no {adapter.CONFIG}")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in FILES:
            if not (directory / name).is_file():
                continue
            if name.endswith(".json"):
                content = _without_paths(json.loads((directory / name).read_text()))
                (folder / name).write_text(json.dumps(content, indent=2) + "\n")
            else:
                shutil.copyfile(directory / name, folder / name)
        (folder / "README.md").write_text(card)
        api = HfApi()
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Add an adapter of distsub")
        except Exception as error:  # as above
            raise AdapterError(
                f"the hub did not take {repository} ({reason(error)}); log in (`hf auth login`, or HF_TOKEN) with a "
                "token that may write there"
            ) from None
    return str(address)


def _without_paths(content: dict[str, Any]) -> dict[str, Any]:
    """Replace the base's address by its last name, where that is a path of this machine."""
    named = {
        key: content[key] for key in ("base_model", "base_model_name_or_path") if isinstance(content.get(key), str)
    }
    return content | {key: Path(name).name for key, name in named.items() if Path(name).is_absolute()}
