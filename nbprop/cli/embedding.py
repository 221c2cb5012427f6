"""Categories as learned numbers: an embedding of each column of categories, in the network that a table gets.

A category is one of a column's ones and zeros, so its row of a table of weights is their product with the weight: an
embedding (Guo and Berkhahn 2016) is a dense layer without a bias on these columns of x, beside all others.
"""

from dataclasses import dataclass

import nbprop
from nbprop.cli.networks import read_network
from nbprop.io.table_source import TableSource

# Where nothing is asked for: columns of more categories than this, as half as many numbers, at most so many.
_MANY, _MOST = 20, 50


@dataclass(frozen=True)
class Embedded:
    """A column of categories that becomes learned numbers."""

    name: str
    first: int  # its first column in x
    categories: int
    units: int


def embeddings(source, units, usual):
    """The columns to embed. units: numbers for each, 0 for no embedding, None for what is usual, if that is wanted."""
    if not isinstance(source, TableSource) or units == 0 or (units is None and not usual):
        return []
    found = []
    for column, kinds, first in zip(source.columns, source.categories, source.first, strict=False):
        if kinds is not None and (units is not None or len(kinds) > _MANY):
            own = units or min(_MOST, len(kinds) // 2)
            found.append(Embedded(source.table.name(column), int(first), len(kinds), own))
    return found


def network_with_embeddings(words, shape, embedded):
    """A network from words, behind the embeddings of these columns, and behind these a leading "standardize"."""
    if not embedded:
        return read_network(words, shape)
    branches, at = [], 0
    for one in embedded:
        if one.first > at:
            branches.append([nbprop.slicing(at, one.first)])
        at = one.first + one.categories
        branches.append([nbprop.slicing(one.first, at), nbprop.dense(one.units, bias=False, init="normal")])
    if shape[0] > at:
        branches.append([nbprop.slicing(at, shape[0])])
    inputs = nbprop.concat(*branches) if len(branches) > 1 else branches[0][-1]
    standardized = words.split()[:1] == ["standardize"]
    width = shape[0] + sum(one.units - one.categories for one in embedded)
    rest = read_network(words.split(maxsplit=1)[1] if standardized else words, (width,))
    return nbprop.network(shape, *([nbprop.standardize()] if standardized else []), inputs, *rest.layers)


def leave_unscaled(net, params, embedded):
    """Let embeddings see ones and zeros as they are: a table of numbers needs no scaling of its rows."""
    parts = nbprop.views(net, params)
    for one in embedded:
        here = slice(one.first, one.first + one.categories)
        if "0.standardize.mean" in parts:
            parts["0.standardize.mean"][here], parts["0.standardize.std"][here] = 0.0, 1.0
