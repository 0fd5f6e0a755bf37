"""Pre-train GiMP, the gene encoder first where none is given.

ray job submit --working-dir . -- python jobs/pretrain.py --config run.yaml --train.workers 8
"""

import sys

from gimp_ray.cli.commands import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
