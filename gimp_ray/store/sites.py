"""Cutting sites into parts: every site whole, the parts as even as that allows, in size and in every class.

A site's staining and scanner show in its slides, so a model can know the site, and through it the class; a split that
keeps sites whole tests without that help. The assignment is greedy (large sites first), then sites are moved and
swapped while that helps; several random orders are tried and the best is kept. Left out: an exact optimum, which needs
an integer solver.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TRIES = 8
_ROUNDS = 200
# beyond these numbers of groups chance evens the parts out, and trying costs too much
_MOST_SWAPPED = 400
_MOST_TRIED = 5000


def group_sites(sites: Sequence[str], patients: np.ndarray) -> tuple[np.ndarray, list[str], list[list[str]]]:
    """Groups of sites that must stay together, since a patient has cases in each.

    Args:
        sites: (n,) site of each case.
        patients: (n,) number of each case's patient.

    Returns:
        (n,) group of each case; the groups' names, sorted; the sites of every group that has several.
    """
    names, of_case = np.unique(np.asarray(sites), return_inverse=True)
    root = list(range(len(names)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    order = np.argsort(patients, kind="stable")
    same = patients[order][1:] == patients[order][:-1]
    for a, b in {(int(a), int(b)) for a, b in zip(of_case[order][:-1][same], of_case[order][1:][same], strict=True)}:
        low, high = sorted((find(a), find(b)))
        root[high] = low
    roots = np.array([find(i) for i in range(len(names))])
    kept, group_of_site = np.unique(roots, return_inverse=True)
    joined = [[str(n) for n in names[roots == r]] for r in kept if np.sum(roots == r) > 1]
    return group_of_site[of_case], [str(names[r]) for r in kept], joined


def spread_groups(counts: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The part of each group, none of the k parts empty: a pure function of its arguments.

    Args:
        counts: (groups, classes) patients; at least k groups.
        k: number of parts.
        seed: of the orders that are tried.

    Returns:
        (groups,) part of each, from 0.
    """
    weighted = _weighted(counts)
    generator = np.random.default_rng(seed)
    best, least = np.zeros(len(counts), dtype=np.int64), np.inf
    for _ in range(_TRIES if len(counts) <= _MOST_TRIED else 1):
        part_of = _greedy(weighted, k, generator)
        cost = _improve(weighted, part_of, k)
        if cost < least - 1e-12:
            best, least = part_of, cost
    return best


def _weighted(counts: np.ndarray) -> np.ndarray:
    """(groups, classes + 1): each class as a share of its patients, and the size as a share of all patients.

    Shares make a rare class weigh as much as a common one; the size counts as much as all the classes together.
    """
    columns = counts / np.maximum(counts.sum(axis=0), 1)
    size = counts.sum(axis=1, keepdims=True) / counts.sum() * np.sqrt(counts.shape[1])
    return np.concatenate([columns, size], axis=1)


def _cost(load: np.ndarray) -> float:
    """Squared deviation of the parts from even ones; `load` is (k, columns)."""
    return float(((load - load.mean(axis=0)) ** 2).sum())


def _greedy(weighted: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """Large groups first (random among near equals), each to the part where it makes the least deviation."""
    size = weighted[:, -1] * generator.uniform(0.8, 1.25, len(weighted))
    load = np.zeros((k, weighted.shape[1]))
    part_of = np.empty(len(weighted), dtype=np.int64)
    empty = set(range(k))
    target = weighted.sum(axis=0) / k
    for done, group in enumerate(np.argsort(-size, kind="stable")):
        # sum over parts of (load - target)^2 grows by this much
        growth = (weighted[group] * (2 * (load - target) + weighted[group])).sum(axis=1)
        if len(weighted) - done <= len(empty):
            growth[[part for part in range(k) if part not in empty]] = np.inf
        part = int(growth.argmin())
        part_of[group] = part
        load[part] += weighted[group]
        empty.discard(part)
    return part_of


def _improve(weighted: np.ndarray, part_of: np.ndarray, k: int) -> float:
    """Move or swap groups, the best change first, while the cost falls; changes `part_of`, returns the cost."""
    load = np.zeros((k, weighted.shape[1]))
    np.add.at(load, part_of, weighted)
    for _ in range(_ROUNDS):
        change, apply = _best_move(weighted, part_of, load)
        if len(weighted) <= _MOST_SWAPPED:
            swap = _best_swap(weighted, part_of, load)
            if swap[0] < change:
                change, apply = swap
        if change > -1e-12:
            break
        for group, part in apply:
            load[part_of[group]] -= weighted[group]
            part_of[group] = part
            load[part] += weighted[group]
    return _cost(load)


def _best_move(weighted: np.ndarray, part_of: np.ndarray, load: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """The change of cost, and the (group, new part), of the best move that empties no part."""
    # cost of adding w to a part of load l, less that of having it where it is: w . (2 (l_new - l_old) + 2 w)
    toward = weighted @ load.T
    own = np.take_along_axis(toward, part_of[:, None], axis=1)
    change = 2 * (toward - own) + 2 * (weighted**2).sum(axis=1, keepdims=True)
    np.put_along_axis(change, part_of[:, None], 0.0, axis=1)
    alone = np.bincount(part_of, minlength=len(load))[part_of] == 1
    change[alone] = 0.0
    group, part = np.unravel_index(int(change.argmin()), change.shape)
    return float(change[group, part]), [(int(group), int(part))]


def _best_swap(weighted: np.ndarray, part_of: np.ndarray, load: np.ndarray) -> tuple[float, list[tuple[int, int]]]:
    """The change of cost, and the two (group, new part), of the best swap of two groups."""
    toward = weighted @ load.T
    own = np.take_along_axis(toward, part_of[:, None], axis=1)[:, 0]
    other = toward[:, part_of]  # (a, b): group a toward the part of group b
    squared = (weighted**2).sum(axis=1)
    distance = squared[:, None] + squared[None, :] - 2 * weighted @ weighted.T
    # a leaves p for q, b leaves q for p: with d = w_b - w_a the cost changes by 2 d . (l_p - l_q) + 2 |d|^2
    change = 2 * (other + other.T - own[:, None] - own[None, :]) + 2 * distance
    change[part_of[:, None] == part_of[None, :]] = 0.0
    a, b = np.unravel_index(int(change.argmin()), change.shape)
    return float(change[a, b]), [(int(a), int(part_of[b])), (int(b), int(part_of[a]))]
