"""The cohort on disk: schemas, the store, readers of other tools' files, ingest, splits and checks.

    store = CohortStore.open("STORE")
    window = store.read_window(slide_id, start, length)   # (length, D) float16
    genes = store.read_genes(case_ids)                    # (n, G) float32

Ingest (`gimp_ray.ingest.ingest`), the checks (`gimp_ray.store.check`) and the synthetic cohort are imported from
their modules. Left out: anything that knows a model, and Ray.
"""

from gimp_ray.store.manifest import Manifest
from gimp_ray.store.splits import Split
from gimp_ray.store.store import CohortStore

__all__ = ["CohortStore", "Manifest", "Split"]
