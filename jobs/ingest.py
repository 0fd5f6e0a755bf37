"""Make a cohort store, or add to one, in parallel over the nodes of the cluster (Ray Data).

ray job submit --working-dir . -- python jobs/ingest.py --patches FEATURES --genes GENES --cases CASES.csv --out STORE
"""

import sys

from gimp_ray.cli.commands import main

if __name__ == "__main__":
    main(["ingest", "--ray", "auto", *sys.argv[1:]])
