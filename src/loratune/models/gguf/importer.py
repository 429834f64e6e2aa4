"""Convert a GGUF file to a model folder: fp32 safetensors, the configuration and the tokenizer."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from loratune.errors import UserError
from loratune.models.gguf.header import check_gguf_sizes, read_gguf_header
from loratune.models.tokenizer import Tokenizer
from loratune.system.atomic import translate_os_errors
from loratune.system.memory import is_out_of_memory
from loratune.system.messages import track
from loratune.system.quiet import quiet_libraries


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file and write it as a model folder, whole or not at all.

    Args:
        gguf: the file.
        folder: to create; if another process creates it meanwhile, that one stays.

    Raises:
        UserError: the file cannot be read as GGUF, or the disk is full.
    """
    import torch
    from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils

    # Its progress bar cannot be switched off and would appear in logs and JSON output, so ours replaces it.
    modeling_gguf_pytorch_utils.tqdm = (  # pyright: ignore[reportPrivateImportUsage]
        lambda tensors, **_: track(tensors, "unpacking the model (once)")
    )
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        check_gguf_sizes(read_gguf_header(gguf))
        with translate_os_errors(folder), isolate_file(gguf) as source_folder, quiet_libraries():
            source = {"pretrained_model_name_or_path": source_folder, "gguf_file": gguf.name}
            model = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.float32, trust_remote_code=False
            )
            # The folder holds plain weights, but its configuration would say that they are quantised.
            model.config.__dict__.pop("quantization_config", None)
            model.hf_quantizer = None  # pyright: ignore[reportArgumentType]
            beside.mkdir(parents=True, exist_ok=True)
            model.save_pretrained(beside)
            Tokenizer.load(source_folder, gguf_file=gguf.name).save(beside)
            move_into_place(beside, folder)
    except UserError:
        raise
    except Exception as error:  # whatever gguf and transformers raise for a broken file
        if is_out_of_memory(error):
            raise
        raise UserError(f"cannot be read as a GGUF model: {error}", setting="model", value=gguf) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def isolate_file(file: Path):
    """Yield a folder that holds the file alone; transformers would also read a tokenizer.json beside it."""
    with TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file.absolute())
        yield Path(folder)


def move_into_place(beside: Path, folder: Path) -> None:
    """Rename `beside` to `folder`, unless another process has converted the same file meanwhile."""
    try:
        os.replace(beside, folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
