"""Make a cohort store on the cluster's head, in parallel over slides.

ray job submit --working-dir . -- python jobs/ingest.py --patches FEATURES --genes GENES --cases CASES.csv --out STORE
"""

import sys

from gimp_ray.cli import main

if __name__ == "__main__":
    main(["ingest", *sys.argv[1:]])
