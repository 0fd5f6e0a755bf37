"""What the names of UCSC Xena's data sets say of their unit. The matrices themselves are read by `genes_text.py`.

Hubs: GDC (`TCGA-LUAD.star_fpkm.tsv.gz`), Toil (`tcga_RSEM_gene_tpm.gz`), TCGA (`HiSeqV2`). Left out: data sets that are
normalised across a cohort (`HiSeqV2_PANCAN`, percentiles), whose unit has no name.
"""

from __future__ import annotations

import re
from pathlib import Path

# the hub's own description of each data set
_NAMES = (
    (r".*[.](htseq|star)_fpkm-uq", "log2(FPKM-UQ+1)"),
    (r".*[.](htseq|star)_fpkm", "log2(FPKM+1)"),
    (r".*[.](htseq|star)_tpm", "log2(TPM+1)"),
    (r".*[.](htseq|star)_counts", "log2(counts+1)"),
    (r"(tcga|gtex|target|tcgatargetgtex)_rsem_gene_tpm", "log2(TPM+0.001)"),
    (r"(tcga|gtex|target|tcgatargetgtex)_rsem_gene_fpkm", "log2(FPKM+0.001)"),
    (r"(tcga|gtex|target|tcgatargetgtex)_(gene_expected_count|rsem_hugo_norm_count)", "log2(RSEM+1)"),
    (r"(.*[._])?hiseqv2", "log2(RSEM+1)"),
)


def unit_hint(path: Path) -> str | None:
    """The unit that the file's name says, None for a name that is not one of Xena's."""
    name = path.name.lower().removesuffix(".gz")
    name = re.sub(r"[.](tsv|txt|csv)$", "", name)
    return next((unit for pattern, unit in _NAMES if re.fullmatch(pattern, name)), None)
