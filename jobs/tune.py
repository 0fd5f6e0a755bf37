"""Search config keys with Ray Tune; the same job goes on with a sweep that was stopped.

ray job submit --working-dir . -- python jobs/tune.py --config sweep.yaml --store STORE --run SWEEPDIR
"""

import sys

from gimp_ray.cli.commands import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
