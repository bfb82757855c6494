"""Attention of points to a few neighbours each, without their keys and values side by side."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

GATHERED = 2**24  # numbers of keys, or of values, that are gathered at a time


def attend_neighbors(
    queries: Float[Tensor, "batch point channel"],
    keys: Float[Tensor, "batch point channel"],
    values: Float[Tensor, "batch point channel"],
    table: Int[Tensor, "batch point k"],
) -> Float[Tensor, "batch point channel"]:
    """Returns Σ softmax(q·k / √channel) v over the neighbours that `table` lists for each point.

    With gradients to queries, keys and values.
    """
    batch, points, channels = keys.shape
    first = points * torch.arange(batch, device=table.device)[:, None, None]
    flat_table, flat_queries = (table + first).flatten(0, 1), queries.flatten(0, 1)
    flat_keys, flat_values = keys.flatten(0, 1), values.flatten(0, 1)
    rows = max(1, GATHERED // (channels * table.shape[-1]))
    parts = []
    for start in range(0, len(flat_table), rows):
        chosen = flat_table[start : start + rows]
        near = flat_keys.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
        scores = (near * flat_queries[start : start + rows, None]).sum(dim=-1) * channels**-0.5
        weights = scores.float().softmax(dim=-1).to(values)
        near = flat_values.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
        parts.append((near * weights[..., None]).sum(dim=1))
    return torch.cat(parts).unflatten(0, (batch, points))
