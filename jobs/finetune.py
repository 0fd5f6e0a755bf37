"""Fine-tune a pre-trained run on whole bags.

ray job submit --working-dir . -- python jobs/finetune.py --run RUNDIR
"""

import sys

from gimp_ray.cli.commands import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
