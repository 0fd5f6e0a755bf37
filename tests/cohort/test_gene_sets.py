"""Gene sets are read as they stand, and found in a store's genes by id, by plain id or by symbol."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gimp_ray.errors import InputError
from gimp_ray.io.gene_sets import match_gene_sets, read_gene_list, read_gene_sets

SETS = {"HALLMARK_P53": ("TP53", "MDM2", "CDKN1A"), "KINASES": ("EGFR", "ALK")}
LONG = "HALLMARK_P53,MDM2\nHALLMARK_P53,CDKN1A\nKINASES,ALK\n"
GMT = "HALLMARK_P53\thttp://msigdb/x\tTP53\tMDM2\tCDKN1A\nKINASES\tna\tEGFR\tALK\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("h.gmt", GMT),
        ("h.gmt.gz", GMT),
        ("h.txt", GMT),
        ("long.csv", "gene_set,gene\nHALLMARK_P53,TP53\nKINASES,EGFR\n" + LONG),
        ("long.tsv", ("gs_name,gene_symbol\nHALLMARK_P53,TP53\nKINASES,EGFR\n" + LONG).replace(",", "\t")),
        ("wide.csv", "HALLMARK_P53,KINASES\nTP53,EGFR\nMDM2,ALK\nCDKN1A,\n"),
        ("pandas.csv", ",HALLMARK_P53,KINASES\n0,TP53,EGFR\n1,MDM2,ALK\n2,CDKN1A,NaN\n"),
    ],
)
def test_every_shape_gives_the_same_sets(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_gene_sets(tmp_path / name) == SETS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.gmt", "A\tx\tTP53\nA\tx\tEGFR\n", "a gene set stands twice"),
        ("s.gmt", "A\tx\tTP53\tEGFR\tTP53\n", "A has a gene twice"),
        ("s.gmt", "A\tx\tTP53\nB\tx\n", "B has no genes"),
        ("s.gmt", "TP53\nEGFR\n", "no file of gene sets"),
        ("s.gmt", "", "no file of gene sets"),
        ("s.csv", "A,B\nTP53,\n", "B has no genes"),
        ("s.csv", "A,A\nTP53,EGFR\n", "a gene set stands twice"),
        ("s.csv", "A,weight\nTP53,0.5\n", "no file of gene sets"),
        ("s.csv", "A,\nTP53,EGFR\n", "no file of gene sets"),
        ("s.csv", "gene_set,gene\nA,\n", "no file of gene sets"),
        ("s.csv", "gene_set,gene\nA,TP53\nA,TP53\n", "A has a gene twice"),
    ],
)
def test_what_is_no_file_of_sets_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_gene_sets(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)
    assert caught.value.fix is not None and caught.value.found is not None


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for read in (read_gene_sets, read_gene_list):
        with pytest.raises(InputError, match="no such"):
            read(tmp_path / "none.gmt")


@pytest.mark.parametrize(
    ("content", "genes"),
    [
        ("TP53\n# comment\n\nEGFR\n", ["TP53", "EGFR"]),
        ("gene\nTP53\n", ["TP53"]),
        ("x,gene_id\n1,ENSG1.2\n", ["ENSG1.2"]),
    ],
)
def test_gene_lists(tmp_path: Path, content: str, genes: list[str]) -> None:
    (tmp_path / "l.txt").write_text(content)
    assert read_gene_list(tmp_path / "l.txt") == genes
    for bad, message in (("TP53\nTP53\n", "twice"), ("a,b\n1,2\n", "no gene list"), ("\n", "no gene list")):
        (tmp_path / "l.txt").write_text(bad)
        with pytest.raises(InputError, match=message):
            read_gene_list(tmp_path / "l.txt")


def test_genes_are_found_by_id_by_plain_id_and_by_symbol() -> None:
    ids = [
        "ENSG00000000003.15",
        "ENSG00000141510.18",
        "ENSG00000146648.18",
        "ENSG00000182378.15_PAR_Y",
        "ENSG00000182378.15",
    ]
    symbols = ["TSPAN6", "TP53", "EGFR", "PLCXD1", "PLCXD1"]
    sets = {
        "exact": ["ENSG00000146648.18", "ENSG00000000003.15"],
        "other version": ["ENSG00000141510.3", "ENSG00000141510"],
        "symbol": ["EGFR", "PLCXD1", "NOSUCH"],
        "nothing": ["A", "B"],
        "x copy alone": ["ENSG00000182378"],
    }
    match = match_gene_sets(sets, ids, symbols)
    assert {name: places.tolist() for name, places in match.sets.items()} == {
        "exact": [0, 2],
        "other version": [1],
        "symbol": [2, 3, 4],
        "nothing": [],
        "x copy alone": [4],
    }
    assert match.unmatched == {
        "exact": (),
        "other version": (),
        "symbol": ("NOSUCH",),
        "nothing": ("A", "B"),
        "x copy alone": (),
    }
    assert match.coverage == {
        "exact": 1.0,
        "other version": 1.0,
        "symbol": pytest.approx(2 / 3),
        "nothing": 0.0,
        "x copy alone": 1.0,
    }
    assert match_gene_sets({"s": ["EGFR"]}, ids).unmatched == {"s": ("EGFR",)}


@given(
    st.dictionaries(st.text("ABC", min_size=1), st.lists(st.integers(0, 30), min_size=1, unique=True)),
    st.integers(1, 20),
)
def test_places_are_of_the_genes_asked_for(sets: dict[str, list[int]], genes: int) -> None:
    ids = [f"G{i}" for i in range(genes)]
    match = match_gene_sets({name: [f"G{i}" for i in of] for name, of in sets.items()}, ids)
    for name, of in sets.items():
        assert match.sets[name].dtype == np.int64
        assert match.sets[name].tolist() == sorted(i for i in of if i < genes)
        assert len(match.unmatched[name]) + len(match.sets[name]) == len(of)
