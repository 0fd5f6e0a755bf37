"""Evaluate a fine-tuned run and write its report.

ray job submit --working-dir . -- python jobs/evaluate.py --run RUNDIR
"""

import sys

from gimp_ray.cli.commands import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
