"""Tensors that are sliced over ranks, on disk: each rank writes its own, any number reads them.

torch's distributed checkpoint does the cutting and joining. Its files here are safetensors with
the place of each slice in their headers, so that nothing pickled is ever read; what keeps them
safe (new folder, checksums, rename) is the checkpoint around them.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Tensor


def write_slices(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup) -> None:
    """Write this rank's slices into a folder that exists; all ranks of the group call it at once.

    Whole tensors may be among them; of those that several ranks have, one is written.

    Raises:
        OSError: a rank could not write, the same on all.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        reasons = {f"rank {rank}: {_told(why)}" for rank, (why, _) in error.failures.items()}
        raise OSError("; ".join(sorted(reasons))) from error


def read_slices(folder: Path, wanted: Mapping[str, Tensor]) -> None:
    """Fill tensors from a folder, in place; sliced ones with their own part.

    The files may have been written by any number of ranks, or be plain safetensors.

    Raises:
        KeyError: a name is not in the folder.
        RuntimeError: a tensor has another shape there.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    state = dict(wanted)
    try:
        with _quiet():
            load(
                state,
                storage_reader=HuggingFaceStorageReader(str(folder)),
                no_dist=not dist.is_initialized(),
            )
    except CheckpointException as error:
        raise RuntimeError(str(next(iter(error.failures.values()))[0])) from error


def _told(error: BaseException) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out torch's remarks on how it is called, which a user cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
