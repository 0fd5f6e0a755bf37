"""Search masking ratio, window length L, margin and learning rate with Ray Tune.

ray job submit --working-dir . -- python jobs/tune.py --config run.yaml --run SWEEPDIR --trials 16
"""

import sys

from gimp_ray.cli import main

if __name__ == "__main__":
    main(["sweep", *sys.argv[1:]])
