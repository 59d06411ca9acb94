"""Where a model lies: a folder as it is, a name on the Hugging Face hub fetched at one commit. No torch here."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qbench.models.folder import BadModel, MissingPackage

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# Weights, configs, tokenizers, and modelling files to read before anybody trusts them; not other formats of the same.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py")
_DUPLICATES = ("*/*", "consolidated*.safetensors")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A folder on this machine; `revision` is the commit that it was fetched at, "" for a folder of the user's own."""

    path: Path
    revision: str


def fetch(source: str | Path, revision: str | None = None) -> Fetched:
    """The folder that `source` names, downloaded where it is not here yet; a folder never touches the network.

    Args:
        source: a folder, or `owner/name` on the hub.
        revision: a commit, tag or branch of the hub; None is the newest, whose commit the result names.

    Raises:
        BadModel: no such folder and no such name on the hub, or only pickles there, or the hub is out of reach.
        MissingPackage: the hub is wanted and `huggingface_hub` is not installed.
    """
    if Path(source).is_dir():
        if revision:
            raise BadModel(f"{source}: revision {revision!r} of a folder; only names on the hub have revisions")
        return Fetched(Path(source), "")
    name = str(source)
    if Path(source).exists() or not HUB_NAME.fullmatch(name):
        raise BadModel(f"{name}: no such folder; expected a folder with config.json, or owner/name on the hub")
    if find_spec("huggingface_hub") is None:
        raise MissingPackage(f"{name}: no such folder, and the hub needs huggingface_hub: pip install huggingface_hub")
    commit = _commit(name, revision)
    return _downloaded(name, commit) if commit else _cached(name, revision)


def _commit(name: str, revision: str | None) -> str | None:
    """The commit on the hub; None where the hub is out of reach. Refuses before anything large is fetched."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision)
    except RevisionNotFoundError:
        raise BadModel(f"{name}: the hub has no revision {revision!r} of it") from None
    except RepositoryNotFoundError:  # a model behind a gate too
        raise BadModel(
            f"{name}: neither a folder here nor a model that the hub shows you; log in: hf auth login"
        ) from None
    except HfHubHTTPError as error:
        raise BadModel(f"{name}: the hub refused: {str(error).splitlines()[0]}") from None
    except _unreachable():
        return None
    files = [sibling.rfilename for sibling in info.siblings or ()]
    if not any(file.endswith(".safetensors") for file in files):
        raise BadModel(
            f"{name}: no safetensors on the hub, and nothing else is read; convert it: hf.co/spaces/safetensors"
        )
    return info.sha


def _downloaded(name: str, commit: str) -> Fetched:
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(name, revision=commit, allow_patterns=list(_WANTED), ignore_patterns=list(_DUPLICATES))
    except _unreachable() as error:
        raise BadModel(f"{name}: the download broke off: {error}; start again, what is here is kept") from None
    return Fetched(Path(path), commit)


def _cached(name: str, revision: str | None) -> Fetched:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise BadModel(
            f"{name}: no such folder, not in the hub's cache, and the hub is out of reach (offline?)"
        ) from None
    return Fetched(path, path.name)  # the cache names its folders by commit


def _unreachable() -> tuple[type[Exception], ...]:
    """What a lost network raises; whose class that is depends on the hub client's version, but not its name there."""
    from huggingface_hub import errors

    return (OSError, getattr(errors, "HTTPError", OSError))
