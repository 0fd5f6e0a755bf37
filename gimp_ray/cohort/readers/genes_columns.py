"""Names of columns that stand beside an expression matrix: what is known of a gene, and what belongs to a case.

Gene columns get one name each, whatever a tool calls them. Left out: reading them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SYMBOL, GENE_TYPE, ENTREZ, ENSEMBL = "symbol", "gene_type", "entrez", "ensembl"

_SPELLINGS = {
    SYMBOL: "symbol gene_name gene_symbol genesymbol genename hugo_symbol hgnc_symbol hugo",
    GENE_TYPE: "gene_type genetype gene_biotype biotype",
    ENTREZ: "entrez entrez_gene_id entrez_id entrezid entrezgene entrez_gene ncbi_gene_id",
    ENSEMBL: "ensembl ensembl_id ensembl_gene_id ensembl_gene gene_id gene_ids geneid",
}
_KNOWN = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
# beside the genes in the output of counting tools; some are numbers
_POSITION = {
    *("chr", "chrom", "chromosome", "start", "end", "chromstart", "chromend", "strand", "length", "cytoband"),
    "description",
}
# what case tables hold; lower case, which no gene symbol of man is
_OF_CASES = {
    *("label", "class", "subtype", "age", "sex", "gender", "is_female", "site", "stage", "grade"),
    *("survival_months", "survival", "censorship", "event", "status", "os", "os_time", "dss", "dfi", "pfi"),
    *("oncotree", "oncotree_code", "slide", "slide_id", "train", "fold", "split", "batch"),
}


def gene_column(name: str) -> str | None:
    """Our name of a column that tells of genes; None where its name does not say so."""
    plain = _plain(name)
    return _KNOWN.get(plain, plain if plain in _POSITION else None)


def own_names(names: Sequence[str]) -> list[str]:
    """The names under which columns beside the genes are kept, each once."""
    kept: list[str] = []
    for name in names:
        own = gene_column(name) or _plain(name) or "unnamed"
        while own in kept:
            own += "_2"
        kept.append(own)
    return kept


def is_case_column(name: str) -> bool:
    """Whether a column is one of a case table, such as age, and no gene."""
    return name in _OF_CASES


def _plain(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", name.strip().lower()).strip("_")
