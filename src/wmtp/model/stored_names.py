"""What tensors are called on the disk."""

MTP_LLAMA_NORM = "model.mtp_norms.0.weight"
"""The trunk's last norm in the layout ``mtp_llama``, which numbers the norms of all heads."""


def layout_name(name: str, num_layers: int) -> str:
    """Translate a parameter name of a llama model to the Hugging Face layout.

    Sequential depth ``k`` is layer ``N + k`` after the trunk's ``N``, as engines expect it;
    parallel heads are named as in ``mtp_llama``; the matrices of linear heads are our own.

    Example:
        >>> layout_name("trunk.layers.3.mlp.up_proj.weight", num_layers=30)
        'model.layers.3.mlp.up_proj.weight'
        >>> layout_name("heads.depths.1.block.mlp.up_proj.weight", num_layers=30)
        'model.layers.31.mlp.up_proj.weight'
        >>> layout_name("heads.depths.1.eh_proj.weight", num_layers=30)
        'model.layers.31.eh_proj.weight'
        >>> layout_name("heads.heads.1.block.mlp.up_proj.weight", num_layers=30)
        'model.mtp_heads.1.mlp.up_proj.weight'
        >>> layout_name("heads.heads.1.norm.weight", num_layers=30)
        'model.mtp_norms.2.weight'
        >>> layout_name("heads.heads.1.weight", num_layers=30)
        'mtp_heads.1.weight'
    """
    if name.startswith("heads.depths."):
        index, rest = name.removeprefix("heads.depths.").split(".", 1)
        return f"model.layers.{num_layers + int(index)}.{rest.removeprefix('block.')}"
    if name.startswith("heads."):
        index, rest = name.removeprefix("heads.heads.").split(".", 1)
        if rest.startswith("norm."):
            return f"model.mtp_norms.{int(index) + 1}.{rest.removeprefix('norm.')}"
        if rest.startswith("block."):
            return f"model.mtp_heads.{index}.{rest.removeprefix('block.')}"
        return f"mtp_heads.{index}.{rest}"
    inner = name.removeprefix("trunk.")
    return inner if inner.startswith("lm_head.") else f"model.{inner}"


def foreign_name(name: str) -> str:
    """Translate a parameter name of a model whose trunk ``transformers`` runs.

    Example:
        >>> foreign_name("trunk.network.transformer.wte.weight")
        'transformer.wte.weight'
        >>> foreign_name("heads.depths.1.eh_proj.weight")
        'mtp_heads.1.eh_proj.weight'
        >>> foreign_name("heads.heads.0.weight")
        'mtp_heads.0.weight'
    """
    if name.startswith("heads."):
        return f"mtp_heads.{name.split('.', 2)[2]}"
    return name.removeprefix("trunk.network.")


def is_of_heads(stored_name: str, num_layers: int) -> bool:
    """Whether a stored name of a llama model, in any layout, belongs to an extra head.

    Example:
        >>> is_of_heads("model.layers.30.enorm.weight", num_layers=30)
        True
        >>> is_of_heads("model.mtp_norms.0.weight", num_layers=30)
        False
    """
    if stored_name.startswith(("mtp_heads.", "model.mtp_heads.", "extra_heads.")):
        return True
    if stored_name.startswith("model.mtp_norms."):
        return stored_name != MTP_LLAMA_NORM
    parts = stored_name.split(".")
    return parts[:2] == ["model", "layers"] and parts[2].isdigit() and int(parts[2]) >= num_layers
